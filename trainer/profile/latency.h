// What many passes took, in the few numbers that are compared.
#pragma once
#include <cstdint>
#include <functional>
#include <vector>

namespace limbeck::profile {

struct Latency {
  double mean = 0, p50 = 0, p95 = 0, std = 0;  // milliseconds, over all passes of all trials
  std::vector<double> trials;                  // the mean of each
  int64_t passes = 0;
};

// Of sorted values, between neighbours by distance, as numpy's default; share: 0.5 is the median.
double percentile(const std::vector<double>& sorted, double share);
// One vector of milliseconds a trial.
Latency summarize(const std::vector<std::vector<double>>& trials);

struct Repetitions {
  int64_t warmup = 50, measured = 500, trials = 5;
  // Of the measured passes together, a part for each trial, which has one pass at least; 0: no end but their number.
  double most_seconds = 0;
};

// `pass` returns when what it started is done, on a GPU too.
Latency measure(const Repetitions& repetitions, const std::function<void()>& pass);

}  // namespace limbeck::profile
