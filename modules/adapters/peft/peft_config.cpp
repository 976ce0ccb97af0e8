#include "modules/adapters/peft/peft_config.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <string_view>

#include "modules/errors.h"
#include "modules/io/tensor_name.h"

namespace limbeck::adapters {
namespace {

using nlohmann::json;

constexpr size_t kMostOfName = 200;        // of a parameter
constexpr size_t kMostPatterns = 1 << 16;  // each is asked about every module
constexpr size_t kMostSteps = 100'000;     // of all their automata together

// What says nothing about the arithmetic of a forward.
constexpr std::array<std::string_view, 31> kNoMatter = {
    "alpha_pattern",       "auto_mapping",      "base_model_name_or_path",
    "eva_config",          "exclude_modules",   "fan_in_fan_out",
    "feedforward_modules", "inference_mode",    "init_ia3_weights",
    "init_lora_weights",   "layers_pattern",    "layers_to_transform",
    "loftq_config",        "lora_alpha",        "lora_dropout",
    "megatron_config",     "megatron_core",     "peft_type",
    "peft_version",        "qalora_group_size", "r",
    "rank_pattern",        "revision",          "runtime_config",
    "target_modules",      "task_type",         "use_dora",
    "use_rslora",          "corda_config",      "lora_ga_config",
    "target_parameters"};

bool says_nothing(const json& value) {
  return value.is_null() || value == false || value == 0 || value == "" || value == "none" ||
         (value.is_structured() && value.empty());
}

template <class Value>
Value value_of(const ByPattern<Value>& patterns, const std::string& module, Value fallback) {
  for (const auto& [pattern, value] : patterns) {
    if (pattern.names(module)) return value;
  }
  return fallback;
}

// The object `key`, each member read by `read(patterns, its key)`.
template <class Value, class Read>
ByPattern<Value> read_patterns(const io::JsonFile& file, const std::string& key, const Read& read) {
  ByPattern<Value> found;
  if (!file.has(key)) return found;
  const io::JsonFile patterns = file.child(key);
  if (patterns.value().size() > kMostPatterns) {
    throw WeightsError(
        fmt::format("{}: {} patterns, wanted at most {}", patterns.where(), patterns.value().size(), kMostPatterns));
  }
  size_t steps = 0;
  for (const auto& entry : patterns.value().items()) {
    const ModulePattern pattern(entry.key());
    if (!pattern.fault().empty()) throw WeightsError(patterns.where() + ": " + pattern.fault());
    steps += pattern.steps();
    if (steps > kMostSteps) {
      throw WeightsError(fmt::format("{}: its regular expressions are too large together: name the modules plainly",
                                     patterns.where()));
    }
    found.emplace_back(pattern, read(patterns, entry.key()));
  }
  return found;
}

void refuse_unsupported(const io::JsonFile& file) {
  std::vector<std::string> refused;
  for (const auto& entry : file.value().items()) {
    const bool no_matter = std::find(kNoMatter.begin(), kNoMatter.end(), entry.key()) != kNoMatter.end();
    if (!no_matter && !says_nothing(entry.value())) refused.push_back(entry.key() + " = " + entry.value().dump());
  }
  if (refused.empty()) return;
  throw WeightsError(fmt::format("{}: {} is not supported here: merge the adapter in PEFT and load the merged model",
                                 file.where(), fmt::join(refused, ", ")));
}

std::vector<std::string> read_parameters(const io::JsonFile& file, const PeftConfig& config) {
  std::vector<std::string> found;
  if (!file.has("target_parameters") || file.value()["target_parameters"].is_null()) return found;
  const json& list = file.value()["target_parameters"];
  const bool strings = list.is_array() && std::all_of(list.begin(), list.end(), [](const json& one) {
                         return one.is_string() && one.get_ref<const std::string&>().size() <= kMostOfName;
                       });
  if (!strings) throw WeightsError(file.where() + ": target_parameters is " + list.dump() + ", wanted a list of names");
  for (const json& one : list) found.push_back(one.get<std::string>());
  if (found.empty() || config.kind_name() == "lora") return found;
  throw WeightsError(fmt::format("{}: target_parameters = {} with {}: PEFT has only LoRA on parameters", file.where(),
                                 list.dump(), config.kind_name()));
}

}  // namespace

PeftConfig read_peft_config(const std::filesystem::path& path) {
  const io::JsonFile file(path);
  const std::string type = file.string("peft_type");
  if (type != "LORA" && type != "IA3") {
    throw WeightsError(
        fmt::format("{}: peft_type is {}, wanted LORA or IA3, or NPT of our own; another kind comes with --plugin",
                    path.string(), io::in_quotes(type)));
  }
  PeftConfig config;
  config.kind = type == "LORA" ? PeftKind::kLora : PeftKind::kIa3;
  refuse_unsupported(file);
  if (config.kind == PeftKind::kLora) config.dora = file.boolean_or("use_dora", false);
  config.parameters = read_parameters(file, config);
  if (config.kind == PeftKind::kIa3) return config;
  config.rslora = file.boolean_or("use_rslora", false);
  config.rank = file.integer("r", 1, kMostRank);
  config.alpha = file.number_or("lora_alpha", 8, -kMostAlpha, kMostAlpha);
  config.dropout = file.number_or("lora_dropout", 0, 0, 1);
  if (config.dropout == 1) throw WeightsError(path.string() + ": lora_dropout is 1, which leaves nothing: wanted less");
  config.ranks = read_patterns<int64_t>(file, "rank_pattern", [](const io::JsonFile& patterns, const std::string& key) {
    return patterns.integer(key, 1, kMostRank);
  });
  config.alphas =
      read_patterns<double>(file, "alpha_pattern", [](const io::JsonFile& patterns, const std::string& key) {
        return patterns.number(key, -kMostAlpha, kMostAlpha);
      });
  return config;
}

std::string PeftConfig::kind_name() const {
  if (kind == PeftKind::kIa3) return "ia3";
  return dora ? "dora" : "lora";
}

int64_t PeftConfig::rank_of(const std::string& module) const { return value_of(ranks, module, rank); }

double PeftConfig::scale_of(const std::string& module) const {
  const double own_rank = static_cast<double>(rank_of(module));
  return value_of(alphas, module, alpha) / (rslora ? std::sqrt(own_rank) : own_rank);
}

}  // namespace limbeck::adapters
