#include "kernels/random/normal_values.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <cmath>
#include <numbers>

#include "kernels/operator/checks.h"
#include "kernels/random/counter_bits.h"

namespace limbeck::kernels {
namespace {

constexpr int64_t kPairsPerTask = 1 << 11;

// Two normal numbers from one counter (Box and Muller); the largest there can be is 6.8.
struct Pair {
  double first, second;
};
Pair normal_pair(uint64_t key, uint64_t counter) {
  const uint64_t bits = counter_bits(key, counter);
  const double radius = (static_cast<double>(bits >> 32) + 0.5) * 0x1p-32;
  const double turn = (static_cast<double>(bits & 0xffffffff) + 0.5) * 0x1p-32;
  const double length = std::sqrt(-2.0 * std::log(radius)), angle = 2.0 * std::numbers::pi * turn;
  return {length * std::cos(angle), length * std::sin(angle)};
}

}  // namespace

uint64_t key_of(uint64_t seed, std::string_view name) {
  uint64_t key = mixed(seed + kGolden);
  for (const char c : name) key = mixed((key ^ static_cast<unsigned char>(c)) + kGolden);
  return key;
}

void fill_normal_(const at::Tensor& x, uint64_t key, double deviation) {
  check_floating("fill_normal_", "x", x);
  TORCH_CHECK(x.is_cpu() && x.is_contiguous(), "[fill_normal_] x is ", described(x), ", wanted it contiguous on cpu");
  const int64_t count = x.numel();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "fill_normal_", [&] {
    auto* to = x.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, (count + 1) / 2, kPairsPerTask, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const Pair pair = normal_pair(key, static_cast<uint64_t>(i));
        to[2 * i] = static_cast<scalar_t>(pair.first * deviation);
        if (2 * i + 1 < count) to[2 * i + 1] = static_cast<scalar_t>(pair.second * deviation);
      }
    });
  });
}

}  // namespace limbeck::kernels
