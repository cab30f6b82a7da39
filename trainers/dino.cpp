#include "trainers/dino.h"

#include <nlohmann/json.hpp>
#include <optional>

#include "datasets/loader.h"
#include "src/base/error.h"
#include "src/base/log.h"
#include "src/io/safetensors.h"
#include "src/models/model.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/shape.h"
#include "trainers/micro_batches.h"
#include "trainers/trainable_set.h"

namespace fewstep {
namespace fs = std::filesystem;

DinoHead::DinoHead(int64_t width, const DinoHeadConfig& c)
    : first_(width, c.hidden), second_(c.hidden, c.hidden), bottleneck_(c.hidden, c.bottleneck),
      last_layer_(c.bottleneck, c.prototypes, /*bias=*/false) {
  child("mlp.0", first_), child("mlp.2", second_), child("mlp.4", bottleneck_), child("last_layer", last_layer_);
}

Tensor DinoHead::operator()(const Tensor& features) const {
  const auto unit = [](const Tensor& x) { return x / x.norm(2, {1}, /*keepdim=*/true).clamp_min(1e-12); };
  const Tensor z = bottleneck_(at::gelu(second_(at::gelu(first_(features)))));
  return at::linear(unit(z), unit(last_layer_.weight));
}

void DinoHead::reset(at::Generator& generator) {
  const NoGrad no_grad;
  for (nn::Linear* layer : {&first_, &second_, &bottleneck_, &last_layer_}) {
    nn::init_normal(layer->weight, 0.02, generator);
    if (layer->bias.defined()) layer->bias.zero_();
  }
}

DinoNetwork::DinoNetwork(const models::Dinov2Config& model, const DinoHeadConfig& head_config)
    : backbone(model), head(model.hidden_size, head_config) {
  child("backbone", backbone), child("head", head);
}

namespace {

constexpr const char* kLastLayer = "head.last_layer.weight";
constexpr const char* kMaskToken = "backbone.embeddings.mask_token";  // of masked modelling, which DINO has not
constexpr const char* kPositions = "backbone.embeddings.position_embeddings";

models::Dinov2Config complete_dino(const DinoTrainerConfig& config, const TrainContext& context) {
  const Sample first = context.train.get(0, 0, 0);
  const int64_t height = first.image.size(1), width = first.image.size(2), patch = config.model.patch_size;
  if (height != width) fail<ConfigError>("trainer dino: images of {} x {} pixels; it reads square ones", height, width);
  const int64_t global = config.crops.global_size > 0 ? config.crops.global_size : height;
  for (const auto& [what, side] : {std::pair("the images", height), std::pair("trainer.crops.global_size", global),
                                   std::pair("trainer.crops.local_size", config.crops.local_size)})
    if (side % patch != 0)
      fail<ConfigError>("{}: {} pixels are not a multiple of trainer.model.patch_size {}", what, side, patch);
  const DinoBackboneConfig& m = config.model;
  return {.hidden_size = m.hidden_size, .num_hidden_layers = m.num_hidden_layers, .num_attention_heads = m.num_attention_heads,
          .mlp_ratio = m.mlp_ratio, .image_size = height, .patch_size = patch};
}

// [1, 1 + side^2, D]: zeros for the class token, then sine and cosine of column and row at D / 4 frequencies (Vaswani et al. 2017;
// in two dimensions as MoCo v3 and MAE).
Tensor sinusoid_positions(int64_t side, int64_t width) {
  const Tensor place = at::arange(side, at::kDouble);
  const Tensor omega = at::pow(10000.0, -at::arange(width / 4, at::kDouble) / static_cast<double>(width / 4));
  const Tensor angle = place.unsqueeze(1) * omega;                     // [side, D / 4]
  const Tensor wave = at::cat({angle.sin(), angle.cos()}, 1);          // [side, D / 2]
  const Tensor columns = wave.unsqueeze(0).expand({side, side, -1}), rows = wave.unsqueeze(1).expand({side, side, -1});
  const Tensor grid = at::cat({columns, rows}, 2).reshape({side * side, width});
  return at::cat({at::zeros({1, width}, at::kDouble), grid}).unsqueeze(0);
}

class DinoTrainer : public Trainer {
 public:
  DinoTrainer(const DinoTrainerConfig& config, const TrainContext& context)
      : config_(config), context_(context), device_(context.world.device()), dtype_(dtype_of(config.precision)),
        student_(complete_dino(config, context), config.head), teacher_(student_.backbone.config(), config.head),
        set_("student", start(), config.optimizer, context.world, context.horizon),
        centre_(config.head.prototypes, config.centre_momentum, at::TensorOptions(device_).dtype(dtype_), context.world),
        watch_(config.collapse) {
    start_teacher();
    log::info("dino: {} parameters ({} of the backbone), {:.0f} MFLOP an image", student_.parameter_count(),
              student_.backbone.parameter_count(), flops_per_sample() * 1e-6);
  }

