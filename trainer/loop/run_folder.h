// The folder of one run: recipe.ini as resolved, contract.json, metrics, checkpoints, and the models it saved. One
// process owns it: rank 0; the others know its path.
#pragma once
#include <array>
#include <filesystem>
#include <string>
#include <vector>

#include "trainer/checkpoint/checkpoint_folder.h"
#include "trainer/recipe/settings.h"

namespace limbeck::loop {

// The models that a run saves, in the order in which a reader of the run wants them.
inline constexpr const char *kBest = "best", *kFinal = "final", *kStopped = "stopped";
inline constexpr std::array kSavedModels = {kBest, kFinal, kStopped};

class RunFolder {
 public:
  // The owner creates the folder, takes its lock and proves that it can be written. UsageError when it belongs to a
  // process that lives; IoError when it cannot be written.
  RunFolder(const recipe::Settings& settings, bool owner);
  ~RunFolder();
  RunFolder(const RunFolder&) = delete;
  RunFolder& operator=(const RunFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path checkpoints() const { return path_ / checkpoint::kCheckpointsFolder; }
  void write_text(const std::string& name, const std::string& text) const;

 private:
  std::filesystem::path path_;
  std::vector<std::filesystem::path> made_;  // for this run, the deepest first
  int lock_ = -1;
};

}  // namespace limbeck::loop
