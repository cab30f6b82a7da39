#include "eval/extraction.h"

#include <ATen/Parallel.h>

#include <latch>
#include <memory>
#include <thread>

#include "src/base/error.h"
#include "src/base/log.h"
#include "src/base/progress.h"
#include "src/base/queue.h"
#include "src/base/signals.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"

namespace fewstep::eval {
namespace {

struct Prepared {
  Tensor row;  // undefined: unreadable
  bool constant = false, grey = false;
  std::string error;
};

Prepared prepare(const ImageSource& source, size_t place, const ImageEncoder& encoder, bool skip_unreadable) {
  Prepared out;
  try {
    Tensor image = source.read(place);
    out.constant = image.min().item<int64_t>() == image.max().item<int64_t>();
    out.grey = image.size(0) == 1;
    if (out.grey) image = image.expand({3, -1, -1});
    out.row = encoder.prepare(image);
  } catch (const DataError& e) {
    if (!skip_unreadable) throw;
    out.error = e.what();
  }
  return out;
}

// Thread t prepares images t, t + T, t + 2T, ... into a queue of its own: taking from the queues in turn keeps the
// order.
class Workers {
 public:
  Workers(const ImageSource& source, const ImageEncoder& encoder, const ExtractionOptions& o) {
    const size_t T = std::max<size_t>(1, std::min(static_cast<size_t>(o.threads), source.size()));
    for (size_t t = 0; t < T; ++t)
      queues_.push_back(std::make_unique<BoundedQueue<Prepared>>(static_cast<size_t>(o.batch)));
    const int network_threads = at::get_num_threads();
    std::latch ready(static_cast<std::ptrdiff_t>(T));
    for (size_t t = 0; t < T; ++t)
      threads_.emplace_back([&source, &encoder, &ready, &queue = *queues_[t], t, T, skip = o.skip_unreadable] {
        const NoGrad no_grad;
        // No OpenMP team of its own beside the network's; and resizing rounds differently in one thread and in two.
        at::get_num_threads();  // ATen gives a new thread the default at its first use: now, not after the next line
        at::set_num_threads(1);
        ready.count_down();
        try {
          for (size_t i = t; i < source.size(); i += T)
            if (!queue.push(prepare(source, i, encoder, skip))) return;
        } catch (...) {
          queue.fail(std::current_exception());
        }
      });
    ready.wait();
    at::set_num_threads(network_threads);  // ATen keeps the last number set as the default of threads to come
  }
  ~Workers() {
    for (const auto& queue : queues_) queue->close();
    for (std::thread& thread : threads_) thread.join();
  }
  Workers(const Workers&) = delete;
  Workers& operator=(const Workers&) = delete;
  Prepared take(size_t i) {
    std::optional<Prepared> item = queues_[i % queues_.size()]->pop();
    FEW_CHECK(item.has_value(), "image {} was not prepared", i);
    return std::move(*item);
  }

 private:
  std::vector<std::unique_ptr<BoundedQueue<Prepared>>> queues_;
  std::vector<std::thread> threads_;
};

}  // namespace

Extraction extract(const ImageSource& source, const ImageEncoder& encoder, const ExtractionOptions& options,
                   const std::function<void(const Encoded&)>& sink) {
  const NoGrad no_grad;
  Extraction out;
  Workers workers(source, encoder, options);
  Progress progress(options.label, static_cast<int64_t>(source.size()));
  std::vector<Tensor> batch;
  const auto flush = [&] {
    if (!batch.empty()) sink(encoder.encode_prepared(at::stack(batch)));
    batch.clear();
  };
  for (size_t i = 0; i < source.size(); ++i) {
    if (signals::stop_requested()) throw Interrupted("evaluation stopped; nothing was written");
    Prepared item = workers.take(i);
    progress.update(static_cast<int64_t>(i) + 1);
    if (!item.row.defined()) {
      out.unreadable.push_back(item.error), out.unreadable_places.push_back(i);
      continue;
    }
    ++out.images, out.constant += item.constant, out.grey += item.grey;
    // Encoders that take images of any size get batches of one size each.
    if (!batch.empty() && (batch[0].sizes() != item.row.sizes() || static_cast<int64_t>(batch.size()) == options.batch))
      flush();
    batch.push_back(std::move(item.row));
  }
  flush();
  progress.finish();
  if (out.images == 0 && source.size() > 0)
    fail<DataError>("{}: none of {} files could be read; the first: {}", options.label, source.size(),
                    out.unreadable.front());
  if (!out.unreadable.empty())
    log::warn("{}: {} of {} files could not be read and were left out; the first: {}", options.label,
              out.unreadable.size(), source.size(), out.unreadable.front());
  if (out.constant > 0)
    log::warn("{}: {} of {} images are one flat colour; they are counted, not dropped", options.label, out.constant,
              out.images);
  if (out.grey > 0 && out.grey < out.images)
    log::warn("{}: {} of {} images are grey, the others have colour", options.label, out.grey, out.images);
  return out;
}

}  // namespace fewstep::eval
