#include "modules/adapters/peft_config.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>
#include <cmath>
#include <regex>
#include <string_view>

#include "modules/errors.h"
#include "modules/io/tensor_name.h"

namespace limbeck::adapters {
namespace {

using nlohmann::json;

constexpr int64_t kMostRank = 1 << 16;
constexpr double kMostAlpha = 1e9;
constexpr size_t kMostOfPattern = 200;

// What says nothing about the arithmetic of a forward.
constexpr std::array<std::string_view, 30> kNoMatter = {
    "alpha_pattern",       "auto_mapping",      "base_model_name_or_path",
    "eva_config",          "exclude_modules",   "fan_in_fan_out",
    "feedforward_modules", "inference_mode",    "init_ia3_weights",
    "init_lora_weights",   "layers_pattern",    "layers_to_transform",
    "loftq_config",        "lora_alpha",        "lora_dropout",
    "megatron_config",     "megatron_core",     "peft_type",
    "peft_version",        "qalora_group_size", "r",
    "rank_pattern",        "revision",          "runtime_config",
    "target_modules",      "task_type",         "use_dora",
    "use_rslora",          "corda_config",      "lora_ga_config"};

bool says_nothing(const json& value) {
  return value.is_null() || value == false || value == 0 || value == "" || value == "none" ||
         (value.is_structured() && value.empty());
}

bool plain(const std::string& pattern) {
  return pattern.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-") == pattern.npos;
}

template <class Value>
const Value* found(const std::vector<std::pair<std::string, Value>>& patterns, const std::string& module) {
  for (const auto& [pattern, value] : patterns) {
    if (names_module(pattern, module)) return &value;
  }
  return nullptr;
}

void check_pattern(const std::string& pattern, const std::string& where) {
  try {
    if (pattern.size() > kMostOfPattern) throw std::regex_error(std::regex_constants::error_complexity);
    names_module(pattern, "");
  } catch (const std::regex_error&) {
    throw WeightsError(fmt::format("{}: pattern {} is no regular expression, or over {} characters", where,
                                   io::in_quotes(pattern), kMostOfPattern));
  }
}

}  // namespace

bool names_module(const std::string& pattern, const std::string& module) {
  if (plain(pattern)) {
    if (!module.ends_with(pattern)) return false;
    return module.size() == pattern.size() || module[module.size() - pattern.size() - 1] == '.';
  }
  return std::regex_match(module, std::regex("(?:.*\\.)?(?:" + pattern + ")"));
}

PeftConfig::PeftConfig(const std::filesystem::path& path) {
  const io::JsonFile file(path);
  const std::string type = file.string("peft_type");
  if (type != "LORA" && type != "IA3") {
    throw WeightsError(
        fmt::format("{}: peft_type is {}, wanted LORA or IA3, or NPT of our own", path.string(), io::in_quotes(type)));
  }
  kind_ = type == "LORA" ? PeftKind::kLora : PeftKind::kIa3;
  refuse_unsupported(file);
  if (kind_ == PeftKind::kIa3) return;
  dora_ = file.boolean_or("use_dora", false);
  rslora_ = file.boolean_or("use_rslora", false);
  rank_ = file.integer("r", 1, kMostRank);
  alpha_ = file.number_or("lora_alpha", 8, -kMostAlpha, kMostAlpha);
  if (file.has("rank_pattern")) {
    const io::JsonFile patterns = file.child("rank_pattern");
    for (const auto& entry : patterns.value().items()) {
      check_pattern(entry.key(), patterns.where());
      ranks_.emplace_back(entry.key(), patterns.integer(entry.key(), 1, kMostRank));
    }
  }
  if (file.has("alpha_pattern")) {
    const io::JsonFile patterns = file.child("alpha_pattern");
    for (const auto& entry : patterns.value().items()) {
      check_pattern(entry.key(), patterns.where());
      alphas_.emplace_back(entry.key(), patterns.number(entry.key(), -kMostAlpha, kMostAlpha));
    }
  }
}

void PeftConfig::refuse_unsupported(const io::JsonFile& file) const {
  std::vector<std::string> refused;
  for (const auto& entry : file.value().items()) {
    const bool no_matter = std::find(kNoMatter.begin(), kNoMatter.end(), entry.key()) != kNoMatter.end();
    if (!no_matter && !says_nothing(entry.value())) refused.push_back(entry.key() + " = " + entry.value().dump());
  }
  if (refused.empty()) return;
  throw WeightsError(fmt::format("{}: {} is not supported here: merge the adapter in PEFT and load the merged model",
                                 file.where(), fmt::join(refused, ", ")));
}

int64_t PeftConfig::rank(const std::string& module) const {
  const int64_t* own = found(ranks_, module);
  return own != nullptr ? *own : rank_;
}

double PeftConfig::scale(const std::string& module) const {
  const double* own = found(alphas_, module);
  const double alpha = own != nullptr ? *own : alpha_, rank = static_cast<double>(this->rank(module));
  return alpha / (rslora_ ? std::sqrt(rank) : rank);
}

}  // namespace limbeck::adapters
