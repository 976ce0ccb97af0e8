#include "kernels/norm/norm_loops.h"

#include "kernels/cpu/blocks.h"

namespace limbeck::kernels::LIMBECK_ISA {
namespace {

template <class T>
LIMBECK_INLINE const T* row_of(const void* base, int64_t row, int64_t stride) {
  return static_cast<const T*>(base) + row * stride;
}

// The multiplier a stored weight stands for.
template <class T, class Extent>
LIMBECK_INLINE Block<Compute<T>> multiplier(const T* weight, const Block<Compute<T>>& offset, Extent extent) {
  return offset + load(weight, extent);
}

LIMBECK_INLINE float inverse_root(float value) { return 1.0f / __builtin_sqrtf(value); }
LIMBECK_INLINE double inverse_root(double value) { return 1.0 / __builtin_sqrt(value); }

template <class T>
LIMBECK_INLINE void rms_forward_rows(const NormForward& a, int64_t row_begin, int64_t row_end) {
  using S = Compute<T>;
  const T* weight = static_cast<const T*>(a.weight);
  const Block<S> offset(a.unit_offset ? 1.0 : 0.0);
  for (int64_t row = row_begin; row < row_end; ++row) {
    const T* x = row_of<T>(a.x, row, a.x_row);
    T* y = static_cast<T*>(a.y) + row * a.width;
    Sum<S> squares;
    for_blocks(a.width, [&](int64_t i, auto extent, auto slot) {
      const Block<S> v = load(x + i, extent);
      squares.add(slot, v * v);
    });
    const S rstd = inverse_root(squares.total() / static_cast<S>(a.width) + static_cast<S>(a.eps));
    static_cast<S*>(a.rstd)[row] = rstd;
    const Block<S> scale(rstd);
    for_blocks(a.width, [&](int64_t i, auto extent, auto) {
      store(y + i, load(x + i, extent) * scale * multiplier(weight + i, offset, extent), extent);
    });
  }
}

template <class T>
LIMBECK_INLINE void layer_forward_rows(const NormForward& a, int64_t row_begin, int64_t row_end) {
  using S = Compute<T>;
  const T* weight = static_cast<const T*>(a.weight);
  const T* bias = static_cast<const T*>(a.bias);
  const S width = static_cast<S>(a.width);
  for (int64_t row = row_begin; row < row_end; ++row) {
    const T* x = row_of<T>(a.x, row, a.x_row);
    T* y = static_cast<T*>(a.y) + row * a.width;
    Sum<S> values;
    for_blocks(a.width, [&](int64_t i, auto extent, auto slot) { values.add(slot, load(x + i, extent)); });
    const S mean = values.total() / width;
    const Block<S> center(mean);
    // A second pass over the row, which is still in cache: the difference of sums would cancel.
    Sum<S> squares;
    const int64_t whole = a.width / kBlockLanes * kBlockLanes;
    for_blocks(whole, [&](int64_t i, auto extent, auto slot) {
      const Block<S> v = load(x + i, extent) - center;
      squares.add(slot, v * v);
    });
    S variance = squares.total();
    for (int64_t i = whole; i < a.width; i += kBlockLanes) {  // the tail: its padding must not count as -mean
      Block<S> v = load(x + i, Front{static_cast<int>(a.width - i)}) - center;
      S lane[kBlockLanes];
      store(lane, v, Whole{});
      for (int64_t j = 0; j < a.width - i; ++j) variance += lane[j] * lane[j];
    }
    const S rstd = inverse_root(variance / width + static_cast<S>(a.eps));
    static_cast<S*>(a.mean)[row] = mean;
    static_cast<S*>(a.rstd)[row] = rstd;
    const Block<S> scale(rstd);
    for_blocks(a.width, [&](int64_t i, auto extent, auto) {
      const Block<S> scaled = (load(x + i, extent) - center) * scale * load(weight + i, extent);
      store(y + i, bias == nullptr ? scaled : scaled + load(bias + i, extent), extent);
    });
  }
}

template <class S>
LIMBECK_INLINE void clear(S* values, int64_t width) {
  for (int64_t i = 0; i < width; ++i) values[i] = 0;
}

template <class S, class Extent>
LIMBECK_INLINE void accumulate(S* sums, const Block<S>& value, Extent extent) {
  store(sums, load(sums, extent) + value, extent);
}

// y = x rstd m, m the multiplier: dx = rstd (dy m) - x rstd^3 sum(dy m x) / width, dm = sum over rows of dy x rstd.
template <class T>
LIMBECK_INLINE void rms_backward_rows(const NormBackward& a, int64_t row_begin, int64_t row_end, int64_t block) {
  using S = Compute<T>;
  const T* weight = static_cast<const T*>(a.weight);
  S* partial = a.partial_weight == nullptr ? nullptr : static_cast<S*>(a.partial_weight) + block * a.width;
  const Block<S> offset(a.unit_offset ? 1.0 : 0.0);
  if (partial != nullptr) clear(partial, a.width);
  for (int64_t row = row_begin; row < row_end; ++row) {
    const T* x = row_of<T>(a.x, row, a.x_row);
    const T* grad = row_of<T>(a.grad, row, a.grad_row);
    const S rstd = static_cast<const S*>(a.rstd)[row];
    const Block<S> scale(rstd);
    if (a.grad_x == nullptr) {
      if (partial == nullptr) continue;
      for_blocks(a.width, [&](int64_t i, auto extent, auto) {
        accumulate(partial + i, load(grad + i, extent) * (load(x + i, extent) * scale), extent);
      });
      continue;
    }
    Sum<S> products;
    for_blocks(a.width, [&](int64_t i, auto extent, auto slot) {
      products.add(slot, load(grad + i, extent) * multiplier(weight + i, offset, extent) * load(x + i, extent));
    });
    const Block<S> share(products.total() * rstd / static_cast<S>(a.width));  // the mean of dy m x rstd
    T* grad_x = static_cast<T*>(a.grad_x) + row * a.width;
    for_blocks(a.width, [&](int64_t i, auto extent, auto) {
      const Block<S> normalized = load(x + i, extent) * scale;
      const Block<S> g = load(grad + i, extent);
      store(grad_x + i, (g * multiplier(weight + i, offset, extent) - normalized * share) * scale, extent);
      if (partial != nullptr) accumulate(partial + i, g * normalized, extent);
    });
  }
}

// n = (x - mean) rstd, y = n w + b: dx = rstd (dy w - mean(dy w) - n mean(dy w n)), dw = sum dy n, db = sum dy.
template <class T>
LIMBECK_INLINE void layer_backward_rows(const NormBackward& a, int64_t row_begin, int64_t row_end, int64_t block) {
  using S = Compute<T>;
  const T* weight = static_cast<const T*>(a.weight);
  S* partial_weight = a.partial_weight == nullptr ? nullptr : static_cast<S*>(a.partial_weight) + block * a.width;
  S* partial_bias = a.partial_bias == nullptr ? nullptr : static_cast<S*>(a.partial_bias) + block * a.width;
  if (partial_weight != nullptr) clear(partial_weight, a.width);
  if (partial_bias != nullptr) clear(partial_bias, a.width);
  const S width = static_cast<S>(a.width);
  for (int64_t row = row_begin; row < row_end; ++row) {
    const T* x = row_of<T>(a.x, row, a.x_row);
    const T* grad = row_of<T>(a.grad, row, a.grad_row);
    const Block<S> center(static_cast<const S*>(a.mean)[row]), scale(static_cast<const S*>(a.rstd)[row]);
    Block<S> mean_grad(0.0), mean_product(0.0);
    if (a.grad_x != nullptr) {
      Sum<S> grads, products;
      for_blocks(a.width, [&](int64_t i, auto extent, auto slot) {
        const Block<S> g = load(grad + i, extent) * load(weight + i, extent);  // zero in the padding of the tail
        grads.add(slot, g);
        products.add(slot, g * ((load(x + i, extent) - center) * scale));
      });
      mean_grad = Block<S>(grads.total() / width);
      mean_product = Block<S>(products.total() / width);
    }
    T* grad_x = a.grad_x == nullptr ? nullptr : static_cast<T*>(a.grad_x) + row * a.width;
    for_blocks(a.width, [&](int64_t i, auto extent, auto) {
      const Block<S> normalized = (load(x + i, extent) - center) * scale;
      const Block<S> g = load(grad + i, extent);
      if (grad_x != nullptr) {
        const Block<S> inner = g * load(weight + i, extent) - mean_grad - normalized * mean_product;
        store(grad_x + i, inner * scale, extent);
      }
      if (partial_weight != nullptr) accumulate(partial_weight + i, g * normalized, extent);
      if (partial_bias != nullptr) accumulate(partial_bias + i, g, extent);
    });
  }
}

template <class T>
LIMBECK_INLINE void sum_block_columns(const void* partial, int64_t blocks, int64_t width, void* out, int64_t begin,
                                      int64_t end) {
  using S = Compute<T>;
  const S* sums = static_cast<const S*>(partial) + begin;
  T* to = static_cast<T*>(out) + begin;
  for_blocks(end - begin, [&](int64_t i, auto extent, auto) {
    Block<S> total(0.0);
    for (int64_t block = 0; block < blocks; ++block) total = total + load(sums + block * width + i, extent);
    store(to + i, total, extent);
  });
}

void forward(Storage storage, const NormForward& a, int64_t begin, int64_t end) {
  with_storage(storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    a.mean == nullptr ? rms_forward_rows<T>(a, begin, end) : layer_forward_rows<T>(a, begin, end);
  });
}
void backward(Storage storage, const NormBackward& a, int64_t begin, int64_t end, int64_t block) {
  with_storage(storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    a.mean == nullptr ? rms_backward_rows<T>(a, begin, end, block) : layer_backward_rows<T>(a, begin, end, block);
  });
}
void sum_blocks(Storage storage, const void* partial, int64_t blocks, int64_t width, void* out, int64_t begin,
                int64_t end) {
  with_storage(storage, [&](auto tag) {
    sum_block_columns<typename decltype(tag)::Type>(partial, blocks, width, out, begin, end);
  });
}

}  // namespace

const NormLoops norm_loops = {forward, backward, sum_blocks};

}  // namespace limbeck::kernels::LIMBECK_ISA
