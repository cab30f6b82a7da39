#include "trainers/corruptions.h"

#include "datasets/loader.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"

namespace fewstep {
namespace {

// Everything one call draws. Column c of `u` is one independent uniform a row; noise comes from its own stream.
struct Draws {
  Tensor ids, u;
  uint64_t seed;
  int64_t step;
  Tensor column(int64_t c, const Tensor& rows) const { return u.select(1, c).index_select(0, rows); }
  Tensor noise(const Tensor& rows, at::IntArrayRef shape) const {
    return normal_by_id(ids.index_select(0, rows), shape, seed, Stream::augment, step);
  }
};
constexpr int64_t kStrength = 0, kKind = 1, kSigma = 2, kPartner = 3, kPartners = 4, kColumns = kPartner + kPartners;

Tensor per_row(const Tensor& v) { return v.view({-1, 1, 1, 1}); }

// Separable Gaussian with its own sigma [B] for each row; the ground (-1) continues outside.
Tensor gaussian_blur(const Tensor& x, const Tensor& sigma) {
  constexpr int64_t radius = 4;
  const int64_t B = x.size(0), C = x.size(1);
  const Tensor offsets = at::arange(-radius, radius + 1, x.options());
  Tensor kernel = at::exp(-offsets.square() / (2 * sigma.view({-1, 1}).square()));
  kernel = (kernel / kernel.sum(1, true)).repeat_interleave(C, 0);  // [B C, 9]
  Tensor y = at::constant_pad_nd(x, {radius, radius, radius, radius}, -1).view({1, B * C, x.size(2) + 2 * radius, -1});
  y = at::conv2d(y, kernel.view({B * C, 1, 1, -1}), {}, at::IntArrayRef({1, 1}), at::IntArrayRef({0, 0}), at::IntArrayRef({1, 1}), B * C);
  y = at::conv2d(y, kernel.view({B * C, 1, -1, 1}), {}, at::IntArrayRef({1, 1}), at::IntArrayRef({0, 0}), at::IntArrayRef({1, 1}), B * C);
  return y.view_as(x);
}

Tensor coloured_noise(const Tensor& noise, const Tensor& sigma) {
  const Tensor n = gaussian_blur(noise, sigma);
  return (n - n.mean({1, 2, 3}, true)) / n.std(at::OptionalIntArrayRef({1, 2, 3}), true, true);
}

// The luminance table of ITU-T T.81 annex K.1, scaled by quality as libjpeg does, on 8 x 8 blocks; no entropy coding.
Tensor jpeg_artefacts(const Tensor& x, const Tensor& quality) {
  static constexpr float kTable[64] = {16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57,
                                       69, 56, 14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64,
                                       81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99};
  const int64_t B = x.size(0), C = x.size(1), H = x.size(2), W = x.size(3);
  const Tensor n = at::arange(8, x.options());
  Tensor dct = at::cos((2 * n.view({1, 8}) + 1) * n.view({8, 1}) * (M_PI / 16)) * 0.5;
  dct.select(0, 0).mul_(std::sqrt(0.5));
  const Tensor scale = at::where(quality.lt(50), 5000 / quality, 200 - 2 * quality) / 100;
  const Tensor table = at::tensor(at::ArrayRef<float>(kTable, 64), x.options()).view({8, 8});
  const Tensor steps = (table * per_row(scale)).clamp(1, 255).view({B, 1, 1, 1, 8, 8});
  const Tensor blocks = (x * 127.5).view({B, C, H / 8, 8, W / 8, 8}).transpose(3, 4);  // [B, C, h, w, 8, 8]
  const Tensor coded = at::round(at::matmul(at::matmul(dct, blocks), dct.t()) / steps) * steps;
  return (at::matmul(at::matmul(dct.t(), coded), dct).transpose(3, 4).reshape({B, C, H, W}) / 127.5);
}

Tensor down_up(const Tensor& x, bool smooth) {
  const Tensor half = at::avg_pool2d(x, {2, 2});
  return smooth ? at::upsample_bilinear2d(half, x.sizes().slice(2), false) : at::upsample_nearest2d(half, x.sizes().slice(2));
}

// Each 4 x 4 cell comes from one of the partners with the given probability: right statistics, no global sense.
Tensor mix_cells(const Tensor& x, const std::vector<Tensor>& partners, const Tensor& probability, const Tensor& noise) {
  const int64_t h = x.size(2) / 4, w = x.size(3) / 4;
  const auto grow = [&](const Tensor& cells) { return cells.repeat_interleave(4, 2).repeat_interleave(4, 3); };
  // Two normals per cell become two uniforms: whether the cell is replaced, and by which partner.
  const Tensor u = at::special_ndtr(noise.view({x.size(0), 2, h, w}));
  const Tensor replaced = grow(u.narrow(1, 0, 1).lt(per_row(probability)));
  const Tensor choice = grow(u.narrow(1, 1, 1) * static_cast<double>(partners.size()));
  Tensor other = partners[0];
  for (size_t k = 1; k < partners.size(); ++k) other = at::where(choice.ge(static_cast<double>(k)), partners[k], other);
  return at::where(replaced, other, x);
}

Tensor rows_of(const Tensor& kind, int64_t k) { return at::nonzero(kind.eq(k)).view(-1); }

}  // namespace

PartnerPool::PartnerPool(const Dataset& dataset, int64_t count, uint64_t seed) {
  const Batch batch = load_range(dataset, 0, std::min(count, dataset.size()), seed);
  images_ = batch.images;
  const Tensor labels = batch.labels.contiguous();
  for (int64_t i = 0; i < labels.numel(); ++i) {
    const int64_t label = labels.const_data_ptr<int64_t>()[i];
    if (label < 0) continue;
    if (static_cast<size_t>(label) >= by_class_.size()) by_class_.resize(static_cast<size_t>(label) + 1);
    by_class_[static_cast<size_t>(label)].push_back(i);
  }
}

Tensor PartnerPool::any(const Tensor& uniforms) const {
  return images_.index_select(0, (uniforms * static_cast<double>(images_.size(0))).to(at::kLong).clamp_max(images_.size(0) - 1));
}

Tensor PartnerPool::same_class(const Tensor& labels, const Tensor& uniforms) const {
  const Tensor l = labels.contiguous(), u = uniforms.to(at::kDouble).contiguous();
  Tensor index = at::empty({l.numel()}, at::kLong);
  for (int64_t i = 0; i < l.numel(); ++i) {
    const int64_t label = l.const_data_ptr<int64_t>()[i];
    const double v = u.const_data_ptr<double>()[i];
    const bool known = label >= 0 && static_cast<size_t>(label) < by_class_.size() && !by_class_[static_cast<size_t>(label)].empty();
    const auto pick = [&](size_t n) { return static_cast<size_t>(v * static_cast<double>(n)); };
    if (known) {
      const auto& members = by_class_[static_cast<size_t>(label)];
      index.mutable_data_ptr<int64_t>()[i] = members[pick(members.size())];
    } else {
      index.mutable_data_ptr<int64_t>()[i] = static_cast<int64_t>(pick(static_cast<size_t>(images_.size(0))));
    }
  }
  return images_.index_select(0, index);
}

const std::vector<std::string>& corruption_names() {
  static const std::vector<std::string> names = {"blur", "noise", "jpeg", "resample", "cells", "ghost", "coloured_noise"};
  return names;
}

Corrupted corrupt(const Batch& batch, const PartnerPool& pool, double clean, uint64_t seed, int64_t step) {
  const auto kinds = static_cast<int64_t>(corruption_names().size());
  const int64_t B = batch.images.size(0), C = batch.images.size(1), H = batch.images.size(2), W = batch.images.size(3);
  const Draws d{batch.ids, uniform_by_id(batch.ids, kColumns, seed, Stream::augment, step), seed, step};
  // -1: untouched, else the corruption's number.
  const Tensor kind = at::floor((d.u.select(1, kKind) - clean) / (1 - clean) * static_cast<double>(kinds)).to(at::kLong).clamp(-1, kinds - 1);
  Corrupted out{batch.images.clone(), at::zeros({B, kinds}), at::ones({B})};
  const auto partners = [&](const Tensor& rows, bool same) {
    std::vector<Tensor> p;
    for (int64_t k = 0; k < kPartners; ++k) {
      const Tensor u = d.column(kPartner + k, rows);
      p.push_back(same ? pool.same_class(batch.labels.index_select(0, rows), u) : pool.any(u));
    }
    return p;
  };
  for (int64_t k = 0; k < kinds; ++k) {
    const Tensor rows = rows_of(kind, k);
    if (rows.numel() == 0) continue;
    const Tensor x = batch.images.index_select(0, rows), s = d.column(kStrength, rows);
    Tensor y, strength = s;
    switch (k) {
      case 0: y = gaussian_blur(x, 0.4 + 1.6 * s); break;
      case 1: y = x + per_row(0.02 + 0.48 * s.square()) * d.noise(rows, {C, H, W}); break;
      case 2: y = jpeg_artefacts(x, 50 - 45 * s); break;
      case 3:
        strength = at::where(s.lt(0.5), 0.5, 1.0).to(s.scalar_type());
        y = at::where(per_row(strength.lt(0.75)), down_up(x, true), down_up(x, false));
        break;
      case 4:
        y = mix_cells(x, partners(rows, false), 0.05 + 0.6 * s, d.noise(rows, {2, H / 4, W / 4}));
        out.content.index_fill_(0, rows, 0);
        break;
      case 5: {
        const auto p = partners(rows, true);
        y = x + per_row(0.1 + 0.7 * s) * (p[0] - p[1] + p[2] - p[3]) * std::sqrt(0.5);
        break;
      }
      default: y = x + per_row(0.04 + 0.3 * s) * coloured_noise(d.noise(rows, {C, H, W}), 0.4 + 0.8 * d.column(kSigma, rows));
    }
    out.images.index_copy_(0, rows, y.clamp(-1, 1));
    out.levels.select(1, k).index_copy_(0, rows, 0.2 + 0.8 * strength);
  }
  return out;
}

}  // namespace fewstep
