// The folder RUN/checkpoints: which steps are committed, which to keep, what a dead process left behind.
// A committed step is a folder step-NNNNNNNN: it got that name by a rename, after all of it was on disk. Steps are
// ordered by their number; a file's time is never asked.
#pragma once
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "modules/io/disk.h"
#include "trainer/checkpoint/verify.h"

namespace limbeck::checkpoint {

inline constexpr const char* kCheckpointsFolder = "checkpoints";  // in the folder of a run

struct Committed {
  int64_t step = 0;
  std::filesystem::path path;
};

std::string step_name(const std::string& prefix, int64_t step);  // step-00001200
std::optional<int64_t> step_of(const std::string& name);         // of "step-00001200" alone

// Newest first. Empty for a folder that does not exist.
std::vector<Committed> list_checkpoints(const std::filesystem::path& folder);

// What a person means by a path: one checkpoint, a folder of them, or a run that has such a folder. Newest first.
std::vector<std::filesystem::path> checkpoints_of(const std::filesystem::path& path);

// Removes everything named .tmp-* that saves and removals left unfinished. The caller holds the run's lock. What cannot
// be removed is a line of the answer, not an error.
std::vector<std::string> sweep_leftovers(const std::filesystem::path& folder, io::Disk& disk);

// Away from its name first, by a rename that is on disk before anything in it is touched: never half a checkpoint.
void remove_checkpoint(const std::filesystem::path& path, const std::string& run_id, io::Disk& disk);

// What a removal leaves is a temporary; throws IoError.
void remove_tree(const std::filesystem::path& path, io::Disk& disk);

// Keeps the newest `keep` steps that are good (0: all) and `committed`, which just was; removes the older ones.
// A damaged step that is newer than the last one kept is left for a person to look at, and counts for nothing.
class Retention {
 public:
  Retention(std::filesystem::path folder, int keep, io::Disk& disk)
      : folder_(std::move(folder)), keep_(keep), disk_(disk) {}
  // files: those of `committed`, with their lengths.
  std::vector<std::string> after_commit(const std::filesystem::path& committed, const std::string& run_id,
                                        std::vector<FileState> files);

 private:
  bool is_good(const std::filesystem::path& path);

  std::filesystem::path folder_;
  int keep_;
  io::Disk& disk_;
  std::map<std::string, std::vector<FileState>> verified_;  // by this process: sizes are enough the next time
};

}  // namespace limbeck::checkpoint
