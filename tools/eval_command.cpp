// fewstep eval CONFIG [key=value ...]  |  fewstep eval fid|kid|prdc A B --encoder DIR
#include <CLI/CLI.hpp>

#include <memory>
#include <nlohmann/json.hpp>

#include "eval/compare.h"
#include "eval/protocol_runner.h"
#include "eval/runner.h"
#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/log.h"
#include "src/config/config.h"
#include "src/dist/world.h"
#include "tools/commands.h"
#include "tools/processes.h"

namespace fewstep {
namespace {

struct EvalArguments {
  std::string config, a, b, encoder, name = "encoder", definition = "hessel";
  eval::EncoderOptions encoder_options;
  std::vector<std::string> overrides;
  eval::CompareOptions options;
  int64_t splits = 10;
  int nproc = 0;
  bool json = false;
};

at::Device single_device(dist::DeviceKind kind) {
  const auto world = dist::World::from_environment({.device = kind});
  if (world->size() > 1)
    fail<ConfigError>("eval runs in one process, not under torchrun or srun with {}", world->size());
  return world->device();
}

// Rank 0 computes distances of 30,000 images alone.
constexpr double kMetricsSeconds = 7200;

void run_protocol(const EvalArguments& a) {
  auto config = config::load<eval::ProtocolConfig>(a.config, a.overrides);
  if (a.nproc > 0) {
    std::vector<std::string> arguments = {"eval", a.config};
    arguments.insert(arguments.end(), a.overrides.begin(), a.overrides.end());
    return start_processes(a.nproc, arguments);
  }
  run_in_world(config.device, [&](dist::World& world) {
    const eval::Results results = eval::run_protocol(config, world);
    if (!world.is_main()) return;
    const std::filesystem::path folder = eval::output_folder(config);
    fmt::print("{}", read_text(folder / "results.md"));
    log::info("results in {}{}", (folder / "results.json").string(), config.report ? " and report.html" : "");
  }, kMetricsSeconds);
}

void evaluate(const EvalArguments& a) {
  if (a.config.empty())
    fail<ConfigError>("fewstep eval: give a config file, or one of fid, kid, prdc with two image sets");
  if (eval::is_protocol_file(a.config)) return run_protocol(a);
  if (a.nproc > 0)
    fail<ConfigError>("--nproc: {} is no protocol's file (root key `protocol:`); such an evaluation runs in one process",
                      a.config);
  auto config = config::load<eval::EvalConfig>(a.config, a.overrides);
  const eval::Results results = eval::run_evaluation(config, single_device(config.device));
  fmt::print("{}\n{}", results.protocol, eval::results_table(results));
  if (results.qualification && !results.qualification->passed)
    log::warn("the encoder is not qualified for Frechet distance: {}", results.qualification->reasons.front());
  log::info("results in {}{}", (eval::output_folder(config) / "results.json").string(),
            config.report ? " and report.html" : "");
}

void print_comparison(const Json& result, bool json) {
  if (json) {
    fmt::print("{}\n", result.dump(2));
    return;
  }
  for (const auto& [name, value] : result["metrics"].items())
    fmt::print("{}\t{}\n", name,
               eval::format_value({.value = value["value"].get<double>(),
                                   .ci95 = value["ci95"].get<double>(),
                                   .n = value["n"].get<int64_t>()}));
}

void compare_with_captions(const EvalArguments& a) {
  if (a.encoder.empty())
    fail<ConfigError>(
        "--encoder DIR is needed: a CLIP folder (config.json, safetensors, vocab.json, merges.txt), or the run of a "
        "contrastive training");
  const eval::ClipScoreKind& kind = eval::find_clip_score(a.definition);
  const auto clip = eval::load_text_image_encoder(a.encoder, a.name, single_device(dist::DeviceKind::automatic),
                                                  {.pipeline = a.encoder_options.pipeline, .cleaning = kind.cleaning});
  print_comparison(eval::compare_captions(a.a, a.b, *clip, kind, a.options.skip_unreadable), a.json);
}

std::unique_ptr<eval::ImageEncoder> image_encoder(const EvalArguments& a) {
  if (a.encoder.empty())
    fail<ConfigError>(
        "--encoder DIR is needed: a network's folder (config.json + safetensors: the InceptionV3 of FID, CLIP, DINOv2, "
        "VGG16; "
        "tools/convert_weights.py makes one of the usual downloads), or the run of a classifier_encoder or contrastive "
        "training");
  return eval::load_image_encoder(a.encoder, a.name, single_device(dist::DeviceKind::automatic), a.encoder_options);
}

void write_statistics(const EvalArguments& a) {
  const Json written = eval::write_statistics(a.a, a.b, *image_encoder(a), a.options);
  fmt::print("{}\n", a.json ? written.dump(2)
                            : fmt::format("{}: {} images, {} features", a.b, written["n"].get<int64_t>(),
                                          written["dim"].get<int64_t>()));
}

void compare_sets(const EvalArguments& a, eval::CompareMetric metric) {
  const auto encoder = image_encoder(a);
  const eval::CompareSide side_a = eval::load_side(a.a, *encoder, a.options),
                          side_b = eval::load_side(a.b, *encoder, a.options);
  const Json result = eval::compare(metric, side_a, side_b, *encoder, a.options);
  print_comparison(result, a.json);
}

}  // namespace

namespace {
void add_encoder(CLI::App& command, EvalArguments& a) {
  command.add_option("--encoder", a.encoder,
                     "folder of the network, or run or model folder of an encoder trained here");
  command.add_option("--name", a.name, "what the numbers call the encoder: FD[NAME@hash]")->capture_default_str();
  command.add_option("--mode", a.encoder_options.pipeline,
                     "image pipeline: clean (default), pytorch-fid, tf-legacy, torchmetrics; of CLIP: transformers "
                     "(default), torchvision, square_first");
  command.add_option("--tap", a.encoder_options.tap,
                     "features of the InceptionV3: 2048 (default), 768, 192, 64, spatial (sFID)");
  command.add_flag("--skip-unreadable", a.options.skip_unreadable,
                   "leave out files that cannot be read, and say how many");
  command.add_option("--cache", a.options.cache, "folder where features are kept, under the hash of all they depend on");
}
}  // namespace

void add_eval_command(CLI::App& app) {
  auto* command = app.add_subcommand("eval", "measure a model, or compare two sets of images");
  // Before the subcommands: they take it over.
  command->footer(
      "Examples:\n"
      "  fewstep eval configs/quickstart/eval.yaml num_samples=500\n"
      "  fewstep eval configs/eval/coco2017.yaml run=runs/my_model limit=500 --nproc 2\n"
      "  fewstep eval fid real/ samples/ --encoder runs/judge\n"
      "  fewstep eval statistics coco/val2017 coco2017.h5 --encoder weights/inception\n"
      "  fewstep eval clip-score samples/ --encoder weights/clip-vit-b32 --definition hessel\n"
      "  fewstep eval fid coco/val2017 samples/ --encoder weights/inception --name inception --mode clean\n"
      "Numbers are named by the encoder and the hash of its weights: FD[judge@1a2b3c4d]. \"FID\" and \"CLIP-Score\" "
      "are\n"
      "printed only for the published networks' weights.");
  auto a = std::make_shared<EvalArguments>();
  command->add_option("CONFIG", a->config, "YAML file of the evaluation: its root key is `protocol:` (COCO) or `metrics:`");
  command->add_option("OVERRIDES", a->overrides, "key.path=value, over the file");
  command->add_option("--nproc", a->nproc, "of a protocol: start this many processes on this machine")
      ->check(CLI::PositiveNumber);
  const std::pair<const char*, eval::CompareMetric> pairs[] = {{"fid", eval::CompareMetric::fid},
                                                               {"kid", eval::CompareMetric::kid},
                                                               {"prdc", eval::CompareMetric::prdc},
                                                               {"cmmd", eval::CompareMetric::cmmd}};
  const char* meaning[] = {"Frechet distance between two sets", "kernel distance between two sets",
                           "precision, recall, density, coverage",
                           "kernel distance of CLIP embeddings (Jayasumana et al. 2024)"};
  std::vector<CLI::App*> compared;
  for (size_t i = 0; i < std::size(pairs); ++i) {
    auto* sub = command->add_subcommand(pairs[i].first, meaning[i]);
    sub->add_option("A", a->a, "real images: a folder, an archive (.zip, .tar, ...), HDF5, or statistics (.h5, .npz)")->required();
    sub->add_option("B", a->b, "the images to judge: the same")->required();
    add_encoder(*sub, *a);
    sub->add_flag("--force", a->options.force,
                  "use statistics of other weights, of another image pipeline, or that do not say");
    if (pairs[i].second == eval::CompareMetric::fid)
      sub->add_flag("--infinity", a->options.infinity,
                    "also the extrapolation to infinitely many images of B (Chong and Forsyth 2020)");
    if (pairs[i].second == eval::CompareMetric::kid) {
      sub->add_option("--subsets", a->options.kid_subsets,
                      "also the mean over so many random subsets, as torch-fidelity draws them; 0: none")
          ->capture_default_str();
      sub->add_option("--subset-size", a->options.kid_subset_size, "images of a subset")->capture_default_str();
    }
    sub->add_flag("--json", a->json, "print JSON");
    sub->callback([a, metric = pairs[i].second] { compare_sets(*a, metric); });
    compared.push_back(sub);
  }
  auto* statistics = command->add_subcommand("statistics", "features of images, as mean and covariance");
  statistics->add_option("IMAGES", a->a, "folder, archive or HDF5 file of images")->required();
  statistics->add_option("OUT", a->b, "file to write: .h5, or .npz as pytorch-fid and clean-fid read it")->required();
  add_encoder(*statistics, *a);
  statistics->add_flag("--json", a->json, "print JSON");
  statistics->callback([a] { write_statistics(*a); });
  compared.push_back(statistics);
  auto* inception = command->add_subcommand("inception-score",
                                            "exp of the mean divergence of predicted classes (Salimans et al. 2016)");
  inception->add_option("IMAGES", a->a, "folder, archive or HDF5 file of images")->required();
  inception->add_option("--splits", a->splits, "parts the set is cut into")->capture_default_str();
  add_encoder(*inception, *a);
  inception->add_flag("--json", a->json, "print JSON");
  inception->callback([a] {
    const auto encoder = image_encoder(*a);
    print_comparison(eval::score_inception(eval::load_side(a->a, *encoder, a->options), *encoder, a->splits), a->json);
  });
  compared.push_back(inception);
  auto* clip = command->add_subcommand("clip-score", "images against their captions");
  clip->add_option("IMAGES", a->a, "folder of images")->required();
  clip->add_option("CAPTIONS", a->b, "lines {\"file_name\", \"text\"}; default: IMAGES/metadata.jsonl");
  clip->add_option("--encoder", a->encoder, "CLIP folder with its tokenizer, or run of a contrastive training");
  clip->add_option("--name", a->name, "what the numbers call the encoder")->capture_default_str();
  clip->add_option("--definition", a->definition, "hessel, torchmetrics, taited, gigagan, mlperf")
      ->capture_default_str();
  clip->add_option("--mode", a->encoder_options.pipeline,
                   "central crop: transformers (default), torchvision, square_first");
  clip->add_flag("--skip-unreadable", a->options.skip_unreadable,
                 "leave out files that cannot be read, and say how many");
  clip->add_flag("--json", a->json, "print JSON");
  clip->callback([a] { compare_with_captions(*a); });
  compared.push_back(clip);
  for (CLI::App* sub : add_eval_pair_commands(*command)) compared.push_back(sub);
  command->callback([a, compared] {
    for (const CLI::App* sub : compared)
      if (sub->parsed()) return;
    evaluate(*a);
  });
}

}  // namespace fewstep
