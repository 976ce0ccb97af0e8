#include "trainer/loop/resume.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "modules/errors.h"
#include "trainer/checkpoint/checkpoint_folder.h"
#include "trainer/checkpoint/verify.h"

namespace limbeck::loop {
namespace {

namespace fs = std::filesystem;

// Going back within a run leaves later checkpoints, which a later --resume=auto would take for this run's.
void refuse_newer(const recipe::Settings& settings, const fs::path& named, const fs::path& run_folder) {
  const auto own = checkpoint::step_of(named.filename().string());
  std::vector<std::string> newer;
  for (const checkpoint::Committed& other : checkpoint::list_checkpoints(run_folder / checkpoint::kCheckpointsFolder)) {
    if (own && other.step > *own) newer.push_back(other.path.filename().string());
  }
  if (newer.empty()) return;
  throw UsageError(
      fmt::format("--resume={}: {} holds newer ones ({}), which would be taken for what follows: move them "
                  "away, or name another folder with --run=DIR {}",
                  named.string(), (run_folder / checkpoint::kCheckpointsFolder).string(), fmt::join(newer, ", "),
                  settings.where("run")));
}

}  // namespace

std::optional<fs::path> find_checkpoint(const recipe::Settings& settings, const fs::path& run_folder, bool restarted,
                                        std::vector<std::string>& notes) {
  const std::string& resume = settings.text("resume");
  const bool holds_run = fs::exists(run_folder / "metrics.jsonl");
  if (resume == "never") {
    if (!holds_run) return std::nullopt;
    throw UsageError(
        fmt::format("{}: holds a run already {}, and --resume=never begins a new one: name another folder "
                    "with --run=DIR, or remove this one",
                    run_folder.string(), settings.where("run")));
  }
  const bool strict = settings.enabled("resume.strict");
  if (resume != "auto") {
    std::error_code absent;
    const fs::path named = fs::canonical(resume, absent);
    if (absent || !fs::is_directory(named)) {
      throw UsageError(
          fmt::format("--resume={}: is no folder: wanted auto, never, or a checkpoint such as "
                      "RUN/checkpoints/step-00001200",
                      resume));
    }
    if (holds_run && !checkpoint::list_checkpoints(run_folder / checkpoint::kCheckpointsFolder).empty() &&
        named.parent_path() != fs::canonical(run_folder / checkpoint::kCheckpointsFolder, absent)) {
      throw UsageError(
          fmt::format("{}: holds a run with checkpoints of its own {}, and --resume={} is another's: name "
                      "another folder with --run=DIR",
                      run_folder.string(), settings.where("run"), resume));
    }
    refuse_newer(settings, named, run_folder);
    const auto files = checkpoint::verify(named);
    if (!checkpoint::is_whole(files)) {
      throw WeightsError(fmt::format("--resume={}: is no whole checkpoint: {}: name another, or --resume=auto", resume,
                                     checkpoint::first_fault(files)));
    }
    return named;
  }
  auto found = checkpoint::newest_good(run_folder / checkpoint::kCheckpointsFolder, notes, strict);
  if (!found && holds_run && !settings.given("resume") && !restarted) {
    throw UsageError(
        fmt::format("{}: holds a run already {}, and no checkpoint of it: --resume=auto begins it again; "
                    "or name another folder with --run=DIR, or remove this one",
                    run_folder.string(), settings.where("run")));
  }
  return found;
}

}  // namespace limbeck::loop
