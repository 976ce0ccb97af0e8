#include "trainer/checkpoint/checkpoint_folder.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "modules/errors.h"
#include "trainer/checkpoint/manifest.h"
#include "trainer/checkpoint/save_request.h"

namespace limbeck::checkpoint {
namespace {

namespace fs = std::filesystem;

constexpr const char* kTemporary = ".tmp-";
constexpr size_t kMostDigits = 18;  // fits 63 bits

std::vector<fs::path> entries_of(const fs::path& folder) {
  std::error_code error;
  std::vector<fs::path> out;
  fs::directory_iterator entry(folder, error);
  while (!error && entry != fs::directory_iterator()) {
    out.push_back(entry->path());
    entry.increment(error);
  }
  if (error && error != std::errc::no_such_file_or_directory) {
    throw IoError(folder.string() + ": cannot be listed: " + error.message());
  }
  std::sort(out.begin(), out.end());
  return out;
}

void removed(int error, const fs::path& path) {
  if (error == 0 || error == ENOENT) return;
  throw IoError(path.string() + ": cannot be removed: " + std::strerror(error));
}

void must(int error, const fs::path& path, const char* doing) {
  if (error != 0) throw IoError(path.string() + ": " + doing + ": " + std::strerror(error));
}

}  // namespace

std::string step_name(const std::string& prefix, int64_t step) { return fmt::format("{}-{:08}", prefix, step); }

std::optional<int64_t> step_of(const std::string& name) {
  const std::string start = std::string(kStepPrefix) + "-";
  if (!name.starts_with(start)) return std::nullopt;
  const std::string digits = name.substr(start.size());
  if (digits.empty() || digits.size() > kMostDigits || digits.find_first_not_of("0123456789") != digits.npos) {
    return std::nullopt;
  }
  const int64_t step = std::stoll(digits);
  if (step_name(kStepPrefix, step) != name) return std::nullopt;
  return step;
}

std::vector<Committed> list_checkpoints(const fs::path& folder) {
  std::vector<Committed> found;
  for (const fs::path& path : entries_of(folder)) {
    const auto step = step_of(path.filename().string());
    std::error_code error;
    if (step && fs::symlink_status(path, error).type() == fs::file_type::directory) found.push_back({*step, path});
  }
  std::sort(found.begin(), found.end(), [](const Committed& a, const Committed& b) { return a.step > b.step; });
  return found;
}

std::vector<fs::path> checkpoints_of(const fs::path& path) {
  const fs::path itself = path.has_filename() ? path : path.parent_path();  // "step-00000007/"
  std::error_code error;
  // By its name too: one that lost its manifest is still a checkpoint, and bad.
  if (fs::exists(itself / kManifestName, error) ||
      (step_of(itself.filename().string()) && fs::is_directory(itself, error))) {
    return {itself};
  }
  std::vector<fs::path> found;
  for (const fs::path& folder : {itself, itself / kCheckpointsFolder}) {
    if (!fs::is_directory(folder, error)) continue;
    for (const Committed& committed : list_checkpoints(folder)) found.push_back(committed.path);
  }
  return found;
}

void remove_tree(const fs::path& path, io::Disk& disk) {
  std::error_code error;
  if (fs::symlink_status(path, error).type() != fs::file_type::directory) {
    removed(disk.remove_file(path), path);
    return;
  }
  for (const fs::path& inner : entries_of(path)) remove_tree(inner, disk);
  removed(disk.remove_folder(path), path);
}

void remove_checkpoint(const fs::path& path, const std::string& run_id, io::Disk& disk) {
  const fs::path folder = path.parent_path();
  const fs::path away = folder / fmt::format("{}delete-{}-{}", kTemporary, path.filename().string(), run_id);
  if (fs::exists(fs::symlink_status(away))) remove_tree(away, disk);
  must(disk.rename(path, away), path, "cannot be moved away");
  must(disk.flush_folder(folder), folder, "cannot be flushed to disk");
  remove_tree(away, disk);
}

std::vector<std::string> sweep_leftovers(const fs::path& folder, io::Disk& disk) {
  std::vector<std::string> notes;
  for (const fs::path& path : entries_of(folder)) {
    if (!path.filename().string().starts_with(kTemporary)) continue;
    try {
      remove_tree(path, disk);
    } catch (const IoError& error) {
      notes.push_back(fmt::format("left over from another process: {}", error.what()));
    }
  }
  return notes;
}

bool Retention::is_good(const fs::path& path) {
  const std::string name = path.filename().string();
  if (const auto known = verified_.find(name); known != verified_.end()) return sizes_match(path, known->second);
  std::vector<FileState> files = verify(path);
  if (!is_whole(files)) return false;
  verified_[name] = std::move(files);
  return true;
}

std::vector<std::string> Retention::after_commit(const fs::path& committed, const std::string& run_id,
                                                 std::vector<FileState> files) {
  std::vector<std::string> warnings;
  verified_[committed.filename().string()] = std::move(files);
  if (keep_ <= 0) return warnings;
  // The one just committed is good and stays, whatever its number: after a resume from an older step, newer ones exist.
  int kept = 1;
  for (const Committed& old : list_checkpoints(folder_)) {
    if (old.path.filename() == committed.filename()) continue;
    if (kept < keep_) {
      if (is_good(old.path)) ++kept;
      continue;
    }
    try {
      remove_checkpoint(old.path, run_id, disk_);
      verified_.erase(old.path.filename().string());
    } catch (const IoError& error) {
      warnings.push_back(fmt::format("an old checkpoint stays: {}", error.what()));
    }
  }
  return warnings;
}

}  // namespace limbeck::checkpoint
