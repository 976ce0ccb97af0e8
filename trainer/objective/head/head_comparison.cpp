#include "trainer/objective/head/row_chunks.h"

namespace limbeck::objective {

namespace {

// Logits of one chunk as the model gives them: wide, capped.
at::Tensor chunk_logits(const HeadSide& side, const Chunk& chunk) {
  const at::ScalarType wide = wide_type(side.hidden_nd.scalar_type());
  const at::Tensor hidden = widened(chunk.of(side.hidden_nd.detach()), wide, side.place + " (hidden)");
  return capped(wide_logits(side, hidden, wide), side.softcap);
}

}  // namespace

HeadComparison compare_heads(const HeadSide& student, const HeadSide& teacher, const at::Tensor& compared_n) {
  constexpr int64_t kTop = 5;
  const at::NoGradGuard no_gradient;
  HeadComparison result;
  for_chunks(chosen_rows(compared_n), compared_n.numel(), real_rows(student), [&](const Chunk& chunk) {
    const at::Tensor zs = chunk_logits(student, chunk), zt = chunk_logits(teacher, chunk);
    const int64_t k = std::min<int64_t>(kTop, zs.size(-1));
    const at::Tensor best_s = std::get<1>(zs.topk(k, -1)), best_t = std::get<1>(zt.topk(k, -1));
    result.kl += rows::forward_kl(zs, zt).clamp_min(0).sum().item<double>();
    result.top1_agreements += best_s.select(1, 0).eq(best_t.select(1, 0)).sum().item<int64_t>();
    const int64_t shared = best_s.unsqueeze(2).eq(best_t.unsqueeze(1)).sum().item<int64_t>();
    result.top5_overlap += static_cast<double>(shared) / static_cast<double>(k);
  });
  return result;
}

at::Tensor right_predictions(const HeadSide& side, const at::Tensor& labels_n, const at::Tensor& wanted_n) {
  const at::NoGradGuard no_gradient;
  const at::Tensor rows = chosen_rows(wanted_n);
  at::Tensor right = at::zeros_like(wanted_n);
  for_chunks(rows, wanted_n.numel(), real_rows(side), [&](const Chunk& chunk) {
    const at::Tensor hits = chunk_logits(side, chunk).argmax(-1).eq(chunk.of(labels_n));
    if (chunk.rows_n.defined())
      right.index_copy_(0, chunk.rows_n, hits);
    else
      right.narrow(0, chunk.begin, chunk.count).copy_(hits);
  });
  return right.bitwise_and(wanted_n);
}

}  // namespace limbeck::objective
