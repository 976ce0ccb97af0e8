#include "trainer/profile/latency.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

namespace limbeck::profile {
namespace {

using PassClock = std::chrono::steady_clock;

double milliseconds_since(PassClock::time_point begin) {
  return std::chrono::duration<double, std::milli>(PassClock::now() - begin).count();
}

double mean_of(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

}  // namespace

double percentile(const std::vector<double>& sorted, double share) {
  const double place = share * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<size_t>(place);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (sorted[above] - sorted[below]) * (place - static_cast<double>(below));
}

Latency summarize(const std::vector<std::vector<double>>& trials) {
  Latency result;
  std::vector<double> all;
  for (const auto& trial : trials) {
    if (trial.empty()) continue;
    result.trials.push_back(mean_of(trial));
    all.insert(all.end(), trial.begin(), trial.end());
  }
  if (all.empty()) return result;
  std::sort(all.begin(), all.end());
  result.passes = static_cast<int64_t>(all.size());
  result.mean = mean_of(all);
  result.p50 = percentile(all, 0.5);
  result.p95 = percentile(all, 0.95);
  double squares = 0;
  for (const double value : all) squares += (value - result.mean) * (value - result.mean);
  result.std = all.size() > 1 ? std::sqrt(squares / static_cast<double>(all.size() - 1)) : 0;
  return result;
}

Latency measure(const Repetitions& repetitions, const std::function<void()>& pass) {
  // Warming up is for caches and clocks, and needs no longer than a tenth of what is measured may take.
  const double most = repetitions.most_seconds * 1000;
  const auto warm = PassClock::now();
  for (int64_t i = 0; i < repetitions.warmup; ++i) {
    pass();
    if (most > 0 && milliseconds_since(warm) > most / 10) break;
  }
  std::vector<std::vector<double>> trials;
  for (int64_t trial = 0; trial < repetitions.trials; ++trial) {
    std::vector<double>& times = trials.emplace_back();
    // Each trial has its part of the time, so that a slow machine has as many trials as a fast one.
    const double share = most / static_cast<double>(repetitions.trials);
    const auto since = PassClock::now();
    for (int64_t i = 0; i < repetitions.measured; ++i) {
      const auto start = PassClock::now();
      pass();
      times.push_back(milliseconds_since(start));
      if (most > 0 && milliseconds_since(since) > share) break;
    }
  }
  return summarize(trials);
}

}  // namespace limbeck::profile
