#include "trainer/session/run_identity.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/version.h>

#include <algorithm>
#include <filesystem>
#include <set>

#include "modules/errors.h"
#include "modules/io/crc32c.h"
#include "modules/io/input_file.h"
#include "trainer/build/attention_library.h"

namespace limbeck::session {
namespace {

namespace fs = std::filesystem;

// Keys that decide where things go, how often something is done beside the updates, or how fast: never a bit of them.
bool decides(const recipe::Option& option) {
  static const std::set<std::string> kFree = {
      "run",           "train.log_every",   "train.progress", "train.checkpoint_activations",
      "data.prefetch", "train.cuda_graphs", "threads",        "quiet",
      "color"};
  const auto begins = [&](const char* prefix) { return option.name.starts_with(prefix); };
  if (option.flag_only || kFree.contains(option.name)) return false;
  return !begins("checkpoint.") && !begins("parallel.") && !begins("eval.") && !begins("generation.") &&
         !begins("profile.");
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

std::map<std::string, std::string> deciding_keys(const recipe::Settings& settings) {
  std::map<std::string, std::string> keys;
  for (const recipe::Option& option : settings.table().options()) {
    if (!decides(option)) continue;
    keys[option.name] = option.kind == recipe::OptionKind::kList
                            ? fmt::format("{}", fmt::join(settings.list(option.name), " | "))
                            : settings.text(option.name);
    // What computes, wherever it lies.
    if (option.name == build::kFlashAttention3 && !keys[option.name].empty())
      keys[option.name] = head_and_tail_digest(settings.path(option.name));
  }
  return keys;
}

std::map<std::string, std::string> default_values(const recipe::Settings& settings) {
  std::map<std::string, std::string> values;
  for (const recipe::Option& option : settings.table().options()) values[option.name] = option.fallback;
  return values;
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

}  // namespace

RunIdentity identity_of(const recipe::Settings& settings, const std::string& train, const std::string& validation) {
  return {deciding_keys(settings), data_digests(settings, train, validation), build_identity(settings),
          default_values(settings)};
}

void require_same_run(const RunIdentity& saved, const RunIdentity& now, const std::vector<std::string>& allowed,
                      const std::string& where, std::vector<std::string>& notes) {
  const std::set<std::string> free(allowed.begin(), allowed.end());
  std::vector<std::string> refused, keys;
  const auto compare = [&](const auto& before, const auto& after, const std::string& of) {
    std::set<std::string> names;
    for (const auto& [name, value] : before) names.insert(name);
    for (const auto& [name, value] : after) names.insert(name);
    for (const std::string& name : names) {
      const auto old = before.find(name), fresh = after.find(name);
      const auto unknown = now.defaults.find(name);
      const std::string was = old != before.end()             ? old->second
                              : unknown != now.defaults.end() ? unknown->second
                                                              : "not set";
      const std::string is = fresh == after.end() ? "not set" : fresh->second;
      if (was == is) continue;
      const std::string line =
          fmt::format("{}{} was {}, is {}", of, name, was.empty() ? "not set" : was, is.empty() ? "not set" : is);
      if (free.contains(name)) {
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

}  // namespace limbeck::session
