#include "trainer/objective/weights.h"

#include <fmt/format.h>

#include <algorithm>

#include "modules/errors.h"

namespace limbeck::objective {

namespace {

using recipe::Ramp;
using recipe::TermRow;

double given_or(const recipe::Settings& settings, const std::string& name, double fallback) {
  return settings.given(name) ? settings.number(name) : fallback;
}

double ramped(double begin, double end, double fraction) {
  if (fraction >= end) return 1.0;
  return fraction <= begin ? 0.0 : (fraction - begin) / (end - begin);
}

double full_weight(const recipe::Settings& settings, const TermRow& row, bool headless, bool curriculum) {
  if (headless && row.of_a_head) return 0.0;
  const std::string key = std::string("objective.") + row.key;
  if (*row.fallback != 0) return settings.number(key);
  return given_or(settings, key, std::max(headless ? row.headless : 0.0, curriculum ? row.in_curriculum : 0.0));
}

struct Span {
  double begin, end;
};

Span span_of(const recipe::Settings& settings, Ramp ramp) {
  if (ramp == Ramp::kKd) return {0.0, settings.number("objective.curriculum_kd_until")};
  const char* name = ramp == Ramp::kFeature ? "feature" : ramp == Ramp::kLayer ? "layer" : "contrastive";
  const std::string key = fmt::format("objective.curriculum_{}", name);
  const Span span{settings.number(key + "_from"), settings.number(key + "_until")};
  if (span.begin <= span.end) return span;
  throw UsageError(fmt::format("{0}_from = {1} is after {0}_until = {2} {3}: exchange them", key, span.begin, span.end,
                               settings.where(key + "_until")));
}

}  // namespace

TermWeights::TermWeights(const recipe::Settings& settings, bool headless) {
  const bool curriculum = settings.text("objective.curriculum") == "s2";
  ce_follows_kd_ = !headless && !settings.given("objective.ce_weight");
  for (const TermRow& row : recipe::kTermRows) {
    Weight& weight = weights_.at(static_cast<size_t>(row.kind));
    weight.full = full_weight(settings, row, headless, curriculum);
    if (row.ramp == Ramp::kNone) continue;
    const Span span = span_of(settings, row.ramp);  // is refused without the curriculum too
    if (!curriculum) continue;
    weight.begin = span.begin;
    weight.end = span.end;
    if (row.ramp == Ramp::kKd) weight.start = std::min(settings.number("objective.curriculum_kd_start"), weight.full);
  }
  temperature_begin_ = given_or(settings, "objective.temperature", curriculum ? 2.0 : 1.0);
  const bool falls = curriculum && !settings.given("objective.temperature");
  temperature_end_ = given_or(settings, "objective.temperature_end", falls ? 1.5 : temperature_begin_);
}

std::vector<double> TermWeights::all(double fraction) const {
  std::vector<double> found{temperature(fraction)};
  for (const TermRow& row : recipe::kTermRows) found.push_back(at(row.kind, fraction));
  return found;
}

double TermWeights::full(TermKind kind) const {
  return kind == TermKind::kCe && ce_follows_kd_ ? 1.0 - full(TermKind::kKd) : of(kind).full;
}

double TermWeights::at(TermKind kind, double fraction) const {
  if (kind == TermKind::kCe && ce_follows_kd_) return 1.0 - at(TermKind::kKd, fraction);
  const Weight& weight = of(kind);
  return weight.start + (weight.full - weight.start) * ramped(weight.begin, weight.end, fraction);
}

bool TermWeights::needs_teacher() const {
  return std::any_of(recipe::kTermRows.begin(), recipe::kTermRows.end(),
                     [&](const TermRow& row) { return row.needs_teacher && full(row.kind) > 0; });
}

double TermWeights::temperature(double fraction) const {
  return temperature_begin_ + (temperature_end_ - temperature_begin_) * std::clamp(fraction, 0.0, 1.0);
}

}  // namespace limbeck::objective
