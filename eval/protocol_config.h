// An evaluation by a COCO protocol, as the YAML file has it. Its root key `protocol:` tells it from other files.
#pragma once
#include <string>
#include <vector>

#include "eval/eval_config.h"
#include "eval/protocols.h"

namespace fewstep::eval {

// The networks, each a folder (tools/convert_weights.py) or the run of an encoder trained here; "" leaves its metrics
// out. What a number is called follows from the weights.
struct ProtocolEncoders {
  std::string inception, clip, cmmd, dinov2, vgg;
};
void describe(config::Visitor& v, ProtocolEncoders& c);

struct CustomProtocol {  // of protocol: custom
  int64_t prompts = 0;
  CaptionRule captions = CaptionRule::first;
  PromptDraw draw = PromptDraw::images;
  ReferenceImages reference = ReferenceImages::chosen;
  int64_t side = 0;
  std::string pipeline = "clean", clip_definition = "hessel";
  bool patch = false;
};
void describe(config::Visitor& v, CustomProtocol& c);

struct ProtocolConfig {
  std::string name;
  std::string out;  // empty: runs/<name>
  std::string protocol;
  CustomProtocol custom;
  std::string annotations, karpathy_split, images;
  std::string prompts_file;  // a published list instead of the protocol's own draw
  std::string reference;     // statistics of the real images instead of `images`
  std::string run;           // run or model folder
  std::string samples;       // or a folder of finished images
  int64_t limit = 0;
  int64_t seed = 0, threads = 0;
  dist::DeviceKind device = dist::DeviceKind::automatic;
  ProtocolEncoders encoders;
  std::vector<std::string> metrics;  // empty: all that the encoders allow
  std::string cache = ".cache/features";
  bool skip_unreadable = false;
  pipelines::GenerateOptions generate;
  LatencyConfig latency;
  std::string paired_with;
  bool report = true;
};
void describe(config::Visitor& v, ProtocolConfig& c);

bool is_protocol_file(const std::filesystem::path& path);  // by its root key
Protocol protocol_of(const ProtocolConfig& config);        // the table's, or the custom one

}  // namespace fewstep::eval
