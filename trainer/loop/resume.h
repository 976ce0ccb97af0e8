// Where a run begins: anew, or from a checkpoint; and whether that checkpoint is of this run.
#pragma once
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "trainer/loop/run_state.h"
#include "trainer/recipe/settings.h"

namespace limbeck::loop {

// The checkpoint that --resume means for this run folder, after every byte of it was read; nothing: a new run.
// `restarted`: a launcher has started this run before, so that going on is what was asked for. UsageError when the
// folder holds a run that --resume does not speak of.
std::optional<std::filesystem::path> find_checkpoint(const recipe::Settings& settings,
                                                     const std::filesystem::path& run_folder, bool restarted,
                                                     std::vector<std::string>& notes);

// The recipe keys that decide what is computed, with their values: what a resumed run must have in common.
std::map<std::string, std::string> deciding_keys(const recipe::Settings& settings);

// Digests of data and teacher; versions of the program and its libraries, processor and threads.
std::map<std::string, std::string> data_digests(const recipe::Settings& settings, const std::string& train,
                                                const std::string& validation);
std::map<std::string, std::string> build_identity(const recipe::Settings& settings);

// WeightsError listing every difference that --resume.allow does not name; those it names are lines of `notes`.
void require_same_run(const recipe::Settings& settings, const RunState& saved, const RunState& now,
                      const std::string& where, std::vector<std::string>& notes);

}  // namespace limbeck::loop
