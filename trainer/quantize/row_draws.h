// Rows drawn again, with replacement, as many as there are: where the middle 95 % of what a statistic of them is begin
// and end. The draws are a function of the number of rows alone, so that statistics of the same rows are paired.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

namespace limbeck::quantize {

struct Interval {
  double low = 0, high = 0;
};

class RowDraws {
 public:
  explicit RowDraws(size_t rows);

  // The statistic gets the numbers of the rows that were drawn; none: the draw says nothing. {0, 0} where no draw does.
  using Statistic = std::function<std::optional<double>(std::span<const uint32_t>)>;
  Interval interval(const Statistic& statistic) const;

 private:
  size_t rows_;
  std::vector<uint32_t> drawn_;  // of all draws
};

}  // namespace limbeck::quantize
