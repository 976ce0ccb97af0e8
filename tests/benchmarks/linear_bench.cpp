// float16 linear on this CPU: ours and ATen's, interleaved in one run, and the float32 product as the physical limit.
// limbeck_bench linear [rounds]; prints the median GFLOP/s of each and the median of the ratios, forward and backward
// apart. ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 makes ATen behave as on processors without float16 instructions.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

#include "benchmarks/benchmarks.h"
#include "benchmarks/timing.h"
#include "kernels/linear/half_gemm_cpu.h"
#include "kernels/linear/linear.h"

namespace limbeck::bench::linear_bench {
namespace {

using limbeck::kernels::HalfGemmPath;

struct Shape {
  int64_t m, n, k;
};

// Each contestant once a round, so that what else the machine does hits all alike.
std::vector<std::vector<double>> interleave(const std::vector<std::function<void()>>& contestants, int rounds) {
  std::vector<std::vector<double>> times(contestants.size());
  for (const auto& work : contestants) work();
  for (int round = 0; round < rounds; ++round) {
    for (size_t i = 0; i < contestants.size(); ++i) times[i].push_back(seconds(contestants[i]));
  }
  return times;
}

void report(const char* what, const Shape& s, double gflop, const std::vector<std::vector<double>>& t) {
  std::vector<double> ratio, limit;
  for (size_t i = 0; i < t[0].size(); ++i) {
    ratio.push_back(t[1][i] / t[0][i]);
    limit.push_back(t[2][i] / t[0][i]);
  }
  std::printf(
      "%-9s %5ld x %5ld x %5ld   ours %7.1f   ATen %7.1f   float32 %7.1f GFLOP/s   ours/ATen %6.2f   ours/float32 "
      "%5.2f\n",
      what, static_cast<long>(s.m), static_cast<long>(s.n), static_cast<long>(s.k), gflop / median(t[0]),
      gflop / median(t[1]), gflop / median(t[2]), median(ratio), median(limit));
}

double rms_error(const at::Tensor& y, const at::Tensor& exact) {
  return (y.to(at::kDouble) - exact).square().mean().sqrt().item<double>();
}
double max_error(const at::Tensor& y, const at::Tensor& exact) {
  return (y.to(at::kDouble) - exact).abs().max().item<double>();
}

void measure(const Shape& s, int rounds) {
  namespace kernels = limbeck::kernels;
  const auto x = at::randn({s.m, s.k}).to(at::kHalf), w = at::randn({s.n, s.k}).to(at::kHalf);
  const auto dy = at::randn({s.m, s.n}).to(at::kHalf);
  const auto xf = x.to(at::kFloat), wf = w.to(at::kFloat), dyf = dy.to(at::kFloat);
  const double gflop = 2e-9 * s.m * s.n * s.k;

  report("forward", s, gflop,
         interleave({[&] { kernels::linear(x, w); }, [&] { at::linear(x, w); }, [&] { at::linear(xf, wf); }}, rounds));
  report("backward", s, 2 * gflop,
         interleave({[&] { kernels::linear(dy, w.t()), kernels::linear(dy.t(), x.t()); },
                     [&] { at::mm(dy, w), at::mm(dy.t(), x); }, [&] { at::mm(dyf, wf), at::mm(dyf.t(), xf); }},
                    rounds));
  const auto exact = at::linear(x.to(at::kDouble), w.to(at::kDouble));
  const auto ours = kernels::linear(x, w), aten = at::linear(x, w);
  std::printf("          error against float64: ours rms %.6g max %.6g   ATen rms %.6g max %.6g\n",
              rms_error(ours, exact), max_error(ours, exact), rms_error(aten, exact), max_error(aten, exact));
}

}  // namespace

int main_of(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // some of ATen's rounds take minutes
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 15;
  std::printf("threads %d   path %s\n", at::get_num_threads(),
              limbeck::kernels::half_gemm_path() == HalfGemmPath::kNative ? "native (ATen)" : "widen");
  for (const Shape& s :
       {Shape{512, 512, 2048}, {2048, 1024, 1024}, {1024, 8192, 512}, {8, 2048, 2048}, {1, 2048, 2048}}) {
    measure(s, rounds);
  }
  return 0;
}

}  // namespace limbeck::bench::linear_bench
