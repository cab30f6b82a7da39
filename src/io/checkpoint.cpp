#include "src/io/checkpoint.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <nlohmann/json.hpp>
#include <system_error>
#include <vector>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/hash.h"
#include "src/base/log.h"
#include "src/base/text.h"

namespace fewstep::io {
namespace fs = std::filesystem;

namespace {

constexpr std::string_view kManifest = "manifest.json", kPrefix = "step-", kTemporary = ".tmp-";

fs::path checkpoints_folder(const fs::path& run_dir) { return run_dir / "checkpoints"; }
std::string error_text(int code) { return std::generic_category().message(code); }

void sync_file(const fs::path& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) fail<DataError>("{}: cannot be read back: {}", path.string(), error_text(errno));
  const int result = ::fsync(file), code = errno;
  ::close(file);
  // EINVAL: the file system has no such thing.
  if (result != 0 && code != EINVAL) fail<DataError>("{}: cannot be written: {}", path.string(), error_text(code));
}

// Files below `folder` relative to it, sorted, without the manifest; folders are appended to `folders`.
std::vector<std::string> list_files(const fs::path& folder, std::vector<fs::path>& folders) {
  std::vector<std::string> files;
  std::error_code code;
  folders.push_back(folder);
  for (fs::recursive_directory_iterator it(folder, code), end; !code && it != end; it.increment(code)) {
    if (it->is_directory()) {
      folders.push_back(it->path());
    } else if (it->is_regular_file()) {
      files.push_back(it->path().lexically_relative(folder).generic_string());
    } else {
      fail<DataError>("{}: neither a file nor a folder, cannot be part of a checkpoint", it->path().string());
    }
  }
  if (code) fail<DataError>("{}: cannot be listed: {}", folder.string(), code.message());
  std::erase(files, kManifest);
  std::sort(files.begin(), files.end());
  return files;
}

void write_manifest(const fs::path& folder) {
  std::vector<fs::path> folders;
  Json files = Json::object();
  for (const std::string& name : list_files(folder, folders)) {
    const fs::path path = folder / name;
    sync_file(path);
    files[name] = {{"size", fs::file_size(path)}, {"sha256", sha256_file(path.string())}};
  }
  write_json(folder / kManifest, {{"format", 1}, {"files", std::move(files)}});
  // Deepest last in the walk: a folder's entry is durable once its parent is synchronised too.
  for (auto it = folders.rbegin(); it != folders.rend(); ++it) sync_directory(*it);
}

// Puts `from` where `to` is, also when `to` exists. Exchanging the two names is one atomic step; file systems without
// it get two renames, between which a crash leaves `to` absent (readers then use the checkpoint before it).
void replace_folder(const fs::path& from, const fs::path& to) {
  if (::rename(from.c_str(), to.c_str()) == 0) return;
  int code = errno;
  if (code == EEXIST || code == ENOTEMPTY || code == ENOTDIR) {
    if (::syscall(SYS_renameat2, AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_EXCHANGE) == 0) return;
    const fs::path old = to.string() + std::string(kTemporary) + "old";
    std::error_code ignored;
    fs::remove_all(old, ignored);
    if (::rename(to.c_str(), old.c_str()) == 0 && ::rename(from.c_str(), to.c_str()) == 0) {
      fs::remove_all(old, ignored);
      return;
    }
    code = errno;
  }
  fail<DataError>("{}: cannot be put in place of {}: {}", from.string(), to.string(), error_text(code));
}

// "step-000000120" -> 120; nullopt for anything else.
std::optional<int64_t> step_of(const std::string& name) {
  if (!name.starts_with(kPrefix)) return std::nullopt;
  int64_t step = 0;
  const char *begin = name.data() + kPrefix.size(), *end = name.data() + name.size();
  const auto [stop, code] = std::from_chars(begin, end, step);
  if (code != std::errc() || stop != end || begin == end || step < 0) return std::nullopt;
  return step;
}

// Steps of the complete-looking folders, newest first.
std::vector<int64_t> list_steps(const fs::path& folder) {
  std::vector<int64_t> steps;
  std::error_code code;
  for (fs::directory_iterator it(folder, code), end; !code && it != end; it.increment(code))
    if (const auto step = step_of(it->path().filename().string()); step && it->is_directory()) steps.push_back(*step);
  std::sort(steps.rbegin(), steps.rend());
  return steps;
}

// A kill between rename and removal leaves a temporary, never half a checkpoint under a checkpoint's name.
void remove_checkpoint(const fs::path& path) {
  const fs::path doomed = path.string() + std::string(kTemporary) + "removed";
  std::error_code code;
  fs::rename(path, doomed, code);
  if (!code) fs::remove_all(doomed, code);
  if (code) log::warn("{}: old checkpoint cannot be removed: {}", path.string(), code.message());
}

void remove_temporaries(const fs::path& folder) {
  std::vector<fs::path> stale;
  std::error_code code;
  for (fs::directory_iterator it(folder, code), end; !code && it != end; it.increment(code))
    if (it->path().filename().string().find(kTemporary) != std::string::npos) stale.push_back(it->path());
  for (const fs::path& path : stale) fs::remove_all(path, code);
}

std::optional<int64_t> read_latest(const fs::path& folder) {
  const fs::path latest = folder / "latest";
  std::error_code code;
  if (!fs::exists(latest, code)) return std::nullopt;
  const std::string text = read_text(latest);
  const auto step = step_of(std::string(trim(text)));
  if (!step) log::warn("{}: does not name a checkpoint, using the newest one there is", latest.string());
  return step;
}

std::string check_file(const fs::path& path, const std::string& name, const Json& entry) {
  if (!entry.is_object() || !entry.contains("size") || !entry.contains("sha256"))
    return fmt::format("{}: '{}' has no size and sha256", kManifest, name);
  std::error_code code;
  const uint64_t size = fs::file_size(path, code), expected = entry.at("size").get<uint64_t>();
  if (code)
    return fmt::format("{}: {}", name, code == std::errc::no_such_file_or_directory ? "missing" : code.message());
  if (size != expected) return fmt::format("{}: {} bytes, expected {}", name, size, expected);
  const std::string hash = sha256_file(path.string()), wanted = entry.at("sha256").get<std::string>();
  if (hash != wanted) return fmt::format("{}: SHA-256 {}, expected {} (content changed)", name, hash, wanted);
  return "";
}

}  // namespace

