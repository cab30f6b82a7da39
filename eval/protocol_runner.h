// Runs a COCO protocol: the prompts are chosen and written out, one image is drawn for each, every network looks once
// at both sides, and every number goes into results.json, results.md and report.html.
#pragma once
#include <filesystem>

#include "eval/protocol_config.h"
#include "eval/results.h"
#include "src/dist/world.h"

namespace fewstep::eval {

// All ranks call it; all get the results, rank 0 writes. Stopped or killed, the same call goes on: samples that were
// drawn are kept, and features of real images that were finished.
Results run_protocol(ProtocolConfig& config, dist::World& world);
std::filesystem::path output_folder(const ProtocolConfig& config);

}  // namespace fewstep::eval
