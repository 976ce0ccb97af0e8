// A permutation of 0 … size-1 that is computed, not stored: a Feistel network keyed by seed and epoch, walked until it
// lands inside. The sample at any place of any epoch costs nanoseconds and no state, so a resume is a number.
// Frozen: another order would break the resume of every run begun before.
#pragma once
#include <cstdint>

namespace limbeck::data {

class Permutation {
 public:
  Permutation(int64_t seed, int64_t epoch, int64_t size);  // size >= 1
  int64_t operator()(int64_t index) const;                 // 0 <= index < size

 private:
  uint64_t scrambled(uint64_t value) const;

  uint64_t key_, size_;
  int half_bits_ = 1;
};

}  // namespace limbeck::data