  Metrics step(const Batch& batch, const StepContext& at) override {
    Metrics metrics;
    bank_.reset();
    const double share = static_cast<double>(context_.world.size()) / static_cast<double>(context_.batch_size);
    for_micro_batches(batch, context_.accumulate, [&](const Batch& micro, bool last) {
      const Tensor sum = loss(micro, {micro.ids, at.seed, at.step, Stream::augment}, at.step).sum();
      set_.backward(sum * share, last);
      metrics.add("loss", sum, static_cast<double>(micro.size()));
    });
    if (at.step < config_.freeze_last_layer) freeze_last_layer();
    const double momentum = teacher_momentum(config_.momentum, at.step - context_.horizon.first, context_.horizon.steps);
    metrics.add("grad_norm", set_.step(at.step));
    metrics.add("lr", set_.learning_rate(at.step));
    move_teacher(momentum);
    add_spread(metrics, centre_.update(config_.centring), at.step);
    metrics.add("momentum", momentum);
    return metrics;
  }

  // The loss on fixed crops, with the teacher's final temperature; and what the teacher's class token knows of labels it has never
  // seen: accuracy of a k-NN vote, beside that of pixels.
  Metrics validate(const Batch& batch) override {
    const NoGrad no_grad;
    Metrics metrics;
    const auto n = static_cast<double>(batch.size());
    metrics.add("loss", loss(batch, {batch.ids, context_.seed, 0, Stream::eval}, -1).sum(), n);
    if (config_.knn_bank > 0 && !context_.train.class_names().empty()) add_knn(batch, metrics);
    return metrics;
  }

  Tensor sample_grid(uint64_t) override { return {}; }

  void save_model(const fs::path& folder) const override {
    TensorMap weights;
    for (const auto& [name, tensor] : teacher_.backbone.state()) weights.emplace(name, tensor.detach().to(at::kFloat));
    models::save_model(folder / "encoder", weights, teacher_.backbone.config().to_json());
    const int64_t side = teacher_.backbone.config().image_size;
    write_json(folder / "encoder" / "preprocessor_config.json",
               {{"image_processor_type", "BitImageProcessor"}, {"do_resize", true}, {"size", {{"shortest_edge", side}}}, {"resample", 3},
                {"do_center_crop", false}, {"do_convert_rgb", true}, {"do_rescale", true}, {"rescale_factor", 1.0 / 255},
                {"do_normalize", true}, {"image_mean", {0.485, 0.456, 0.406}}, {"image_std", {0.229, 0.224, 0.225}}});
    write_json(folder / "model_index.json", {{"_class_name", "Dinov2Pipeline"}, {"encoder", {"transformers", "Dinov2Model"}}});
  }

  std::map<std::string, TensorMap> state() const override {
    std::map<std::string, TensorMap> files;
    set_.add_state(files);
    TensorMap& own = files["teacher"];
    for (const auto& [name, tensor] : teacher_.state()) own.emplace(name, tensor.detach());
    files["dino"] = centre_.state();
    files["dino"].emplace("collapse_count", at::full({1}, watch_.count(), at::kLong));
    return files;
  }

  void load_state(const std::map<std::string, TensorMap>& files) override {
    set_.load_state(files);
    const NoGrad no_grad;
    teacher_.load(file_of(files, "teacher"), "the checkpoint's teacher.safetensors");
    const TensorMap& own = file_of(files, "dino");
    if (!own.contains("collapse_count")) fail<DataError>("the checkpoint's dino.safetensors lacks 'collapse_count'");
    centre_.load_state(own);
    watch_.set_count(own.at("collapse_count").item<int64_t>());
    bank_.reset();
  }

  // Matrix products: 3 forward passes' worth on every view for the student, one on the global views for the teacher.
  double flops_per_sample() const override {
    const models::Dinov2Config& c = student_.backbone.config();
    const auto d = static_cast<double>(c.hidden_size), patch = static_cast<double>(c.patch_size);
    const auto view = [&](int64_t side) {
      const double cells = static_cast<double>(side) / patch, tokens = cells * cells + 1;
      const double block = tokens * (8.0 + 4.0 * static_cast<double>(c.mlp_ratio)) * d * d + 4.0 * tokens * tokens * d;
      const auto hidden = static_cast<double>(config_.head.hidden), narrow = static_cast<double>(config_.head.bottleneck);
      const double head = 2.0 * (d * hidden + hidden * hidden + hidden * narrow + narrow * static_cast<double>(config_.head.prototypes));
      return static_cast<double>(c.num_hidden_layers) * block + 6.0 * tokens * patch * patch * d + head;
    };
    const int64_t side = config_.crops.global_size > 0 ? config_.crops.global_size : c.image_size;
    return 8.0 * view(side) + 3.0 * static_cast<double>(config_.crops.locals) * view(config_.crops.local_size);
  }

