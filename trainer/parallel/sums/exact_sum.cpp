#include "trainer/parallel/sums/exact_sum.h"

#include <cmath>
#include <cstdlib>
#include <limits>

namespace limbeck::parallel {
namespace {

__extension__ typedef unsigned __int128 Wide;  // of GCC and Clang, not of the standard

constexpr int kMantissa = 53;
constexpr int64_t kCarryAfter = int64_t{1} << 29;

}  // namespace

void ExactSum::add(double value) {
  if (!std::isfinite(value)) {
    ++nonfinite_;
    return;
  }
  if (value == 0) return;
  int exponent = 0;
  // value = mantissa * 2^exponent, the mantissa a whole number; below 2^-1074 there are no bits.
  const double fraction = std::frexp(value, &exponent);
  auto mantissa = static_cast<int64_t>(std::ldexp(fraction, kMantissa));
  exponent -= kMantissa;
  if (exponent < kLowest) {
    mantissa /= int64_t{1} << (kLowest - exponent);  // exact: the bits shifted out are zero
    exponent = kLowest;
  }
  const int place = exponent - kLowest, limb = place / kDigits, shift = place % kDigits;
  const int64_t sign = mantissa < 0 ? -1 : 1;
  const auto wide = static_cast<Wide>(std::llabs(mantissa)) << shift;
  constexpr Wide kMask = 0xffffffffU;
  for (int i = 0; i < 3; ++i) {
    limbs_[static_cast<size_t>(limb + i)] += sign * static_cast<int64_t>((wide >> (kDigits * i)) & kMask);
  }
  if (++added_ >= kCarryAfter) pass_carries();
}

void ExactSum::add(const ExactSum& other) {
  ExactSum more = other;
  more.pass_carries();
  pass_carries();
  for (size_t i = 0; i < kLimbs; ++i) limbs_[i] += more.limbs_[i];
  nonfinite_ += more.nonfinite_;
  added_ = 1;
}

void ExactSum::pass_carries() {
  for (size_t i = 0; i + 1 < kLimbs; ++i) {
    const int64_t carry = limbs_[i] >> kDigits;  // rounds down, so that every digit is left at 0 or above
    limbs_[i] -= carry * (int64_t{1} << kDigits);
    limbs_[i + 1] += carry;
  }
  added_ = 0;
}

double ExactSum::value() const {
  if (nonfinite_ > 0) return std::numeric_limits<double>::quiet_NaN();
  ExactSum sum = *this;
  sum.pass_carries();
  const bool negative = sum.limbs_.back() < 0;
  if (negative) {
    for (int64_t& limb : sum.limbs_) limb = -limb;
    sum.pass_carries();
  }
  size_t top = kLimbs;
  while (top > 0 && sum.limbs_[top - 1] == 0) --top;
  if (top == 0) return 0;
  // Three limbs hold at least 65 bits; whatever is below only decides the rounding of a tie.
  Wide bits = 0;
  const size_t low = top > 3 ? top - 3 : 0;
  for (size_t i = top; i-- > low;) bits = (bits << kDigits) | static_cast<Wide>(sum.limbs_[i]);
  bool rest = false;
  for (size_t i = 0; i < low; ++i) rest = rest || sum.limbs_[i] != 0;
  if (rest) bits |= 1;
  const double magnitude = std::ldexp(static_cast<double>(bits), kDigits * static_cast<int>(low) + kLowest);
  return negative ? -magnitude : magnitude;
}

void all_reduce(Communicator& ranks, const std::vector<ExactSum*>& sums) {
  std::vector<int64_t> numbers;
  for (ExactSum* sum : sums) {
    sum->pass_carries();
    numbers.insert(numbers.end(), sum->limbs_.begin(), sum->limbs_.end());
    numbers.push_back(sum->nonfinite_);
  }
  ranks.all_reduce(numbers, Reduce::kSum);
  auto next = numbers.begin();
  for (ExactSum* sum : sums) {
    for (int64_t& limb : sum->limbs_) limb = *next++;
    sum->nonfinite_ = *next++;
    sum->added_ = 1;
  }
}

}  // namespace limbeck::parallel
