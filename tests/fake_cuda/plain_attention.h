// Attention as the stand-ins for flash attention compute it: sequence by sequence, in float32, on the host's side of
// the device's memory.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

namespace limbeck::fake_cuda {

struct PlainAttention {
  double scale, softcap;
  bool causal;
  std::optional<int64_t> left, right;  // keys that are seen beside one's own; none: all

  // q, k, v and out [B, L, H, D], or [total, H, D] with `ends`; lse [H, total].
  void forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const std::vector<int64_t>& queries,
               const std::vector<int64_t>& keys, const at::Tensor& out, const at::Tensor& lse) const;
  void backward(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                const at::Tensor& out, const at::Tensor& lse, const std::vector<int64_t>& queries,
                const std::vector<int64_t>& keys, const at::Tensor& dq, const at::Tensor& dk,
                const at::Tensor& dv) const;

 private:
  at::Tensor hidden(int64_t queries, int64_t keys) const;
  at::Tensor scores(const at::Tensor& q, const at::Tensor& k) const;
};

// What every flash attention refuses of an operand, `most` being its greatest head width.
void check_flash_operand(const char* name, const at::Tensor& t, const at::Tensor& q, int64_t most);

// Where the sequences of [total, H, D] lie; dense ones [B, L, H, D] lie end to end as well.
std::vector<int64_t> ends_of(const std::optional<at::Tensor>& cumulative, const at::Tensor& t);

// One operator more, where it is not recorded.
void count_operator(const at::Tensor& q);

}  // namespace limbeck::fake_cuda
