#include "trainer/data/permutation.h"

#include <fmt/format.h>

#include <stdexcept>

namespace limbeck::data {
namespace {

constexpr int kRounds = 8;  // 4 suffice for large halves; small ones need more to look uniform
constexpr uint64_t kGolden = 0x9e3779b97f4a7c15;

// A bijection of 64 bits in which every input bit changes about half of the output bits.
uint64_t mixed(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

}  // namespace

Permutation::Permutation(int64_t seed, int64_t epoch, int64_t size)
    : key_(mixed(mixed(static_cast<uint64_t>(seed) + kGolden) + static_cast<uint64_t>(epoch) * kGolden)),
      size_(static_cast<uint64_t>(size)) {
  if (size < 1) throw std::logic_error(fmt::format("Permutation: size {}, wanted at least 1", size));
  while (half_bits_ < 31 && (uint64_t{1} << (2 * half_bits_)) < size_) ++half_bits_;
}

uint64_t Permutation::scrambled(uint64_t value) const {
  const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
  uint64_t left = value >> half_bits_, right = value & mask;
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t next = left ^ (mixed(right + key_ + static_cast<uint64_t>(round) * kGolden) & mask);
    left = right;
    right = next;
  }
  return (left << half_bits_) | right;
}

int64_t Permutation::operator()(int64_t index) const {
  auto value = static_cast<uint64_t>(index);
  if (index < 0 || value >= size_) throw std::out_of_range(fmt::format("Permutation: {} of {}", index, size_));
  // The network permutes a power of 4 that is below 4 * size, so this takes fewer than 4 rounds on average.
  do {
    value = scrambled(value);
  } while (value >= size_);
  return static_cast<int64_t>(value);
}

}  // namespace limbeck::data
