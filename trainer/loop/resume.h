// Where a run begins: anew, or from a checkpoint.
#pragma once
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "trainer/recipe/settings.h"

namespace limbeck::loop {

// The checkpoint that --resume means for this run folder, after every byte of it was read; nothing: a new run.
// `restarted`: a launcher has started this run before, so that going on is what was asked for. UsageError when the
// folder holds a run that --resume does not speak of.
std::optional<std::filesystem::path> find_checkpoint(const recipe::Settings& settings,
                                                     const std::filesystem::path& run_folder, bool restarted,
                                                     std::vector<std::string>& notes);

}  // namespace limbeck::loop
