// A sum of float64 numbers without rounding until it is read, so that it is the same in whatever order and on however
// many ranks its terms are added: gradient norms and logged losses are such sums.
#pragma once
#include <array>
#include <cstdint>
#include <vector>

#include "trainer/parallel/communicator.h"

namespace limbeck::parallel {

class ExactSum {
 public:
  void add(double value);
  void add(const ExactSum& other);
  double value() const;  // rounded once; NaN when a term was not finite

 private:
  friend void all_reduce(Communicator& ranks, const std::vector<ExactSum*>& sums);

  // A fixed-point number: limb i counts units of 2^(32 i - 1074). Limbs hold signed sums of 32-bit digits, so that two
  // billion terms fit before carries must be passed on.
  static constexpr int kDigits = 32, kLowest = -1074, kLimbs = 68;
  void pass_carries();

  std::array<int64_t, kLimbs> limbs_{};
  int64_t nonfinite_ = 0, added_ = 0;
};

// Each becomes the sum over all ranks: one operation for all of them.
void all_reduce(Communicator& ranks, const std::vector<ExactSum*>& sums);

}  // namespace limbeck::parallel
