#include "kernels/rotary/rotary_loops.h"

#include "kernels/cpu/blocks.h"
#include "kernels/rotary/rotary_formula.h"

namespace limbeck::kernels::LIMBECK_ISA {
namespace {

// Angles are stored as float32 whatever the dtype of x.
template <class Extent>
LIMBECK_INLINE Block<float> load_angle(const float* from, Extent extent, float*) {
  return load(from, extent);
}
template <class Extent>
LIMBECK_INLINE Block<double> load_angle(const float* from, Extent extent, double*) {
  float lane[kBlockLanes];
  store(lane, load(from, extent), Whole{});
  double wide[kBlockLanes];
  for (int j = 0; j < kBlockLanes; ++j) wide[j] = lane[j];
  return load(wide, Whole{});
}

template <class T>
LIMBECK_INLINE void rotate_positions(const RotaryArguments& a, int64_t begin, int64_t end) {
  using S = Compute<T>;
  S* const type = nullptr;
  for (int64_t position = begin; position < end; ++position) {
    const int64_t batch = position / a.time, t = position % a.time;
    const float* cos = a.cos + batch * a.cos_batch + t * a.half;
    const float* sin = a.sin + batch * a.cos_batch + t * a.half;
    const T* x_position = static_cast<const T*>(a.x) + batch * a.x_batch + t * a.x_time;
    T* y_position = static_cast<T*>(a.y) + position * a.heads * a.width;
    for (int64_t head = 0; head < a.heads; ++head) {
      const T* x = x_position + head * a.x_head;
      T* y = y_position + head * a.width;
      for_blocks(a.half, [&](int64_t i, auto extent, auto) {
        const Block<S> angle_cos = load_angle(cos + i, extent, type), angle_sin = load_angle(sin + i, extent, type);
        const auto pair =
            rotated(load(x + i, extent), load(x + a.half + i, extent), angle_cos, a.inverse ? -angle_sin : angle_sin);
        store(y + i, pair.first, extent);
        store(y + a.half + i, pair.second, extent);
      });
      for (int64_t i = 2 * a.half; i < a.width; ++i) y[i] = x[i];
    }
  }
}

void rotate(Storage storage, const RotaryArguments& a, int64_t begin, int64_t end) {
  with_storage(storage, [&](auto tag) { rotate_positions<typename decltype(tag)::Type>(a, begin, end); });
}

}  // namespace

const RotaryLoops rotary_loops = {rotate};

}  // namespace limbeck::kernels::LIMBECK_ISA
