#include "kernels/attention/flash_attention.h"

#include <ATen/Context.h>
#include <ATen/ops/_flash_attention_backward.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <ATen/ops/empty.h>

#include "kernels/attention/flash_operands.h"
#include "kernels/operator/rounded_up.h"
#include "kernels/operator/wide_type.h"

namespace limbeck::kernels {
namespace {

using at::Tensor;

constexpr int64_t kMostWidth = 256;

// ATen reads this flag of the whole process when a backward is asked for. What runs beside it in that moment is
// deterministic as well, and as it was before otherwise.
class DeterministicSums {
 public:
  DeterministicSums()
      : was_(context().deterministicAlgorithms()), warned_(context().deterministicAlgorithmsWarnOnly()) {
    context().setDeterministicAlgorithms(true, /*warn_only=*/false);
  }
  ~DeterministicSums() { context().setDeterministicAlgorithms(was_, warned_); }
  DeterministicSums(const DeterministicSums&) = delete;
  DeterministicSums& operator=(const DeterministicSums&) = delete;

 private:
  static at::Context& context() { return at::globalContext(); }

  bool was_, warned_;
};

}  // namespace

bool flash_attention_serves(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& segments_q,
                            const OptionalTensor& segments_k, const OptionalTensor& runs, double softcap) {
  if (!is_half(q) || softcap > 0 || v.size(3) != q.size(3)) return false;
  if (q.size(3) % kWidthMultiple != 0 || q.size(3) > kMostWidth || q.numel() == 0) return false;
  return lies_in_runs(q, k, segments_q, segments_k, runs);
}

std::tuple<Tensor, Tensor> flash_attention_forward(const Tensor& q, const Tensor& k, const Tensor& v,
                                                   const OptionalTensor& segments, const OptionalTensor& runs,
                                                   double scale, bool causal, int64_t window) {
  const bool flat = segments.has_value();
  const Reach reach(causal, window);
  const OptionalTensor ends = flat ? runs : std::nullopt;
  auto [out, lse, state, unused, mask] =
      at::_flash_attention_forward(flash_operand(q, flat), flash_operand(k, flat), flash_operand(v, flat), ends, ends,
                                   q.size(1), k.size(1), /*dropout_p=*/0.0, causal,
                                   /*return_debug_mask=*/false, scale, reach.left, reach.right);
  if (!flat) return {out, lse};
  out = out.view({q.size(0), q.size(1), q.size(2), v.size(3)}).masked_fill(padding_of(*segments), 0.0);
  return {out, lse.view({q.size(2), q.size(0), q.size(1)}).transpose(0, 1)};  // it came as [H, B * T]
}

std::tuple<Tensor, Tensor, Tensor> flash_attention_backward(const Tensor& dout, const Tensor& q, const Tensor& k,
                                                            const Tensor& v, const Tensor& out, const Tensor& lse,
                                                            const OptionalTensor& segments, const OptionalTensor& runs,
                                                            double scale, bool causal, int64_t window) {
  const bool flat = segments.has_value();
  const Reach reach(causal, window);
  const Tensor none, ends = flat ? *runs : none;
  const Tensor seen = flat ? dout.masked_fill(padding_of(*segments), 0.0) : dout;
  const Tensor sums = flat ? lse.transpose(0, 1).reshape({q.size(2), -1}) : lse.contiguous();
  const Tensor no_draws = at::empty({2}, q.options().dtype(at::kLong));  // of dropout, which there is none of
  const DeterministicSums scope;
  auto [dq, dk, dv] = at::_flash_attention_backward(
      flash_operand(seen, flat), flash_operand(q, flat), flash_operand(k, flat), flash_operand(v, flat),
      flash_operand(out, flat), sums, ends, ends, q.size(1), k.size(1), /*dropout_p=*/0.0, causal, no_draws, no_draws,
      scale, reach.left, reach.right);
  return {dq.view(q.sizes()), dk.view(k.sizes()), dv.view(v.sizes())};
}

int64_t flash_forward_scratch(const Tensor& q, bool documents) {
  return documents ? q.numel() * q.element_size() : 0;  // before padding is blanked
}

int64_t flash_backward_scratch(const Tensor& q, const Tensor& k, bool documents) {
  constexpr int64_t kRows = 128, kProcessors = 132;  // of a block; of an H100 (an A100 has 108)
  const auto rounded = [](int64_t n, int64_t to) { return rounded_up_quotient(n, to) * to; };
  const int64_t batch = q.size(0), length = q.size(1), heads = q.size(2), depth = q.size(3);
  const int64_t width = rounded(depth, depth <= 128 ? 32 : 64);
  const int64_t rows = documents ? batch * (length + kRows) : batch * rounded(length, kRows);
  const int64_t orders = rounded_up_quotient(kProcessors, batch * heads);
  const int64_t dq_sums = 4 * orders * rows * heads * width, row_sums = 4 * rows * heads;
  const int64_t expanded = k.size(2) == heads ? 0 : 2 * batch * k.size(1) * heads * depth * k.element_size();
  const int64_t unpadded = documents ? q.numel() * q.element_size() + 4 * batch * heads * length : 0;
  return dq_sums + row_sums + expanded + unpadded;
}

}  // namespace limbeck::kernels
