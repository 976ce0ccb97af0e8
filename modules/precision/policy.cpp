#include "modules/precision/policy.h"

#include <fmt/format.h>

#include <sstream>
#include <string_view>
#include <utility>

#include "modules/errors.h"
#include "modules/nearest_name.h"

namespace limbeck::precision {

namespace {

// Within one segment: * is any run of characters.
bool segment_matches(std::string_view pattern, std::string_view text) {
  if (pattern.empty()) return text.empty();
  if (pattern[0] != '*')
    return !text.empty() && pattern[0] == text[0] && segment_matches(pattern.substr(1), text.substr(1));
  for (size_t skip = 0; skip <= text.size(); ++skip) {
    if (segment_matches(pattern.substr(1), text.substr(skip))) return true;
  }
  return false;
}

std::pair<std::string_view, std::string_view> split_first(std::string_view path) {
  const size_t dot = path.find('.');
  if (dot == std::string_view::npos) return {path, {}};
  return {path.substr(0, dot), path.substr(dot + 1)};
}

bool path_matches(std::string_view pattern, std::string_view path) {
  if (pattern.empty()) return path.empty();
  const auto [pattern_head, pattern_rest] = split_first(pattern);
  if (pattern_head == "**") {
    if (path_matches(pattern_rest, path)) return true;
    return !path.empty() && path_matches(pattern, split_first(path).second);
  }
  if (path.empty()) return false;
  const auto [path_head, path_rest] = split_first(path);
  return segment_matches(pattern_head, path_head) && path_matches(pattern_rest, path_rest);
}

}  // namespace

bool matches(const std::string& pattern, const std::string& path) { return path_matches(pattern, path); }

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
    const auto near = nearest_names(rules_[i].pattern, resolved_paths_, 3);
    throw UsageError(fmt::format("precision.rule {} ({}) matches no module of {}: did you mean {}?", rules_[i].pattern,
                                 rules_[i].source, root, fmt::join(near, ", ")));
  }
}

}  // namespace limbeck::precision