 private:
  // What the k-NN knows: labelled training images, as the teacher sees them and as pixels.
  struct Bank {
    Tensor features, pixels, labels;
  };

  NamedTensors start() {
    student_.to(dtype_);
    NamedTensors parameters = start_network(student_, context_);
    const NoGrad no_grad;
    const models::Dinov2Config& c = student_.backbone.config();
    for (const auto& [name, tensor] : parameters)
      if (name == kPositions && config_.model.positions == PositionStart::sinusoids)
        Tensor(tensor).copy_(sinusoid_positions(c.image_size / c.patch_size, c.hidden_size));
    std::erase_if(parameters, [](const auto& entry) { return entry.name == kMaskToken; });  // no gradient reaches it
    return parameters;
  }

  // A copy of the student, once rank 0's weights are everywhere.
  void start_teacher() {
    const NoGrad no_grad;
    teacher_.to(device_);
    teacher_.to(dtype_);
    teacher_.load(io::to_map(student_.state()), "the student");
    teacher_.requires_grad(false);
    for (const auto& [name, tensor] : student_.parameters())
      if (name == kLastLayer) last_layer_ = tensor;
    FEW_CHECK(last_layer_.defined(), "DINO: no parameter '{}'", kLastLayer);
  }

  // [B] losses of a micro-batch; `step` < 0: validation, which leaves the centre's sums alone.
  Tensor loss(const Batch& batch, const ViewKeys& keys, int64_t step) {
    const int64_t B = batch.size(), K = config_.head.prototypes;
    const DinoViews views = make_views(batch.images, keys, config_.crops);
    const Autocast autocast(device_.type(), at::kBFloat16, config_.precision == Precision::bfloat16);
    Tensor targets;  // [2, B, K]
    {
      const NoGrad no_grad;
      const Tensor logits = teacher_(views.globals.to(dtype_)).to(dtype_).view({2, B, K});
      const double temperature = step < 0 ? config_.teacher_temperature
                                          : fewstep::teacher_temperature(config_.teacher_temperature_start, config_.teacher_temperature,
                                                                         config_.teacher_warmup, step);
      targets = teacher_probabilities(logits, centre_.value(), temperature);
      if (step >= 0) centre_.add(logits, targets);
    }
    std::vector<Tensor> tokens = {student_.backbone(views.globals.to(dtype_)).pooled()};
    if (views.locals.defined()) tokens.push_back(student_.backbone(views.locals.to(dtype_)).pooled());
    const Tensor logits = student_.head(at::cat(tokens)).to(dtype_);
    return dino_loss(logits.view({2 + config_.crops.locals, B, K}), targets, config_.student_temperature);
  }

  // Adam's moments stay zero with the gradient, and weight decay only scales rows that the head normalises: the function of the
  // last layer does not change.
  void freeze_last_layer() {
    const NoGrad no_grad;
    last_layer_.mutable_grad().zero_();
  }

  void move_teacher(double momentum) {
    const NoGrad no_grad;
    const NamedTensors from = student_.parameters(), to = teacher_.parameters();
    for (size_t i = 0; i < to.size(); ++i) Tensor(to[i].tensor).mul_(momentum).add_(from[i].tensor, 1 - momentum);
  }

  void add_spread(Metrics& metrics, const TeacherSpread& spread, int64_t step) {
    metrics.add("teacher_entropy", spread.entropy);
    metrics.add("teacher_mean_entropy", spread.mean_entropy);
    metrics.add("teacher_divergence", spread.divergence);
    metrics.add("collapsed", watch_.see(spread, config_.head.prototypes, step) ? 1.0 : 0.0);
  }

  Tensor features(const Tensor& images) const {
    const NoGrad no_grad;
    std::vector<Tensor> rows;
    for (const Tensor& part : images.split(256)) rows.push_back(teacher_.backbone(dino_input(part).to(dtype_)).pooled());
    return at::cat(rows);
  }

  void add_knn(const Batch& batch, Metrics& metrics) {
    if (!bank_) {
      const Batch known = load_range(context_.train, 0, std::min(config_.knn_bank, context_.train.size()), context_.seed).to(device_);
      bank_ = Bank{features(known.images), known.images.flatten(1), known.labels};
    }
    const auto classes = static_cast<int64_t>(context_.train.class_names().size());
    const auto add = [&](const char* name, const Tensor& queries, const Tensor& bank) {
      const Tensor found = nearest_neighbour_classes(queries, bank, bank_->labels, config_.knn_k, classes);
      metrics.add(name, found.eq(batch.labels).sum(), static_cast<double>(batch.size()));
    };
    add("knn_accuracy", features(batch.images), bank_->features);
    add("knn_pixels", batch.images.flatten(1) * 0.5 + 0.5, bank_->pixels * 0.5 + 0.5);
  }