CheckpointWriter::CheckpointWriter(const fs::path& final_path)
    : final_(final_path), temporary_(final_path.string() + fmt::format("{}{}", kTemporary, ::getpid())) {
  std::error_code code;
  fs::remove_all(temporary_, code);  // of a dead process that had our id
  make_directories(temporary_);
}

CheckpointWriter::~CheckpointWriter() {
  std::error_code code;
  fs::remove_all(temporary_, code);  // after commit(): what stood at the final path before, if anything
}

void CheckpointWriter::commit() {
  FEW_CHECK(!committed_, "{}: committed twice", final_.string());
  write_manifest(temporary_);
  replace_folder(temporary_, final_);
  const fs::path parent = final_.has_parent_path() ? final_.parent_path() : fs::path(".");
  sync_directory(parent);
  committed_ = true;
}

fs::path checkpoint_path(const fs::path& run_dir, int64_t step) {
  return checkpoints_folder(run_dir) / fmt::format("{}{:09d}", kPrefix, step);
}

void publish_checkpoint(const fs::path& run_dir, int64_t step, int64_t keep_last) {
  const fs::path folder = checkpoints_folder(run_dir), path = checkpoint_path(run_dir, step);
  FEW_CHECK(fs::is_directory(path), "{}: published before it was committed", path.string());
  write_text_atomic(folder / "latest", path.filename().string() + "\n");
  remove_temporaries(folder);
  if (keep_last <= 0) return;
  int64_t kept = 0;
  for (const int64_t other : list_steps(folder)) {
    // Steps after this one belong to a continuation that was given up: the run went back and came here anew.
    if (other > step) {
      log::info("removing {}: the run continued from an earlier step", checkpoint_path(run_dir, other).string());
      remove_checkpoint(checkpoint_path(run_dir, other));
    } else if (++kept > keep_last) {
      remove_checkpoint(checkpoint_path(run_dir, other));
    }
  }
  sync_directory(folder);
}

std::string check_checkpoint(const fs::path& folder) {
  try {
    std::error_code code;
    if (!fs::exists(folder / kManifest, code)) return fmt::format("{}: missing", kManifest);
    const Json manifest = read_json(folder / kManifest);
    if (!manifest.is_object() || manifest.value("format", 0) != 1 || !manifest.contains("files"))
      return fmt::format("{}: not a manifest of format 1", kManifest);
    for (const auto& [name, entry] : manifest.at("files").items())
      if (std::string problem = check_file(folder / name, name, entry); !problem.empty()) return problem;
  } catch (const DataError& e) {
    return e.what();
  } catch (const nlohmann::json::exception& e) {
    return fmt::format("{}: {}", kManifest, e.what());
  }
  return "";
}

std::optional<fs::path> find_checkpoint(const fs::path& run_dir) {
  const fs::path folder = checkpoints_folder(run_dir);
  std::vector<int64_t> steps = list_steps(folder);
  if (const auto latest = read_latest(folder)) {
    if (const auto it = std::find(steps.begin(), steps.end(), *latest); it != steps.end()) {
      std::rotate(steps.begin(), it, it + 1);
    } else {
      log::warn("{}: names step {}, which is not there; using the newest one there is", (folder / "latest").string(),
                *latest);
    }
  }
  for (const int64_t step : steps) {
    const fs::path path = checkpoint_path(run_dir, step);
    const std::string problem = check_checkpoint(path);
    if (problem.empty()) return path;
    log::warn("{}: skipped, not whole: {}", path.string(), problem);
  }
  return std::nullopt;
}

}  // namespace fewstep::io
