#include "modules/precision/policy.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
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

Storage storage_from_name(const std::string& name) {
  const auto format = kernels::find_format(name);
  if (format) return *format;
  try {
    return dtype_from_name(name);
  } catch (const UsageError& error) {
    throw UsageError(fmt::format("{}; or a packed one: {}", error.what(), fmt::join(kernels::format_names(), ", ")));
  }
}

// A lookup has no product, and the loss of a head is that of its unpacked weight.
void require_static_codes(const Precision& resolved, const std::string& path, Role role) {
  if (!resolved.quantized || !resolved.quantized->dynamic) return;
  const bool for_cpu = resolved.quantized->kind == kernels::CodeKind::kInt4 || role == Role::kExpert;
  if (for_cpu && resolved.device.is_cuda()) {
    const std::string name = kernels::format_name(*resolved.quantized);
    throw UsageError(
        fmt::format("[{}] is to be {} ({}) on {}, which {} for the CPU alone: say {} there, or set device = cpu", path,
                    name, resolved.source, resolved.device.str(), role == Role::kExpert ? "of experts is" : "is",
                    name.substr(0, name.rfind("-dynamic"))));
  }
  if (packable_in(role, *resolved.quantized)) return;
  throw UsageError(
      fmt::format("[{}] is to be {} ({}), which quantizes the inputs of a product too, and is for linear modules of "
                  "attention and MLP and experts "
                  "alone: say int8 for a head or an embedding",
                  path, kernels::format_name(*resolved.quantized), resolved.source));
}

}  // namespace

bool matches(const std::string& pattern, const std::string& path) {
  return sequence_matches(
      segments(pattern), segments(path), [](std::string_view segment) { return segment == "**"; }, segment_matches);
}

Rule parse_rule(const std::string& text, const std::string& source) {
  std::istringstream words(text);
  std::string pattern, storage, extra;
  if (!(words >> pattern >> storage) || (words >> extra)) {
    throw UsageError(
        fmt::format("precision.rule \"{}\" ({}): wanted PATTERN DTYPE or PATTERN FORMAT, for example "
                    "student.layers.*.mlp.* float16",
                    text, source));
  }
  try {
    return {pattern, storage_from_name(storage), source};
  } catch (const UsageError& error) {
    throw UsageError(fmt::format("precision.rule \"{}\" ({}): {}", text, source, error.what()));
  }
}

void require_roots(const std::vector<Rule>& rules, const std::vector<std::string>& roots) {
  for (const Rule& rule : rules) {
    const std::string first(split_first(rule.pattern).first);
    const auto fits = [&](const std::string& root) { return first == "**" || matches(first, root); };
    if (std::any_of(roots.begin(), roots.end(), fits)) continue;
    throw UsageError(fmt::format(
        "precision.rule {} ({}) begins with \"{}\", where no module is: wanted {} as its first part, for example {}.{}",
        rule.pattern, rule.source, first, fmt::join(roots, " or "), roots.front(), rule.pattern));
  }
}

bool packable(Role role) {
  return packed_by_default(role) || role == Role::kEmbedding || role == Role::kHead || role == Role::kBkCore;
}

bool packable_in(Role role, kernels::QuantizedFormat format) {
  return packable(role) && (!format.dynamic || packed_by_default(role));
}

bool packed_by_default(Role role) { return role == Role::kAttention || role == Role::kMlp || role == Role::kExpert; }

Packing pack_all(kernels::QuantizedFormat format, std::string source) {
  return {[format](const std::string&, Role role) {
            return packed_by_default(role) ? std::optional(format) : std::nullopt;
          },
          std::move(source)};
}

PrecisionPolicy::PrecisionPolicy(at::ScalarType dtype, c10::Device device, std::string source, std::vector<Rule> rules,
                                 Packing packing)
    : dtype_(dtype),
      device_(device),
      source_(std::move(source)),
      rules_(std::move(rules)),
      packing_(std::move(packing)),
      used_(rules_.size(), false),
      unpackable_(rules_.size(), false) {}

PrecisionPolicy PrecisionPolicy::with(const std::vector<Rule>& more) const {
  std::vector<Rule> rules = rules_;
  rules.insert(rules.end(), more.begin(), more.end());
  return PrecisionPolicy(dtype_, device_, source_, std::move(rules), packing_);
}

Precision PrecisionPolicy::resolve(const std::string& path, Role role, const Precision* host) const {
  Precision result = host != nullptr ? *host : Precision{dtype_, dtype_, dtype_, dtype_, device_, source_};
  const bool beside_packed = host != nullptr && host->quantized.has_value();
  if (beside_packed) {
    result.quantized.reset();
    result.storage = result.compute = at::kFloat;
    result.source = fmt::format("{} host ({})", kernels::format_name(*host->quantized), host->source);
  } else if (host == nullptr) {
    if (packing_.format_of) result.quantized = packing_.format_of(std::string(split_first(path).second), role);
    if (result.quantized) result.source = packing_.source;
  }
  for (size_t i = 0; i < rules_.size(); ++i) {
    const Rule& rule = rules_[i];
    if (!matches(rule.pattern, path)) continue;
    if (const auto* format = std::get_if<kernels::QuantizedFormat>(&rule.storage)) {
      if (host != nullptr || !packable(role)) {
        unpackable_[i] = true;
        continue;
      }
      result.storage = result.compute = dtype_;
      result.quantized = *format;
    } else {
      const at::ScalarType dtype = std::get<at::ScalarType>(rule.storage);
      if (beside_packed && dtype != at::kFloat) {
        throw UsageError(fmt::format(
            "precision.rule {} {} ({}) is for [{}], which belongs to a {} module and is float32 beside it: remove the "
            "rule, or the quantization",
            rule.pattern, dtype_name(dtype), rule.source, path, kernels::format_name(*host->quantized)));
      }
      result.quantized.reset();
      result.storage = result.compute = dtype;
    }
    used_[i] = true;
    result.source = rule.source;
  }
  require_static_codes(result, path, role);
  resolved_paths_.push_back(path);
  return result;
}

void PrecisionPolicy::require_all_rules_used(const std::string& root) const {
  for (size_t i = 0; i < rules_.size(); ++i) {
    const Rule& rule = rules_[i];
    const bool ours = matches(std::string(split_first(rule.pattern).first), root);
    if (!ours || used_[i]) continue;
    if (unpackable_[i]) {
      throw UsageError(fmt::format(
          "precision.rule {} {} ({}) packs no weight: of the modules that it matches, none is a linear one of "
          "attention, MLP or BK-Core, experts, a head or an embedding, which alone can be packed: name such a module, "
          "or a "
          "dtype",
          rule.pattern, kernels::format_name(std::get<kernels::QuantizedFormat>(rule.storage)), rule.source));
    }
    const std::string advice = offer_nearest(
        rule.pattern, resolved_paths_, 3,
        {.before = "did you mean ", .behind = "?", .otherwise = "'limbeck check RECIPE' lists its modules"});
    throw UsageError(
        fmt::format("precision.rule {} ({}) matches no module of {}: {}", rule.pattern, rule.source, root, advice));
  }
}

}  // namespace limbeck::precision
