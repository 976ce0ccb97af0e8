#include "trainer/quantize/budgeted_policy.h"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

#include "modules/errors.h"

namespace limbeck::quantize {

namespace {

// What the modules of a group can all be stored in.
std::vector<size_t> formats_of(const FormatTable& table, const Costs& costs, const std::vector<size_t>& group) {
  std::vector<size_t> formats;
  for (size_t format = 0; format < table.formats().size(); ++format) {
    const bool all =
        std::all_of(group.begin(), group.end(), [&](size_t module) { return costs.of(module, format).has_value(); });
    if (all) formats.push_back(format);
  }
  if (!formats.empty()) return formats;
  throw UsageError(fmt::format("{}: can be stored in none of the formats: add int8 or {} to --formats",
                               table.modules()[group.front()].path, kFloatFormat));
}

int64_t cost_of(const Costs& costs, const std::vector<size_t>& group, size_t format) {
  int64_t cost = 0;
  for (const size_t module : group) cost += *costs.of(module, format);
  return cost;
}

}  // namespace

std::string why_too_small(const FormatTable& table, const Costs& costs, const Budget& budget) {
  if (!costs.counts(budget)) throw std::logic_error("the costs are not what the budget counts");
  Choices items;
  for (const auto& group : table.groups()) {
    auto& choices = items.emplace_back();
    for (const size_t format : formats_of(table, costs, group)) choices.push_back({cost_of(costs, group, format), 0});
  }
  const int64_t least = least_bytes(items) + costs.rest(), allowed = budget.allowed(table.values());
  if (least <= allowed) return "";
  return fmt::format(
      "--budget=\"{}\" is {}, but the least that this model takes is {}, {} of them for what is not "
      "packed: --budget=\"{}\", or {} --formats",
      budget.text(), costs.said(allowed), costs.said(least), costs.said(costs.rest()),
      budget.holding(least, table.values()), budget.is_time() ? "quicker" : "smaller");
}

BudgetedMix budgeted_mix(const FormatTable& table, const Costs& costs, const RowScore& scores, const Budget& budget) {
  if (const std::string why = why_too_small(table, costs, budget); !why.empty()) throw UsageError(why);
  const auto targets = static_cast<double>(std::max<int64_t>(scores.targets, 1));
  std::vector<std::vector<size_t>> formats;
  Choices items;
  for (const auto& group : table.groups()) {
    formats.push_back(formats_of(table, costs, group));
    auto& choices = items.emplace_back();
    for (const size_t format : formats.back()) {
      Choice choice{cost_of(costs, group, format), 0};
      for (const size_t module : group) choice.loss += scores.modules[module].losses[format] / targets;
      choices.push_back(choice);
    }
  }
  BudgetedMix found;
  found.allowed = budget.allowed(table.values());
  const auto allocation = allocate(items, found.allowed - costs.rest());
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
  found.cost = allocation->bytes + costs.rest();
  return found;
}

}  // namespace limbeck::quantize
