// What adapter_config.json of PEFT says about each module: read with refusals, made by a recipe, and written.
#pragma once
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "modules/adapters/peft/module_pattern.h"
#include "modules/io/json_file.h"

namespace limbeck::adapters {

enum class PeftKind { kLora, kIa3 };

// Values of modules by name, the first pattern that names a module decides.
template <class Value>
using ByPattern = std::vector<std::pair<ModulePattern, Value>>;

struct PeftConfig {
  PeftKind kind = PeftKind::kLora;
  bool dora = false, rslora = false;
  int64_t rank = 0;
  double alpha = 0;
  double dropout = 0;  // of what LoRA and DoRA read in training, on linear modules
  ByPattern<int64_t> ranks;
  ByPattern<double> alphas;
  // Stacked weights of experts, as PEFT's target_parameters names them; whoever reads a folder needs them, no one else.
  std::vector<std::string> parameters = {};

  std::string kind_name() const;  // "lora", "dora", "ia3"
  // By the module's name in the Hugging Face model.
  int64_t rank_of(const std::string& module) const;
  double scale_of(const std::string& module) const;
};

// WeightsError for what PEFT can do and this cannot, by the name of the option.
PeftConfig read_peft_config(const std::filesystem::path& path);

inline constexpr int64_t kMostRank = 1 << 16;
inline constexpr double kMostAlpha = 1e9;

}  // namespace limbeck::adapters
