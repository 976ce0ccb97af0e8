#include "trainer/objective/head/row_chunks.h"

#include "modules/precision/casts.h"

namespace limbeck::objective {

namespace {
constexpr int64_t kChunkElements = int64_t{4} << 20;  // of one chunk's logits: 16 MiB in float32
constexpr int64_t kWidenedRows = 4096;                // of a half-precision head weight, at a time
constexpr int64_t kFewestRows = 16, kMostRows = 512;
}  // namespace

int64_t real_rows(const HeadSide& side) { return side.vocabulary > 0 ? side.vocabulary : side.weight_vd.size(0); }

at::Tensor widened(const at::Tensor& x, at::ScalarType wide, const std::string& place) {
  return precision::cast(x, x.scalar_type(), wide, place);
}

void for_weight_tiles(const HeadSide& side, at::ScalarType wide,
                      const std::function<void(const at::Tensor& weight, int64_t begin, int64_t count)>& use) {
  const at::Tensor weight = side.weight_vd.detach();
  const int64_t rows = real_rows(side), step = weight.scalar_type() == wide ? rows : kWidenedRows;
  for (int64_t begin = 0; begin < rows; begin += step) {
    const int64_t n = std::min(step, rows - begin);
    use(widened(weight.narrow(0, begin, n), wide, side.place + " (weight)"), begin, n);
  }
}

at::Tensor wide_logits(const HeadSide& side, const at::Tensor& hidden_wide, at::ScalarType wide) {
  std::vector<at::Tensor> tiles;
  for_weight_tiles(side, wide, [&](const at::Tensor& weight, int64_t, int64_t) {
    tiles.push_back(at::linear(hidden_wide, weight));
  });
  return tiles.size() == 1 ? tiles.front() : at::cat(tiles, -1);
}

at::Tensor capped(const at::Tensor& logits, double softcap) {
  return softcap > 0.0 ? at::tanh(logits / softcap) * softcap : logits;
}

void for_chunks(const at::Tensor& rows, int64_t tokens, int64_t vocabulary,
                const std::function<void(const Chunk&)>& use) {
  const int64_t all = rows.defined() ? rows.numel() : tokens;
  const int64_t step = std::clamp(kChunkElements / std::max<int64_t>(vocabulary, 1), kFewestRows, kMostRows);
  for (int64_t begin = 0; begin < all; begin += step) {
    const int64_t count = std::min(step, all - begin);
    use(Chunk{begin, count, rows.defined() ? rows.narrow(0, begin, count) : at::Tensor()});
  }
}

at::Tensor chosen_rows(const at::Tensor& mask_n) {
  if (mask_n.is_meta()) return {};
  const at::Tensor rows = mask_n.nonzero().squeeze(1);
  return rows.numel() == mask_n.numel() ? at::Tensor() : rows;
}

}  // namespace limbeck::objective
