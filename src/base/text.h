// Small text helpers shared by errors, logs and tables.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace fewstep {

// The known word closest to `word` by edit distance (at most a third of its length, at least 1); "" when none is close.
std::string nearest(std::string_view word, std::span<const std::string> known);
// "'foo' is not one of a, b, c (did you mean 'b'?)"
std::string not_one_of(std::string_view word, std::span<const std::string> known);

std::vector<std::string> split(std::string_view text, char separator);  // keeps empty parts; "" gives {""}
std::string_view trim(std::string_view text);                           // ASCII white space
std::string to_lower(std::string_view text);                            // ASCII
std::string escape_html(std::string_view text);                         // & < > " '

std::string human_bytes(uint64_t bytes);      // "1.5 GiB"
std::string human_count(double count);        // "2.80 M"
std::string human_duration(double seconds);   // "1:02:03" or "4.2 s"
std::string utc_timestamp();                  // "2026-11-22T15:10:16Z"

}  // namespace fewstep
