#include "kernels/linear/half_gemm_cpu.h"

#include <ATen/core/dispatch/Dispatcher.h>

#include <atomic>
#include <cstdlib>
#include <string_view>

#include "kernels/cpu/product_shares.h"
#include "kernels/cpu/scratch_buffer.h"

namespace limbeck::kernels {

void half_gemm(const HalfGemm& g) {
  if (g.m == 0 || g.n == 0) return;
  for_product_shares(g.m, g.n, g.k, 4e6, [&](int64_t m0, int64_t m1, int64_t n0, int64_t n1) {
    const auto& loops = half_gemm_loops_here();
    loops.share(g, m0, m1, n0, n1, ScratchBuffer<HalfGemm>::at_least(static_cast<size_t>(loops.scratch_bytes)));
  });
}

namespace {

HalfGemmPath path_of_this_machine() {
  const char* wish = std::getenv("LIMBECK_FP16_GEMM");
  const std::string_view name = wish ? wish : "";
  TORCH_CHECK(name.empty() || name == "native" || name == "widen", "[linear] LIMBECK_FP16_GEMM=", name,
              ", wanted native or widen");
  if (name == "native") return HalfGemmPath::kNative;
  if (name == "widen") return HalfGemmPath::kWiden;
  const auto op = c10::Dispatcher::singleton().findSchema({"mkldnn::_is_mkldnn_fp16_supported", ""});
  return op && op->typed<bool()>().call() ? HalfGemmPath::kNative : HalfGemmPath::kWiden;
}

std::atomic<HalfGemmPath>& chosen_gemm_path() {
  static std::atomic<HalfGemmPath> path = path_of_this_machine();
  return path;
}

}  // namespace

HalfGemmPath half_gemm_path() { return chosen_gemm_path().load(std::memory_order_relaxed); }
void set_half_gemm_path(HalfGemmPath path) { chosen_gemm_path().store(path, std::memory_order_relaxed); }

}  // namespace limbeck::kernels
