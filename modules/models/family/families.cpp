// Which families there are, and whose a config.json is; the rows that ship with Limbeck are in family.cpp.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <utility>

#include "modules/errors.h"
#include "modules/models/family/config_reader.h"
#include "modules/models/family/family.h"
#include "modules/nearest_name.h"

namespace limbeck::models {

namespace {

std::deque<Family>& every_family() {
  static std::deque<Family> table = shipped_families();
  return table;
}

void require_free(const Family& family, const std::string& architecture) {
  for (const Family& known : every_family()) {
    const auto& taken = known.architectures;
    if (std::find(taken.begin(), taken.end(), architecture) == taken.end()) continue;
    throw UsageError(fmt::format("models: {} wants the architecture {}, which {} has: name it otherwise in config.json",
                                 family.name, architecture, known.name));
  }
}

}  // namespace

const std::deque<Family>& families() { return every_family(); }

void add_family(Family family) {
  if (family.name.empty() || family.architectures.empty() || !family.read) {
    throw UsageError(
        fmt::format("models: the family \"{}\" has {} architectures and {} reader: wanted a name, one "
                    "architecture of config.json at least, and what reads it",
                    family.name, family.architectures.size(), family.read ? "a" : "no"));
  }
  for (const Family& known : every_family()) {
    if (known.name != family.name) continue;
    throw UsageError(fmt::format("models: {} is registered twice; give one of them another name", family.name));
  }
  for (const std::string& architecture : family.architectures) require_free(family, architecture);
  every_family().push_back(std::move(family));
}

std::vector<NamedKind> family_names() {
  std::vector<NamedKind> names;
  for (const Family& family : families()) names.push_back({family.name, family.summary});
  return names;
}

ModelConfig read_model_config(const std::filesystem::path& folder) {
  const io::JsonFile config(folder / "config.json");
  std::vector<std::string> known;
  std::string name = "absent";
  if (config.has("architectures") && config.value().at("architectures").is_array() &&
      config.value().at("architectures").size() == 1 && config.value().at("architectures")[0].is_string()) {
    name = config.value().at("architectures")[0].get<std::string>();
  }
  for (const Family& family : families()) {
    for (const std::string& architecture : family.architectures) {
      known.push_back(architecture);
      if (architecture != name) continue;
      ModelConfig result{family.read(config, name), &family, folder, quantization::layout_of(config)};
      Architecture& a = result.architecture;
      a.family = family.name;
      a.initializer_range = config.number_or("initializer_range", 0.02, 0.0, 10.0);
      if (a.initializer_range == 0.0) a.initializer_range = 0.02;  // as transformers reads a 0
      a.dtype = config.string_or("dtype", config.string_or("torch_dtype", ""));
      if (a.heads > 0 && a.hidden % a.heads != 0 && !config.has("head_dim")) {
        throw WeightsError(
            fmt::format("{}: hidden size {} over {} heads, wanted a multiple", config.where(), a.hidden, a.heads));
      }
      if (a.resolvent.heads == 0 && config.has(kBkActivations)) {
        throw WeightsError(fmt::format("{}: \"{}\" is for what has a resolvent, and {} has none: remove the key",
                                       config.where(), kBkActivations, family.name));
      }
      read_end_of_sequence(config, a);
      const std::filesystem::path generation = folder / "generation_config.json";
      std::error_code ignored;
      if (std::filesystem::exists(generation, ignored)) read_end_of_sequence(io::JsonFile(generation), a);
      return result;
    }
  }
  throw WeightsError(
      fmt::format("{}: \"architectures\" = {} is not supported: {}wanted one of {}; a family of your own "
                  "comes with --plugin",
                  config.where(), name, offer_nearest(name, known, 1, {.before = "did you mean ", .behind = "? "}),
                  fmt::join(known, ", ")));
}

}  // namespace limbeck::models
