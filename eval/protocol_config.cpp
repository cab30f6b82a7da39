#include "eval/protocol_config.h"

#include <algorithm>

#include "eval/clip_scores.h"
#include "eval/preprocessing.h"
#include "eval/protocol_metrics.h"
#include "src/base/hash.h"
#include "src/base/table.h"
#include "src/config/config.h"

namespace fewstep::eval {
namespace {

template <class Table>
void check_name(config::Visitor& v, std::string_view key, const std::string& name, const Table& table) {
  const std::vector<std::string> known = names_of(table);
  v.check(std::find(known.begin(), known.end(), name) != known.end(), key, not_one_of(name, known));
}

void describe_data(config::Visitor& v, ProtocolConfig& c) {
  v.require("annotations");
  v.field("annotations", c.annotations, "COCO captions file, e.g. annotations/captions_val2017.json");
  v.field("karpathy_split", c.karpathy_split,
          "annotations is Karpathy's dataset_coco.json, and of it this split: train, restval, val, test");
  v.field("images", c.images, "folder of the real images, e.g. val2017");
  v.field("prompts_file", c.prompts_file,
          "a published list, one caption a line, instead of the protocol's own draw: DMD2's captions_coco14_test");
  v.field("reference", c.reference,
          "statistics of the real images (.h5, .npz) instead of `images`: Frechet distance only");
  v.check(c.images.empty() != c.reference.empty(), "images", "give either 'images' or 'reference'");
}

void describe_measured(config::Visitor& v, ProtocolConfig& c) {
  v.field("run", c.run, "run or model folder that draws the samples");
  v.field("samples", c.samples, "or a folder of finished images: metadata.jsonl with caption_id, or <caption id>.png");
  v.check(c.run.empty() != c.samples.empty(), "run", "give either 'run' or 'samples'");
  v.field("limit", c.limit, "only so many prompts, to try it out; results then carry another name; 0: all",
          config::kNonNegative);
  v.field("encoders", c.encoders, "the networks that judge");
  v.field("metrics", c.metrics,
          "fid, fid_infinity, kid, inception_score, sfid, patch_fid, clip_score, cmmd, fd_dinov2, prdc; "
          "empty: all that the encoders allow");
  for (const std::string& name : c.metrics) check_name(v, "metrics", name, protocol_metrics());
  v.field("cache", c.cache, "folder where features of real images are kept; empty: nowhere");
  v.field("skip_unreadable", c.skip_unreadable, "leave images out that cannot be read, and count them");
  v.field("generate", c.generate, "guidance, temperature, ...: as on the command line of `fewstep sample`");
  v.field("latency", c.latency, "latency of the pipeline");
  v.check(c.latency.runs == 0 || !c.run.empty(), "latency", "needs 'run'");
  v.field("paired_with", c.paired_with,
          "folder of another evaluation of the same protocol, prompts and seed: differences prompt by prompt");
}

}  // namespace

void describe(config::Visitor& v, ProtocolEncoders& c) {
  v.field("inception", c.inception, "InceptionV3 of FID: fid, fid_infinity, kid, inception_score, sfid, patch_fid");
  v.field("clip", c.clip, "CLIP with its tokenizer, or a contrastive model trained here: clip_score");
  v.field("cmmd", c.cmmd, "CLIP ViT-L/14 at 336 pixels: cmmd");
  v.field("dinov2", c.dinov2, "DINOv2: fd_dinov2");
  v.field("vgg", c.vgg, "VGG16, or any image encoder: prdc");
}

void describe(config::Visitor& v, CustomProtocol& c) {
  static constexpr config::Choice kCaptions[] = {{"first", 0}, {"longest", 1}, {"sjd", 2}, {"seeded", 3}};
  static constexpr config::Choice kDraws[] = {{"images", 0}, {"captions", 1}};
  static constexpr config::Choice kReferences[] = {{"all", 0}, {"chosen", 1}};
  v.field("prompts", c.prompts, "how many; 0: all", config::kNonNegative);
  v.field("captions", c.captions, "which caption of an image", kCaptions);
  v.field("draw", c.draw, "images with one caption each, or captions", kDraws);
  v.field("reference", c.reference, "all images of the file, or those of the chosen captions", kReferences);
  v.field("side", c.side, "both sides: central square, Lanczos to side x side; 0: as they are", config::kNonNegative);
  v.field("pipeline", c.pipeline, "of the InceptionV3: clean, pytorch-fid, tf-legacy, torchmetrics");
  check_name(v, "pipeline", c.pipeline, inception_pipelines());
  v.field("clip_definition", c.clip_definition, "hessel, torchmetrics, taited, gigagan, mlperf");
  check_name(v, "clip_definition", c.clip_definition, clip_score_kinds());
  v.field("patch", c.patch, "patch-FID as well");
}

void describe(config::Visitor& v, ProtocolConfig& c) {
  static constexpr config::Choice kDevices[] = {{"auto", 0}, {"cpu", 1}, {"cuda", 2}};
  v.require("name");
  v.field("name", c.name, "name of the evaluation");
  v.field("out", c.out, "folder for prompts, samples, results and report; empty: runs/<name>");
  v.require("protocol");
  v.field("protocol", c.protocol, "coco2017-5k, coco2014-30k, dmd2-10k, sjd-coco2017, mlperf-sdxl, or custom");
  if (c.protocol != "custom" && !c.protocol.empty()) {
    std::vector<std::string> known = names_of(protocols());
    known.emplace_back("custom");
    v.check(std::find(known.begin(), known.end(), c.protocol) != known.end(), "protocol",
            not_one_of(c.protocol, known));
  }
  if (c.protocol == "custom" || c.protocol.empty())
    v.field("custom", c.custom, "what protocol: custom fixes; a named protocol fixes it itself");
  describe_data(v, c);
  describe_measured(v, c);
  v.field("seed", c.seed, "of the samples' noise, with the caption id", config::kNonNegative);
  v.field("threads", c.threads, "CPU threads; 0: all cores", config::kNonNegative);
  v.field("device", c.device, "where tensors live; auto: CUDA when this binary and machine have it", kDevices);
  v.field("report", c.report, "write report.html");
}

bool is_protocol_file(const std::filesystem::path& path) {
  const std::vector<std::string> keys = config::top_level_keys(path);
  return std::find(keys.begin(), keys.end(), "protocol") != keys.end();
}

Protocol protocol_of(const ProtocolConfig& c) {
  if (c.protocol != "custom") return find_protocol(c.protocol);
  CustomProtocol settings = c.custom;
  // Two custom protocols with other settings are two protocols.
  return {.name = "custom-" + sha256_hex(config::to_yaml(settings)).substr(0, 8),
          .meaning = fmt::format("{} pipeline, CLIP score of {}, side {}", settings.pipeline, settings.clip_definition,
                                 settings.side),
          .annotations = "",
          .prompts = {.captions = c.custom.captions, .draw = c.custom.draw, .count = c.custom.prompts},
          .reference = c.custom.reference,
          .side = c.custom.side,
          .pipeline = c.custom.pipeline,
          .clip_definition = c.custom.clip_definition,
          .patch = c.custom.patch};
}

}  // namespace fewstep::eval
