// Norms, gated activations and rotary, forward and backward, against the compositions of ATen operators that
// transformers' modules amount to, each with eager autograd.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <malloc.h>
#include <torch/csrc/autograd/autograd.h>

#include "benchmarks/benchmarks.h"
#include "benchmarks/paired.h"
#include "kernels/gated/gated_activation.h"
#include "kernels/norm/norm.h"
#include "kernels/rotary/rotary.h"

namespace limbeck::bench::kernels_bench {
namespace {

using Tensors = std::vector<at::Tensor>;
using Operator = std::function<at::Tensor(const Tensors&)>;

constexpr double kEps = 1e-6;

// As LlamaRMSNorm: widen, normalise, round, multiply.
at::Tensor llama_rms_norm(const Tensors& in) {
  const at::Tensor wide = in[0].to(at::kFloat);
  const at::Tensor variance = wide.pow(2).mean(-1, true);
  return in[1] * (wide * at::rsqrt(variance + kEps)).to(in[0].scalar_type());
}

at::Tensor rotate_half(const at::Tensor& x) {
  const int64_t half = x.size(-1) / 2;
  return at::cat({-x.narrow(-1, half, half), x.narrow(-1, 0, half)}, -1);
}

// As apply_rotary_pos_emb, whose tables have the dtype of x and both halves.
at::Tensor llama_rotary(const Tensors& in) { return in[0] * in[1] + rotate_half(in[0]) * in[2]; }

Body step(const Operator& op, const Tensors& inputs, size_t differentiable, const at::Tensor& grad) {
  return [=] {
    const Tensors wanted(inputs.begin(), inputs.begin() + static_cast<std::ptrdiff_t>(differentiable));
    torch::autograd::grad({op(inputs)}, wanted, {grad});
  };
}

at::Tensor leaf(at::IntArrayRef shape, at::ScalarType dtype) {
  return at::randn(shape, at::TensorOptions().dtype(dtype)).requires_grad_(true);
}

void add(const std::string& name, const Operator& ours, const Operator& theirs, const Tensors& inputs) {
  const at::Tensor grad = at::randn_like(inputs[0].detach());
  add_pair(name, step(ours, inputs, inputs.size(), grad), step(theirs, inputs, inputs.size(), grad));
  // Evaluation: no graph.
  add_pair(
      name + " forward",
      [=] {
        const at::NoGradGuard no_grad;
        ours(inputs);
      },
      [=] {
        const at::NoGradGuard no_grad;
        theirs(inputs);
      });
}

void add_all(at::ScalarType dtype, const std::string& type) {
  for (const auto& [rows, width] : {std::pair<int64_t, int64_t>{2048, 1024}, {2048, 4096}, {8192, 2048}}) {
    const Tensors inputs{leaf({rows, width}, dtype), leaf({width}, dtype)};
    add(
        fmt::format("rms_norm {} {}x{}", type, rows, width),
        [](const Tensors& in) { return kernels::rms_norm(in[0], in[1], kEps); }, llama_rms_norm, inputs);
  }
  const Tensors norm_inputs{leaf({2048, 1024}, dtype), leaf({1024}, dtype), leaf({1024}, dtype)};
  add(
      fmt::format("layer_norm {} 2048x1024", type),
      [](const Tensors& in) { return kernels::layer_norm(in[0], in[1], in[2], kEps); },
      [](const Tensors& in) { return at::layer_norm(in[0], {in[0].size(-1)}, in[1], in[2], kEps); }, norm_inputs);
  for (const auto& [rows, width] : {std::pair<int64_t, int64_t>{2048, 2816}, {2048, 8192}, {4096, 11008}}) {
    const Tensors inputs{leaf({rows, width}, dtype), leaf({rows, width}, dtype)};
    add(
        fmt::format("swiglu {} {}x{}", type, rows, width),
        [](const Tensors& in) { return kernels::swiglu(in[0], in[1]); },
        [](const Tensors& in) { return at::silu(in[0]) * in[1]; }, inputs);
  }
  const Tensors gated_inputs{leaf({2048, 2816}, dtype), leaf({2048, 2816}, dtype)};
  add(
      fmt::format("geglu_tanh {} 2048x2816", type), [](const Tensors& in) { return kernels::geglu_tanh(in[0], in[1]); },
      [](const Tensors& in) { return at::gelu(in[0], "tanh") * in[1]; }, gated_inputs);

  const at::Tensor x = leaf({2, 1024, 16, 64}, dtype), angles = at::randn({1, 1024, 32});
  const at::Tensor cos = angles.cos(), sin = angles.sin();
  const at::Tensor wide_cos = at::cat({cos, cos}, -1).unsqueeze(2).to(dtype);
  const at::Tensor wide_sin = at::cat({sin, sin}, -1).unsqueeze(2).to(dtype);
  add(
      fmt::format("rotary {} 2x1024x16x64", type),
      [=](const Tensors& in) { return kernels::rotary_embedding(in[0], cos, sin); },
      [=](const Tensors& in) {
        return llama_rotary({in[0], wide_cos, wide_sin});
      },
      {x});
}

}  // namespace

int main_of(int argc, char** argv) {
  // Without this glibc gives large buffers back and faults them in again at every call, and that is what would be
  // timed.
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, 2147483647);
  mallopt(M_TOP_PAD, 64 << 20);
  add_all(at::kBFloat16, "bfloat16");
  add_all(at::kFloat, "float32");
  return run_pairs(argc, argv);
}

}  // namespace limbeck::bench::kernels_bench
