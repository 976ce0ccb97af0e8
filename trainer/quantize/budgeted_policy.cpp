#include "trainer/quantize/budgeted_policy.h"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

#include "modules/errors.h"

namespace limbeck::quantize {

namespace {

// What the modules of a group can all be stored in.
std::vector<size_t> formats_of(const FormatTable& table, const std::vector<size_t>& group) {
  std::vector<size_t> formats;
  for (size_t format = 0; format < table.formats().size(); ++format) {
    const bool all = std::all_of(group.begin(), group.end(),
                                 [&](size_t module) { return table.modules()[module].bytes[format].has_value(); });
    if (all) formats.push_back(format);
  }
  if (!formats.empty()) return formats;
  throw UsageError(fmt::format("{}: can be stored in none of the formats: add int8 or {} to --formats",
                               table.modules()[group.front()].path, kFloatFormat));
}

int64_t bytes_of(const FormatTable& table, const std::vector<size_t>& group, size_t format) {
  int64_t bytes = 0;
  for (const size_t module : group) bytes += *table.modules()[module].bytes[format];
  return bytes;
}

}  // namespace

std::string why_too_small(const FormatTable& table, const Budget& budget) {
  Choices items;
  for (const auto& group : table.groups()) {
    auto& choices = items.emplace_back();
    for (const size_t format : formats_of(table, group)) choices.push_back({bytes_of(table, group, format), 0});
  }
  const int64_t least = least_bytes(items) + table.rest_bytes(), allowed = budget.bytes(table.values());
  if (least <= allowed) return "";
  return fmt::format(
      "--budget=\"{}\" is {} bytes, but the least that this model takes is {} bytes, {} of them for what is not "
      "packed: --budget=\"{}\", or smaller --formats",
      budget.text(), allowed, least, table.rest_bytes(), budget.holding(least, table.values()));
}

BudgetedMix budgeted_mix(const FormatTable& table, const RowScore& scores, const Budget& budget) {
  if (const std::string why = why_too_small(table, budget); !why.empty()) throw UsageError(why);
  const auto targets = static_cast<double>(std::max<int64_t>(scores.targets, 1));
  std::vector<std::vector<size_t>> formats;
  Choices items;
  for (const auto& group : table.groups()) {
    formats.push_back(formats_of(table, group));
    auto& choices = items.emplace_back();
    for (const size_t format : formats.back()) {
      Choice choice{bytes_of(table, group, format), 0};
      for (const size_t module : group) choice.loss += scores.modules[module].losses[format] / targets;
      choices.push_back(choice);
    }
  }
  BudgetedMix found;
  found.allowed = budget.bytes(table.values());
  const auto allocation = allocate(items, found.allowed - table.rest_bytes());
  if (!allocation) throw std::logic_error("nothing fits into a budget that holds the least");
  for (size_t item = 0; item < items.size(); ++item) {
    const size_t format = formats[item][allocation->chosen[item]];
    for (const size_t module : table.groups()[item]) {
      const std::string& path = table.modules()[module].path;
      found.mix[path] = table.formats()[format].name;
      found.predicted[path] = scores.modules[module].losses[format] / targets;
    }
  }
  found.loss = allocation->loss;
  found.bytes = allocation->bytes + table.rest_bytes();
  return found;
}

}  // namespace limbeck::quantize
