// The mix of least predicted loss within a budget: modules that must be in one format are one item, exactly solved from
// measured scores. One set of scores answers every budget.
#pragma once
#include "trainer/quantize/budget.h"
#include "trainer/quantize/costs.h"
#include "trainer/quantize/format_table.h"
#include "trainer/quantize/score_meter.h"

namespace limbeck::quantize {

struct BudgetedMix {
  Mix mix;
  std::map<std::string, double> predicted;  // by module: nats a target
  double loss = 0;                          // all of them
  int64_t cost = 0, allowed = 0;            // of the whole model, in what the budget counts
};

// Why nothing fits into it, and what the least is, in its unit; "": something does. `costs` count as it does.
std::string why_too_small(const FormatTable& table, const Costs& costs, const Budget& budget);

// UsageError where the budget is too small.
BudgetedMix budgeted_mix(const FormatTable& table, const Costs& costs, const RowScore& scores, const Budget& budget);

}  // namespace limbeck::quantize
