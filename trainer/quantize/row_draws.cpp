#include "trainer/quantize/row_draws.h"

#include <algorithm>

#include "kernels/random/counter_bits.h"

namespace limbeck::quantize {

namespace {

constexpr size_t kDraws = 2000;
constexpr double kOutside = 0.025;  // on each side
constexpr uint64_t kKey = 0x5ca1ab1e;

double share_at(const std::vector<double>& sorted, double share) {
  const double place = share * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<size_t>(place);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (place - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

}  // namespace

RowDraws::RowDraws(size_t rows) : rows_(rows), drawn_(rows * kDraws) {
  for (size_t i = 0; i < drawn_.size(); ++i) drawn_[i] = static_cast<uint32_t>(kernels::counter_bits(kKey, i) % rows);
}

Interval RowDraws::interval(const Statistic& statistic) const {
  std::vector<double> found;
  for (size_t draw = 0; draw < kDraws; ++draw) {
    if (const auto value = statistic(std::span(drawn_).subspan(draw * rows_, rows_))) found.push_back(*value);
  }
  if (found.empty()) return {};
  std::sort(found.begin(), found.end());
  return {share_at(found, kOutside), share_at(found, 1 - kOutside)};
}

}  // namespace limbeck::quantize
