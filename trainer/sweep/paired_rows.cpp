#include "trainer/sweep/paired_rows.h"

#include <algorithm>
#include <boost/math/distributions/binomial.hpp>
#include <boost/math/distributions/students_t.hpp>
#include <cmath>
#include <numeric>
#include <stdexcept>

namespace limbeck::sweep {

namespace {

constexpr double kOneSide = 0.025;

std::vector<uint32_t> each_number_below(size_t count) {
  std::vector<uint32_t> numbers(count);
  std::iota(numbers.begin(), numbers.end(), 0U);
  return numbers;
}

// Of classifiers: which rows one has right and the other has not.
struct Discordant {
  int64_t lost = 0, won = 0, all = 0;
};

Discordant discordant(const Rows& floats, const Rows& rows) {
  Discordant found;
  for (size_t i = 0; i < rows.size(); ++i) {
    found.all += floats[i].targets;
    found.lost += floats[i].right > rows[i].right ? 1 : 0;
    found.won += rows[i].right > floats[i].right ? 1 : 0;
  }
  return found;
}

}  // namespace

double mcnemar_exact(int64_t only_first, int64_t only_second) {
  const int64_t all = only_first + only_second;
  if (all == 0) return 1;
  const boost::math::binomial_distribution<double> fair(static_cast<double>(all), 0.5);
  return std::min(1.0, 2 * boost::math::cdf(fair, static_cast<double>(std::min(only_first, only_second))));
}

double paired_t(const std::vector<double>& differences) {
  if (differences.size() < 2) return 1;
  const auto count = static_cast<double>(differences.size());
  const double mean = std::accumulate(differences.begin(), differences.end(), 0.0) / count;
  double squares = 0;
  for (const double difference : differences) squares += (difference - mean) * (difference - mean);
  if (squares == 0) return mean == 0 ? 1 : 0;
  const double t = mean / std::sqrt(squares / (count - 1) / count);
  return 2 * boost::math::cdf(boost::math::students_t_distribution<double>(count - 1), -std::abs(t));
}

double largest_share(int64_t happened, int64_t all) {
  if (happened >= all) return 1;
  return boost::math::binomial_distribution<double>::find_upper_bound_on_p(static_cast<double>(all),
                                                                           static_cast<double>(happened), kOneSide);
}

double quality_of(Kind kind, const Rows& rows) {
  double targets = 0, right = 0, loss = 0;
  for (const RowMeasure& row : rows) {
    targets += static_cast<double>(row.targets);
    right += row.right;
    loss += row.loss;
  }
  if (targets == 0) return 0;
  if (kind == Kind::kClassifier) return 100 * right / targets;
  return kind == Kind::kEncoder ? right / targets : std::exp(loss / targets);
}

double mean_kl(const Rows& rows) {
  double kl = 0, targets = 0;
  for (const RowMeasure& row : rows) kl += row.kl, targets += static_cast<double>(row.targets);
  return targets > 0 ? kl / targets : 0;
}

double logit_error(const Rows& rows) {
  double squares = 0, values = 0;
  for (const RowMeasure& row : rows) squares += row.squares, values += static_cast<double>(row.values);
  return values > 0 ? std::sqrt(squares / values) : 0;
}

PairedRows::PairedRows(Kind kind, Rows floats)
    : kind_(kind), floats_(std::move(floats)), draws_(floats_.size()), each_once_(each_number_below(floats_.size())) {}

std::optional<double> PairedRows::drop_of(const Rows& rows, std::span<const uint32_t> drawn) const {
  double targets = 0, lost = 0, loss = 0;
  for (const uint32_t i : drawn) {
    targets += static_cast<double>(floats_[i].targets);
    lost += floats_[i].right - rows[i].right;
    loss += rows[i].loss - floats_[i].loss;
  }
  if (targets == 0) return std::nullopt;
  const bool has_perplexity = kind_ == Kind::kDecoder || kind_ == Kind::kMasked;
  return 100 * (has_perplexity ? std::expm1(loss / targets) : lost / targets);
}

double PairedRows::test_of(const Rows& rows) const {
  if (kind_ == Kind::kClassifier) {
    const Discordant found = discordant(floats_, rows);
    return mcnemar_exact(found.lost, found.won);
  }
  std::vector<double> differences;
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i].targets == 0) continue;
    const double worse = kind_ == Kind::kEncoder ? rows[i].kl : rows[i].loss - floats_[i].loss;
    differences.push_back(worse / static_cast<double>(rows[i].targets));
  }
  return paired_t(differences);
}

Drop PairedRows::drop(const Rows& rows) const {
  Drop drop = sum_of_drops({&rows});
  drop.p = test_of(rows);
  return drop;
}

Drop PairedRows::sum_of_drops(const std::vector<const Rows*>& all) const {
  for (const Rows* rows : all) {
    if (rows->size() != floats_.size()) throw std::logic_error("a pair has two rows");
  }
  const auto sum = [&](std::span<const uint32_t> drawn) -> std::optional<double> {
    double found = 0;
    for (const Rows* rows : all) {
      const auto one = drop_of(*rows, drawn);
      if (!one) return std::nullopt;
      found += *one;
    }
    return found;
  };
  Drop drop;
  drop.value = sum(each_once_).value_or(0);
  const quantize::Interval drawn = draws_.interval(sum);
  drop.low = drawn.low, drop.high = drawn.high;
  if (kind_ != Kind::kClassifier || all.size() != 1) return drop;
  const Discordant found = discordant(floats_, *all.front());
  if (found.all == 0) return drop;
  const auto rows = static_cast<double>(found.all);
  const double lost = static_cast<double>(found.lost) / rows, won = static_cast<double>(found.won) / rows;
  drop.high = std::max(drop.high, 100 * (largest_share(found.lost, found.all) - won));
  drop.low = std::min(drop.low, -100 * (largest_share(found.won, found.all) - lost));
  return drop;
}

quantize::Interval PairedRows::kl_interval(const Rows& rows) const {
  return draws_.interval([&](std::span<const uint32_t> drawn) -> std::optional<double> {
    double kl = 0, targets = 0;
    for (const uint32_t i : drawn) kl += rows[i].kl, targets += static_cast<double>(rows[i].targets);
    return targets > 0 ? std::optional(kl / targets) : std::nullopt;
  });
}

}  // namespace limbeck::sweep
