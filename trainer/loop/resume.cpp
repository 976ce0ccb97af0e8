#include "trainer/loop/resume.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/version.h>

#include <algorithm>
#include <set>

#include "modules/errors.h"
#include "modules/io/crc32c.h"
#include "modules/io/input_file.h"
#include "trainer/checkpoint/checkpoint_folder.h"
#include "trainer/checkpoint/verify.h"

namespace limbeck::loop {
namespace {

namespace fs = std::filesystem;

// Keys that decide where things go, how often something is done beside the updates, or how fast: never a bit of them.
bool decides(const recipe::Option& option) {
  static const std::set<std::string> kFree = {
      "run",           "train.log_every", "train.progress", "train.checkpoint_activations",
      "data.prefetch", "threads",         "quiet",          "color"};
  const auto begins = [&](const char* prefix) { return option.name.starts_with(prefix); };
  if (option.flag_only || kFree.contains(option.name)) return false;
  return !begins("checkpoint.") && !begins("parallel.") && !begins("eval.") && !begins("generation.");
}

std::string head_and_tail_digest(const fs::path& path) {
  constexpr uint64_t kEnd = 1 << 20;
  const io::InputFile file(path);
  std::string bytes(std::min(file.size(), kEnd), '\0');
  file.read(0, bytes.data(), bytes.size());
  uint32_t crc = io::crc32c(bytes.data(), bytes.size());
  file.read(file.size() - bytes.size(), bytes.data(), bytes.size());
  crc = io::crc32c(bytes.data(), bytes.size(), crc);
  return fmt::format("{}:{}:{:08x}", path.filename().string(), file.size(), crc);
}

// Of a model's folder: names, lengths, and the first and last MiB of each of its files. Not every byte: a teacher may
// have hundreds of gigabytes.
std::string model_digest(const fs::path& folder) {
  std::vector<std::string> files;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(folder, ignored)) {
    const std::string extension = entry.path().extension().string();
    if (entry.path().filename() == "config.json" || extension == ".safetensors") {
      files.push_back(head_and_tail_digest(entry.path()));
    }
  }
  std::sort(files.begin(), files.end());
  const std::string all = fmt::format("{}", fmt::join(files, " "));
  return fmt::format("{:08x}", io::crc32c(all.data(), all.size()));
}

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

std::map<std::string, std::string> deciding_keys(const recipe::Settings& settings) {
  std::map<std::string, std::string> keys;
  for (const recipe::Option& option : settings.table().options()) {
    if (!decides(option)) continue;
    keys[option.name] = option.kind == recipe::OptionKind::kList
                            ? fmt::format("{}", fmt::join(settings.list(option.name), " | "))
                            : settings.text(option.name);
  }
  return keys;
}

std::map<std::string, std::string> data_digests(const recipe::Settings& settings, const std::string& train,
                                                const std::string& validation) {
  std::map<std::string, std::string> digests = {{"data.train", train}, {"data.validation", validation}};
  for (const std::string role : {"teacher", "student"}) {
    const std::string& folder = settings.text(role + ".model");
    if (!folder.empty()) digests[role + ".model"] = model_digest(folder);
  }
  return digests;
}

std::map<std::string, std::string> build_identity(const recipe::Settings& settings) {
  return {{"limbeck", LIMBECK_VERSION},
          {"libtorch", TORCH_VERSION},
          {"processor", at::get_cpu_capability()},
          {"threads", std::to_string(at::get_num_threads())},
          {"reduce", settings.text("parallel.reduce")}};
}

void require_same_run(const recipe::Settings& settings, const RunState& saved, const RunState& now,
                      const std::string& where, std::vector<std::string>& notes) {
  const auto list = settings.list("resume.allow");
  const std::set<std::string> allowed(list.begin(), list.end());
  std::vector<std::string> refused, keys;
  const auto compare = [&](const auto& before, const auto& after, const std::string& of) {
    std::set<std::string> names;
    for (const auto& [name, value] : before) names.insert(name);
    for (const auto& [name, value] : after) names.insert(name);
    for (const std::string& name : names) {
      const auto old = before.find(name), fresh = after.find(name);
      const std::string was = old == before.end() ? "not set" : old->second;
      const std::string is = fresh == after.end() ? "not set" : fresh->second;
      if (was == is) continue;
      const std::string line =
          fmt::format("{}{} was {}, is {}", of, name, was.empty() ? "not set" : was, is.empty() ? "not set" : is);
      if (allowed.contains(name)) {
        notes.push_back("resumed with another recipe (--resume.allow): " + line);
      } else {
        refused.push_back(line);
        keys.push_back("--resume.allow=" + name);
      }
    }
  };
  compare(saved.recipe, now.recipe, "");
  compare(saved.data, now.data, "digest of ");
  if (refused.empty()) {
    for (const auto& [name, value] : now.build) {
      const auto old = saved.build.find(name);
      if (old == saved.build.end() || old->second == value) continue;
      notes.push_back(
          fmt::format("{} was {} when the checkpoint was saved and is {}: the bits may differ from an "
                      "uninterrupted run's",
                      name, old->second, value));
    }
    return;
  }
  throw WeightsError(
      fmt::format("{}: is of another run: {}: resume with the recipe in that folder, or allow the change "
                  "with {}",
                  where, fmt::join(refused, "; "), fmt::join(keys, " ")));
}

}  // namespace limbeck::loop
