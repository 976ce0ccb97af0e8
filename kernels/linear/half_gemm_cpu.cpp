#include "kernels/linear/half_gemm_cpu.h"

#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <string_view>

#ifndef _OPENMP
#error "compile kernels/ with -fopenmp: at::parallel_for is header code and runs on one thread without it"
#endif

#include "kernels/cpu/scratch_buffer.h"

namespace limbeck::kernels {

void half_gemm(const HalfGemm& g) {
  if (g.m == 0 || g.n == 0) return;
  // Cut the longer side of C among the threads; the other side stays whole so that fewer operands are widened twice.
  const int64_t threads = at::in_parallel_region() ? 1 : at::get_num_threads();
  const bool by_rows = g.m >= g.n;
  const int64_t length = by_rows ? g.m : g.n;
  constexpr int64_t unit = 32;
  const int64_t units = (length + unit - 1) / unit;
  const int64_t grain = 2.0 * g.m * g.n * g.k < 4e6 ? units : (units + threads - 1) / threads;
  at::parallel_for(0, units, grain, [&](int64_t begin, int64_t end) {
    const int64_t from = begin * unit, to = std::min(end * unit, length);
    const int64_t m0 = by_rows ? from : 0, m1 = by_rows ? to : g.m;
    const int64_t n0 = by_rows ? 0 : from, n1 = by_rows ? g.n : to;
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
