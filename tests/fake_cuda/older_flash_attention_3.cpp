// A library of FlashAttention 3 whose operators are not the ones that are called: of another version.
#include <torch/library.h>

TORCH_LIBRARY(flash_attn_3, m) {
  m.def("fwd(Tensor q, Tensor k, Tensor v, float? softmax_scale=None, bool is_causal=False) -> (Tensor, Tensor)");
}
