#pragma once
namespace fewstep {
inline constexpr const char* kVersion = "0.1.0";
// Git commit of the build, "-dirty" appended when the tree had changes; "unknown" outside a checkout.
const char* build_commit();
}  // namespace fewstep