  static const TensorMap& file_of(const std::map<std::string, TensorMap>& files, const std::string& stem) {
    const auto file = files.find(stem);
    if (file == files.end()) fail<DataError>("the checkpoint has no {}.safetensors, which the trainer 'dino' needs to resume", stem);
    return file->second;
  }

  const DinoTrainerConfig config_;
  const TrainContext context_;
  const at::Device device_;
  const at::ScalarType dtype_;
  DinoNetwork student_, teacher_;
  TrainableSet set_;
  TeacherCentre centre_;
  CollapseWatch watch_;
  Tensor last_layer_;
  std::optional<Bank> bank_;  // of the teacher as it is now
};

}  // namespace

void describe(config::Visitor& v, DinoBackboneConfig& c) {
  static constexpr config::Choice kStarts[] = {{"sinusoids", 0}, {"random", 1}};
  v.field("hidden_size", c.hidden_size, "width", config::kAtLeastOne);
  v.field("num_hidden_layers", c.num_hidden_layers, "blocks", config::kAtLeastOne);
  v.field("num_attention_heads", c.num_attention_heads, "heads; hidden_size is a multiple of it", config::kAtLeastOne);
  v.field("mlp_ratio", c.mlp_ratio, "width of a block's MLP, in hidden_size", config::kAtLeastOne);
  v.field("patch_size", c.patch_size, "pixels a token, each way", config::kAtLeastOne);
  v.field("positions", c.positions, "what the position embeddings, which are trained, start from: sines and cosines, or N(0, 0.02)", kStarts);
  v.check(c.positions == PositionStart::random || c.hidden_size % 4 == 0, "hidden_size", "is not a multiple of 4, which sinusoids need");
  v.check(c.num_attention_heads > 0 && c.hidden_size % c.num_attention_heads == 0, "num_attention_heads", "does not divide hidden_size");
}

void describe(config::Visitor& v, DinoHeadConfig& c) {
  v.field("hidden", c.hidden, "width of the MLP", config::kAtLeastOne);
  v.field("bottleneck", c.bottleneck, "width of its output, which is normalised", config::kAtLeastOne);
  v.field("prototypes", c.prototypes, "outputs of the last layer", {2});
}

void DinoTrainerConfig::describe(config::Visitor& v) {
  v.field("model", model, "the DINOv2 backbone");
  v.field("head", head, "projection onto prototypes; not part of the saved model");
  v.field("crops", crops, "views of an image");
  v.field("optimizer", optimizer, "AdamW and its schedule, of the student");
  describe_precision(v, precision);
  v.field("momentum", momentum, "of the teacher as the student's moving average; rises to 1 by a cosine", config::kUnit);
  v.field("student_temperature", student_temperature, "of the student's softmax", config::kPositive);
  v.field("teacher_temperature_start", teacher_temperature_start, "of the teacher's softmax at the first step", config::kPositive);
  v.field("teacher_temperature", teacher_temperature, "of the teacher's softmax after teacher_warmup", config::kPositive);
  v.field("teacher_warmup", teacher_warmup, "steps of its linear rise", config::kNonNegative);
  v.field("centring", centring, "move the centre; without it training collapses to one prototype");
  v.field("centre_momentum", centre_momentum, "of the centre, the moving average of the teacher's logits over all ranks", {0, 0.9999});
  v.field("freeze_last_layer", freeze_last_layer, "steps during which the prototypes do not move", config::kNonNegative);
  v.field("collapse", collapse, "watch on the teacher's outputs");
  v.field("knn_bank", knn_bank, "labelled training images of validation's k-NN; labels never train; 0: no k-NN", config::kNonNegative);
  v.field("knn_k", knn_k, "neighbours that vote", config::kAtLeastOne);
  v.check(optimizer.ema_decay == 0, "optimizer", "ema_decay must be 0: the teacher is the moving average (momentum)");
}

bool DinoTrainerConfig::fixed(std::string_view key) const {
  const std::string_view top = key.substr(0, key.find('.'));
  return top == "model" || top == "head" || top == "precision";
}

std::unique_ptr<Trainer> DinoTrainerConfig::build(const TrainContext& context) const {
  return std::make_unique<DinoTrainer>(*this, context);
}

std::unique_ptr<TrainerConfig> make_dino() { return std::make_unique<DinoTrainerConfig>(); }

}  // namespace fewstep
