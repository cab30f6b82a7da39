#include "tests/support/small_coco.h"

#include <nlohmann/json.hpp>
#include <string>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/json.h"
#include "src/io/image.h"
#include "src/tensor/ops.h"

namespace fewstep::support {
namespace {

std::string caption(int64_t i, int64_t k) {
  std::string text = fmt::format("A \"dark\" bag{} number {}{}", std::string(static_cast<size_t>((i + k) % 4), 's'), i,
                                 k == 2 ? "\n" : " . ");
  if (i == 3 && k == 0)
    for (int64_t word = 0; word < 90; ++word) text += " bag";
  return text;
}

}  // namespace

void write_small_coco(const std::filesystem::path& folder, int64_t images) {
  make_directories(folder / "val2017");
  Json file = {{"info", {{"year", 2017}}},
               {"licenses", Json::array()},
               {"images", Json::array()},
               {"annotations", Json::array()}};
  for (int64_t i = 0; i < images; ++i) {
    const int64_t id = 139 + 7 * ((i * 5) % images);  // not in rising order, as in the real file
    const int64_t H = 40 + 7 * (i % 5), W = 33 + 11 * (i % 3);
    const std::string name = fmt::format("{:012}.jpg", id);
    const Tensor x = at::arange(W).view({1, 1, W}) * (3 + i % 4) + at::arange(H).view({1, H, 1}) * 2 + 20 * i +
                     at::arange(3).view({3, 1, 1}) * 40;
    io::write_image(folder / "val2017" / name, x.remainder(256).to(at::kByte).contiguous());
    file["images"].push_back({{"license", 3}, {"file_name", name}, {"height", H}, {"width", W}, {"id", id}});
    for (int64_t k = 0; k < 5; ++k)
      file["annotations"].push_back({{"image_id", id}, {"id", 1000 + 10 * i + 5 - k}, {"caption", caption(i, k)}});
  }
  file["images"].push_back({{"file_name", "000000999999.jpg"}, {"height", 4}, {"width", 4}, {"id", 999999}});
  write_json(folder / "captions_val2017.json", file);
}

}  // namespace fewstep::support
