// fewstep eval pairs|diversity|patch-fid: pairs of images, images of one prompt, patches at full resolution.
#include <CLI/CLI.hpp>

#include <memory>
#include <nlohmann/json.hpp>

#include "eval/diversity.h"
#include "eval/image_pairs.h"
#include "eval/patch_distance.h"
#include "eval/results.h"
#include "src/base/error.h"
#include "src/base/log.h"
#include "src/dist/world.h"
#include "tools/commands.h"

namespace fewstep {
namespace {

struct PairArguments {
  std::string a, b, encoder, linear, name = "encoder";
  eval::EncoderOptions encoder_options;
  eval::PatchOptions patches;
  bool by_caption = false, json = false;
};

at::Device one_device() {
  const auto world = dist::World::from_environment({});
  if (world->size() > 1)
    fail<ConfigError>("eval runs in one process, not under torchrun or srun with {}", world->size());
  return world->device();
}

std::string shown(const Json& number) {  // JSON has no infinity: it is null
  return number.is_number() ? eval::format_number(number.get<double>()) : "inf";
}

void print_metrics(const Json& result) {
  for (const auto& [name, v] : result["metrics"].items()) {
    if (!v["value"].is_number() || v["n"] == 0) {
      fmt::print("{}\t-\t({})\n", name, v.value("note", ""));
      continue;
    }
    fmt::print("{}\t{}{}\n", name,
               eval::format_value(
                   {.value = v["value"].get<double>(), .ci95 = v["ci95"].get<double>(), .n = v["n"].get<int64_t>()}),
               v.contains("note") ? fmt::format("\t({})", v["note"].get<std::string>()) : "");
  }
}

void pairs(const PairArguments& a) {
  if (a.encoder.empty() && !a.linear.empty())
    fail<ConfigError>("--linear is of a network: say which with --encoder VGG16_FOLDER");
  const auto found = eval::find_pairs(a.a, a.b, a.by_caption ? eval::PairBy::caption : eval::PairBy::file_name);
  std::unique_ptr<eval::PerceptualDistance> perceptual;
  if (!a.encoder.empty())
    perceptual = std::make_unique<eval::PerceptualDistance>(a.encoder, a.name, one_device(), a.linear);
  // NaN and infinity become null here, so that what is printed is what --json shows.
  const Json result =
      Json::parse(eval::summarise_pairs(found, eval::score_pairs(found, perceptual.get()), perceptual.get()).dump());
  if (a.json) {
    fmt::print("{}\n", result.dump(2));
    return;
  }
  print_metrics(result);
  fmt::print("worst of {} pairs by {}\n", found.size(), result["worst_by"].get<std::string>());
  for (const Json& pair : result["worst"]) {
    fmt::print("  {}", pair["name"].get<std::string>());
    for (const auto& [name, v] : pair.items())
      if (name != "name") fmt::print("\t{} {}", name, shown(v));
    fmt::print("\n");
  }
}

std::unique_ptr<eval::ImageEncoder> features_of(const PairArguments& a) {
  return eval::load_image_encoder(a.encoder, a.name, one_device(), a.encoder_options);
}

void diversity(const PairArguments& a) {
  const Json result = eval::folder_diversity(a.a, *features_of(a));
  if (a.json) {
    fmt::print("{}\n", result.dump(2));
    return;
  }
  print_metrics(result);
  fmt::print("{} prompts of {} images; {} prompts of one image left out\n", result["prompts"].get<int64_t>(),
             result["images"].get<int64_t>(), result["prompts_of_one_image"].get<int64_t>());
}

void patch_fid(const PairArguments& a) {
  if (a.patches.side > 0 && !a.patches.grid) fail<ConfigError>("--side is the side of --grid's patches; give both");
  const Json result = eval::patch_distance(a.a, a.b, *features_of(a), a.patches);
  if (a.json) {
    fmt::print("{}\n", result.dump(2));
    return;
  }
  print_metrics(result);
  for (const char* key : {"a", "b"}) {
    const Json& side = result[key];
    fmt::print("{}\t{} patches of {} images{}\n", side["path"].get<std::string>(), side["n"].get<int64_t>(),
               side["images"].get<int64_t>(),
               side["small"] == 0 ? "" : fmt::format("; {} too small, left out", side["small"].get<int64_t>()));
  }
}

void add_features(CLI::App& command, PairArguments& a) {
  command
      .add_option("--encoder", a.encoder, "folder of the network, or run or model folder of an encoder trained here")
      ->required();
  command.add_option("--name", a.name, "what the numbers call the encoder: NAME@hash")->capture_default_str();
  command.add_option("--mode", a.encoder_options.pipeline, "image pipeline, as for `fewstep eval fid`");
  command.add_option("--tap", a.encoder_options.tap, "features of the InceptionV3, as for `fewstep eval fid`");
}

}  // namespace

std::vector<CLI::App*> add_eval_pair_commands(CLI::App& eval_command) {
  auto a = std::make_shared<PairArguments>();
  auto* pairing = eval_command.add_subcommand("pairs", "PSNR, SSIM and LPIPS of the pairs of two folders");
  pairing->add_option("A", a->a, "folder of images: originals, or a teacher's samples")->required();
  pairing->add_option("B", a->b, "folder with the same relative file names (the extension does not count)")->required();
  pairing->add_option("--encoder", a->encoder, "folder of VGG16: also LPIPS, or what these weights earn");
  pairing->add_option("--linear", a->linear, "LPIPS' linear layers; default: the folder lpips in VGG16's, where it is");
  pairing->add_option("--name", a->name, "what the numbers call the network: NAME@hash")->capture_default_str();
  pairing->add_flag("--by-caption", a->by_caption,
                    "pair by metadata.jsonl: the k-th image of a caption in A with the k-th of it in B");
  pairing->add_flag("--json", a->json, "print JSON");
  pairing->footer(
      "Examples:\n"
      "  fewstep eval pairs originals/ reconstructions/\n"
      "  fewstep eval pairs teacher/ student/ --by-caption --encoder weights/vgg16\n"
      "\"LPIPS\" is printed only with torchvision's VGG16 and the published linear layers in weights/vgg16/lpips, "
      "both\n"
      "made by tools/convert_weights.py; other weights give perceptual[NAME@hash].");
  pairing->callback([a] { pairs(*a); });
  auto* varying = eval_command.add_subcommand("diversity", "mean distance between the images of one prompt");
  varying->add_option("IMAGES", a->a, "folder with metadata.jsonl: lines {\"file_name\", \"text\"}")->required();
  add_features(*varying, *a);
  varying->add_flag("--json", a->json, "print JSON");
  varying->footer("Example:\n  fewstep eval diversity samples/ --encoder weights/dinov2 --name dinov2");
  varying->callback([a] { diversity(*a); });
  auto* patches = eval_command.add_subcommand("patch-fid", "Frechet distance of central crops at full resolution");
  patches->add_option("A", a->a, "real images: a folder")->required();
  patches->add_option("B", a->b, "the images to judge: a folder")->required();
  add_features(*patches, *a);
  patches->add_flag("--grid", a->patches.grid,
                    "all patches side by side, from the top left, instead of the central one");
  patches->add_option("--side", a->patches.side, "side of --grid's patches; 0: the network's")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  patches->add_flag("--skip-small", a->patches.skip_small, "leave out images smaller than a patch, and say how many");
  patches->add_flag("--skip-unreadable", a->patches.skip_unreadable,
                    "leave out files that cannot be read, and say how many");
  patches->add_flag("--json", a->json, "print JSON");
  patches->footer(
      "Examples:\n"
      "  fewstep eval patch-fid coco/val2017 samples/ --encoder weights/inception --skip-small\n"
      "  fewstep eval patch-fid real/ samples/ --encoder runs/judge16 --grid --side 16");
  patches->callback([a] { patch_fid(*a); });
  return {pairing, varying, patches};
}

}  // namespace fewstep
