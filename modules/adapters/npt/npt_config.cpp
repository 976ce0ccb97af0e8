#include "modules/adapters/npt/npt_config.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <string_view>
#include <vector>

#include "modules/errors.h"
#include "modules/io/tensor_name.h"

namespace limbeck::adapters {
namespace {

constexpr double kMostNptScale = 1e3;
constexpr std::array<std::string_view, 9> kNptKeys = {"base_model_name_or_path",
                                                      "inference_mode",
                                                      "kind",
                                                      "modulation",
                                                      "modulation_curve",
                                                      "peft_type",
                                                      "r",
                                                      "scale",
                                                      "task_type"};

template <class Value, size_t count>
using Words = std::array<std::pair<std::string_view, Value>, count>;

constexpr Words<NptKind, 2> kKinds = {{{"delta", NptKind::kDelta}, {"outer", NptKind::kOuter}}};
constexpr Words<Modulation, 3> kModulations = {{{"additive", Modulation::kAdditive},
                                                {"multiplicative", Modulation::kMultiplicative},
                                                {"both", Modulation::kBoth}}};
constexpr Words<ModulationCurve, 2> kCurves = {
    {{"neutral", ModulationCurve::kNeutral}, {"legacy", ModulationCurve::kLegacy}}};

template <class Value, size_t count>
Value word_at(const io::JsonFile& file, const std::string& key, const Words<Value, count>& words) {
  const std::string said = file.string(key);
  std::vector<std::string_view> known;
  for (const auto& [word, value] : words) {
    if (word == said) return value;
    known.push_back(word);
  }
  throw WeightsError(
      fmt::format("{}: {} = {}, wanted one of {}", file.where(), key, io::in_quotes(said), fmt::join(known, ", ")));
}

template <class Value, size_t count>
std::string word_of(Value value, const Words<Value, count>& words) {
  const auto found = std::find_if(words.begin(), words.end(), [&](const auto& one) { return one.second == value; });
  return std::string(found->first);
}

void refuse_unknown(const io::JsonFile& file) {
  for (const auto& entry : file.value().items()) {
    if (std::find(kNptKeys.begin(), kNptKeys.end(), entry.key()) != kNptKeys.end() || entry.value().is_null()) continue;
    throw WeightsError(fmt::format("{}: key {} is none of an NPT adapter's: wanted {}", file.where(),
                                   io::in_quotes(entry.key()), fmt::join(kNptKeys, ", ")));
  }
}

}  // namespace

NptOptions read_npt_config(const io::JsonFile& file) {
  refuse_unknown(file);
  NptOptions options;
  options.kind = word_at(file, "kind", kKinds);
  options.rank = file.integer("r", 1, kMostNptRank);
  options.scale = file.number_or("scale", options.scale, -kMostNptScale, kMostNptScale);
  if (options.kind == NptKind::kDelta) {
    options.modulation = word_at(file, "modulation", kModulations);
    if (file.has("modulation_curve")) options.curve = word_at(file, "modulation_curve", kCurves);
    return options;
  }
  for (const char* key : {"modulation", "modulation_curve"}) {
    if (!file.has(key)) continue;
    throw WeightsError(
        fmt::format("{}: {} is for kind delta, but kind is outer: take one of them out", file.where(), key));
  }
  return options;
}

std::string npt_config_text(const NptShape& shape, const std::string& base_model) {
  nlohmann::json config{{"peft_type", kNptType},
                        {"base_model_name_or_path", base_model},
                        {"kind", word_of(shape.kind, kKinds)},
                        {"r", shape.rank},
                        {"scale", shape.scale}};
  if (shape.kind == NptKind::kDelta) {
    config["modulation"] = word_of(shape.modulation, kModulations);
    config["modulation_curve"] = word_of(shape.curve, kCurves);
  }
  return config.dump(2) + "\n";
}

}  // namespace limbeck::adapters
