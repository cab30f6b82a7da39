// JSON is nlohmann::json; this header only forward-declares it. Sources that build values include <nlohmann/json.hpp>.
#pragma once
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string_view>

namespace fewstep {

using Json = nlohmann::ordered_json;  // keeps the order in which keys were written: files are deterministic

Json read_json(const std::filesystem::path& path);                      // DataError with path and byte offset
void write_json(const std::filesystem::path& path, const Json& value);  // indented, atomic
void append_jsonl(const std::filesystem::path& path, const Json& value);  // one line, one write call

}  // namespace fewstep
