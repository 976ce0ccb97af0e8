#include "modules/precision/policy.h"

#include <fmt/format.h>

#include <sstream>
#include <string_view>
#include <utility>
#include <vector>

#include "modules/errors.h"
#include "modules/nearest_name.h"

namespace limbeck::precision {

namespace {

// Whether all of text is what pattern says, both as sequences: `any` stands for any run of elements, another element
// for one that `fits` it. When a run proves too short, only the last one grows: no pattern takes more steps than
// pattern times text, where trying each run's length by itself takes as many as there are ways to divide the text.
template <class Sequence, class IsAny, class Fits>
bool sequence_matches(const Sequence& pattern, const Sequence& text, const IsAny& is_any, const Fits& fits) {
  constexpr size_t kNone = std::string_view::npos;
  size_t p = 0, t = 0, after_any = kNone, taken_to = 0;
  while (t < text.size()) {
    if (p < pattern.size() && is_any(pattern[p])) {
      after_any = ++p;
      taken_to = t;
    } else if (p < pattern.size() && fits(pattern[p], text[t])) {
      ++p, ++t;
    } else if (after_any != kNone) {
      p = after_any;
      t = ++taken_to;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && is_any(pattern[p])) ++p;
  return p == pattern.size();
}

// Within one segment: * is any run of characters.
bool segment_matches(std::string_view pattern, std::string_view text) {
  return sequence_matches(
      pattern, text, [](char c) { return c == '*'; }, [](char wanted, char got) { return wanted == got; });
}

std::pair<std::string_view, std::string_view> split_first(std::string_view path) {
  const size_t dot = path.find('.');
  if (dot == std::string_view::npos) return {path, {}};
  return {path.substr(0, dot), path.substr(dot + 1)};
}

std::vector<std::string_view> segments(std::string_view path) {
  std::vector<std::string_view> found;
  while (!path.empty()) {
    const auto [head, rest] = split_first(path);
    found.push_back(head);
    path = rest;
  }
  return found;
}

}  // namespace

bool matches(const std::string& pattern, const std::string& path) {
  return sequence_matches(
      segments(pattern), segments(path), [](std::string_view segment) { return segment == "**"; }, segment_matches);
}

Rule parse_rule(const std::string& text, const std::string& source) {
  std::istringstream words(text);
  std::string pattern, dtype, extra;
  if (!(words >> pattern >> dtype) || (words >> extra)) {
    throw UsageError(
        fmt::format("precision.rule \"{}\" ({}): wanted PATTERN DTYPE, for example "
                    "student.layers.*.mlp.* float16",
                    text, source));
  }
  try {
    return {pattern, dtype_from_name(dtype), source};
  } catch (const UsageError& error) {
    throw UsageError(fmt::format("precision.rule \"{}\" ({}): {}", text, source, error.what()));
  }
}

PrecisionPolicy::PrecisionPolicy(at::ScalarType dtype, c10::Device device, std::string source, std::vector<Rule> rules,
                                 std::optional<Quantization> quantization)
    : dtype_(dtype),
      device_(device),
      source_(std::move(source)),
      rules_(std::move(rules)),
      quantization_(std::move(quantization)),
      used_(rules_.size(), false) {}

Precision PrecisionPolicy::resolve(const std::string& path, Role role, const Precision* host) const {
  Precision result = host != nullptr ? *host : Precision{dtype_, dtype_, dtype_, dtype_, device_, source_};
  const bool beside_quantized = host != nullptr && host->quantized.has_value();
  if (beside_quantized) {
    result.quantized.reset();
    result.storage = result.compute = at::kFloat;
    result.source = fmt::format("{} host ({})", kernels::format_name(*host->quantized), host->source);
  } else if (host == nullptr && quantization_ && (role == Role::kAttention || role == Role::kMlp)) {
    result.quantized = quantization_->format;
    result.source = quantization_->source;
  }
  for (size_t i = 0; i < rules_.size(); ++i) {
    if (!matches(rules_[i].pattern, path)) continue;
    used_[i] = true;
    if (beside_quantized && rules_[i].dtype != at::kFloat) {
      throw UsageError(fmt::format(
          "precision.rule {} {} ({}) is for [{}], which belongs to a {} module and is float32 beside it: remove the "
          "rule, or the quantization",
          rules_[i].pattern, dtype_name(rules_[i].dtype), rules_[i].source, path,
          kernels::format_name(*host->quantized)));
    }
    result.quantized.reset();
    result.storage = result.compute = rules_[i].dtype;
    result.source = rules_[i].source;
  }
  resolved_paths_.push_back(path);
  return result;
}

void PrecisionPolicy::require_all_rules_used(const std::string& root) const {
  for (size_t i = 0; i < rules_.size(); ++i) {
    const bool ours = matches(std::string(split_first(rules_[i].pattern).first), root);
    if (!ours || used_[i]) continue;
    const std::string advice = offer_nearest(
        rules_[i].pattern, resolved_paths_, 3,
        {.before = "did you mean ", .behind = "?", .otherwise = "'limbeck check RECIPE' lists its modules"});
    throw UsageError(fmt::format("precision.rule {} ({}) matches no module of {}: {}", rules_[i].pattern,
                                 rules_[i].source, root, advice));
  }
}

}  // namespace limbeck::precision
