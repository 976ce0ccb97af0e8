// Kernels for the tests of the fake device alone: some are right, the others have one fault each, which it must find.
#pragma once
#include <cstdint>

namespace limbeck::test {

enum class Fault {
  kNone,
  kNoBarrierBefore,  // the sums of the call before may still be read when they are written
  kNoBarrierAfter,   // the sums are read before they are all written
};

// out[block] = the sum of x over `threads` elements, and out[blocks + block] of their squares.
void launch_block_sums(Fault fault, const float* x, float* out, unsigned blocks, unsigned threads);

enum class Meeting { kPartOfABlock, kTwoPlaces, kLaneThatLeft, kLaneOutsideOfTheMask };
void launch_meeting(Meeting meeting, unsigned threads);

// to[i] = from[i + offset] for i below count.
void launch_copy(const float* from, float* to, int64_t count, int64_t offset);
void launch_fill(float* to, int64_t count, float value);
void launch_fill_on(float* to, int64_t count, float value, int stream);

// Each block's part of x in the opposite order, through `elements` floats of dynamic shared memory.
void launch_reversed(const float* x, float* out, unsigned blocks, unsigned threads, unsigned elements);

// bins[x[i]] += 1
void launch_histogram(const int* x, int* bins, unsigned count);

// out[i] = x of the lane `lanes` above in the warp.
void launch_shifted_down(const float* x, float* out, unsigned threads, unsigned lanes);

// Through the half types and back, and their bits.
void launch_rounded(const float* x, float* as_float16, float* as_bfloat16, unsigned count);

}  // namespace limbeck::test
