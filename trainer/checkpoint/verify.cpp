#include "trainer/checkpoint/verify.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <system_error>

#include "modules/errors.h"
#include "modules/io/input_file.h"
#include "modules/io/json_file.h"
#include "trainer/checkpoint/checked_blocks.h"
#include "trainer/checkpoint/checkpoint_folder.h"
#include "trainer/checkpoint/manifest.h"

namespace limbeck::checkpoint {
namespace {

namespace fs = std::filesystem;

template <class Action>
std::string fault_of(Action&& action) {
  try {
    action();
    return "";
  } catch (const Error& error) {
    return error.what();
  }
}

void check_file(const fs::path& folder, const FileRecord& record) {
  const io::InputFile file = open_recorded(folder, record);
  read_head(file, record);
  for (const ChunkRecord& chunk : record.chunks) read_chunk(file, chunk, 0, chunk.bytes, nullptr);
}

uint64_t size_there(const fs::path& path) {
  std::error_code error;
  const auto size = fs::file_size(path, error);
  return error ? 0 : static_cast<uint64_t>(size);
}

// Nothing else may lie there: what is not in the manifest was not saved.
void add_strangers(const fs::path& path, const std::set<std::string>& expected, std::vector<FileState>& out) {
  std::error_code error;
  std::set<std::string> strangers;
  for (fs::directory_iterator entry(path, error); !error && entry != fs::directory_iterator(); entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (expected.count(name) == 0) strangers.insert(name);
  }
  for (const std::string& name : strangers) {
    out.push_back(
        {name, size_there(path / name),
         fmt::format("{}: is not in the manifest: not part of what was saved, move it away", (path / name).string())});
  }
}

}  // namespace

std::vector<FileState> verify(const fs::path& path) {
  Manifest manifest;
  const std::string bad = fault_of([&] {
    manifest = read_manifest(path);
    manifest.tensors((path / kManifestName).string());
    const auto named = step_of(path.filename().string());
    if (named && *named != manifest.step) {
      throw WeightsError(fmt::format("{}: is of step {}, its folder's name says {}", (path / kManifestName).string(),
                                     manifest.step, *named));
    }
  });
  std::vector<FileState> out{{kManifestName, size_there(path / kManifestName), bad}};
  if (!bad.empty()) return out;
  std::set<std::string> expected{kManifestName};
  for (const FileRecord& record : manifest.files) {
    expected.insert(record.name);
    out.push_back({record.name, record.bytes, fault_of([&] { check_file(path, record); })});
  }
  add_strangers(path, expected, out);
  return out;
}

std::string first_fault(const std::vector<FileState>& files) {
  for (const FileState& file : files) {
    if (!file.fault.empty()) return file.fault;
  }
  return "";
}

bool is_whole(const std::vector<FileState>& files) { return first_fault(files).empty(); }

bool sizes_match(const fs::path& path, const std::vector<FileState>& files) {
  const auto there = [&](const FileState& file) { return io::InputFile(path / file.file).size() == file.bytes; };
  bool match = false;
  const std::string fault = fault_of([&] {
    check_own_crc(io::read_json_text(path / kManifestName), path.string());
    match = std::all_of(files.begin(), files.end(), there);
  });
  return match && fault.empty();
}

std::optional<fs::path> newest_good(const fs::path& folder, std::vector<std::string>& notes, bool strict) {
  std::vector<std::string> faults;
  const auto committed = list_checkpoints(folder);
  for (const Committed& candidate : committed) {
    const std::string fault = first_fault(verify(candidate.path));
    if (fault.empty()) {
      for (const std::string& text : faults) {
        notes.push_back(fmt::format("a checkpoint is bad: {}; {} is used instead", text, candidate.path.string()));
      }
      return candidate.path;
    }
    if (strict) throw WeightsError(fault);
    faults.push_back(fault);
  }
  if (committed.empty()) return std::nullopt;
  throw WeightsError(fmt::format("{}: none of its {} checkpoints is whole; the newest: {}", folder.string(),
                                 committed.size(), faults.front()));
}

}  // namespace limbeck::checkpoint
