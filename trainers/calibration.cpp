#include "trainers/calibration.h"

#include "datasets/loader.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "trainers/random_crops.h"

namespace fewstep {

void calibrate_features(models::ConvEncoder& encoder, const TrainContext& context, int64_t count) {
  const NoGrad no_grad;
  const Dataset& data = context.validation && context.validation->size() > 0 ? *context.validation : context.train;
  const int64_t total = std::min(count, data.size());
  std::vector<Tensor> raw;
  for (int64_t start = 0; start < total; start += 256) {
    const Batch batch = load_range(data, start, std::min(total, start + 256), context.seed);
    const int64_t side = encoder.config().image_size;  // less than the images': an encoder of cut-outs
    const Tensor images = side < batch.images.size(2) ? random_crops(batch.images, batch.ids, side, context.seed, 0) : batch.images;
    raw.push_back(encoder(images.to(context.world.device())).raw);
  }
  encoder.calibrate(at::cat(raw));
}

}  // namespace fewstep
