// Statistics of two models on the same rows: what one loses against the other, an interval for that, and whether chance
// explains it. What rows have in common cancels.
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "trainer/quantize/row_draws.h"
#include "trainer/sweep/row_measure.h"

namespace limbeck::sweep {

// The two-sided p of McNemar's exact test: of the rows that only one model has right, are as many one's as the other's?
// 1 where there are none.
double mcnemar_exact(int64_t only_first, int64_t only_second);
// The two-sided p of Student's t for differences whose mean is 0; 1 for fewer than two, or where all are 0.
double paired_t(const std::vector<double>& differences);
// How often something may happen, at most, that happened so often in so many: Clopper and Pearson's bound, which 2.5 %
// of samples break. Of nothing in 100 it is 3.6 %.
double largest_share(int64_t happened, int64_t all);

using Rows = std::vector<RowMeasure>;

// Over all rows: accuracy in %, perplexity, or mean cosine.
double quality_of(Kind kind, const Rows& rows);
// KL a target; 0 without any.
double mean_kl(const Rows& rows);
// The root of the mean square of what logits differ by.
double logit_error(const Rows& rows);

// A worse model has a positive one: points of accuracy, % of perplexity, or points of the cosine (x 100).
struct Drop {
  double value = 0, low = 0, high = 0;
  double p = 1;
};

class PairedRows {
 public:
  PairedRows(Kind kind, Rows floats);

  // Its interval holds 95 % of the rows drawn again, and for accuracy also what so few rows cannot exclude: no row that
  // was lost among 100 still allows 3.6 points.
  Drop drop(const Rows& rows) const;
  quantize::Interval kl_interval(const Rows& rows) const;
  // What the drops of several add up to.
  Drop sum_of_drops(const std::vector<const Rows*>& all) const;
  // "mcnemar" or "paired t"
  const char* test() const { return kind_ == Kind::kClassifier ? "mcnemar" : "paired t"; }

 private:
  std::optional<double> drop_of(const Rows& rows, std::span<const uint32_t> drawn) const;
  double test_of(const Rows& rows) const;

  Kind kind_;
  Rows floats_;
  quantize::RowDraws draws_;
  std::vector<uint32_t> each_once_;
};

}  // namespace limbeck::sweep
