// For benchmarks that time their contestants in turn by themselves.
#pragma once
#include <algorithm>
#include <chrono>
#include <functional>
#include <vector>

namespace limbeck::bench {

inline double seconds(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

inline double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

}  // namespace limbeck::bench
