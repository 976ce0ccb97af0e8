// Linears with packed weights beside our float32 and bfloat16 ones, interleaved in one run, and the bandwidth of
// memory, measured by a search for a byte through a block that no cache holds, without finding it. limbeck_bench
// quantized [rounds] [rows,rows,...]; prints the median milliseconds, how often each is as fast as the float32 and the
// bfloat16 linear (medians of the ratios of a round), and what share of the bandwidth it reads with (of both the
// fastest round).
#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "benchmarks/benchmarks.h"
#include "benchmarks/plain_read.h"
#include "benchmarks/timing.h"
#include "kernels/linear/linear.h"
#include "kernels/quantized/quantized_linear.h"

namespace limbeck::bench::quantized_bench {
namespace {

using at::Tensor;

struct Contestant {
  std::string name;
  double bytes;  // of the weight
  std::function<void()> work;
};

double fastest(const std::vector<double>& values) { return *std::min_element(values.begin(), values.end()); }

double median_ratio(const std::vector<double>& of, const std::vector<double>& to) {
  std::vector<double> ratios;
  for (size_t i = 0; i < of.size(); ++i) ratios.push_back(of[i] / to[i]);
  return median(ratios);
}

double bytes_of(const kernels::QuantizedMatrix& weight) {
  double bytes = 0;
  for (const Tensor& part : weight.parts) bytes += static_cast<double>(part.nbytes());
  return bytes;
}

void measure(int64_t rows, int64_t out, int64_t in, int rounds) {
  const auto w = at::randn({out, in}) * 0.02;
  const auto w16 = w.to(at::kBFloat16);
  std::vector<kernels::QuantizedMatrix> packed;
  for (const std::string& format : kernels::format_names())
    packed.push_back(kernels::quantize(w, kernels::format_named(format)));
  const auto x = at::randn({rows, in}), x16 = x.to(at::kBFloat16), half = x.to(at::kHalf);
  const auto block = at::full({int64_t{64} << 20}, 2.0F);  // larger than the last cache
  std::vector<Contestant> all = {
      {"read", static_cast<double>(block.nbytes()), [&] { search_in_vain(block); }},
      {"linear float32", static_cast<double>(w.nbytes()), [&] { kernels::linear(x, w); }},
      {"linear bfloat16", static_cast<double>(w16.nbytes()), [&] { kernels::linear(x16, w16); }}};
  for (const kernels::QuantizedMatrix& weight : packed) {
    for (const Tensor* of : {&x, &x16, &half}) {
      all.push_back({std::string(kernels::format_name(weight.format)) + " " + c10::toString(of->scalar_type()),
                     bytes_of(weight), [&weight, of] { kernels::quantized_linear(*of, weight); }});
    }
  }
  std::vector<std::vector<double>> times(all.size());
  for (const Contestant& contestant : all) contestant.work();
  for (int round = 0; round < rounds; ++round) {
    for (size_t i = 0; i < all.size(); ++i) times[i].push_back(seconds(all[i].work));
  }
  const double bandwidth = all[0].bytes / fastest(times[0]);  // what else the machine does takes its share too
  std::printf("%ld rows, weight %ld x %ld; memory gives %.1f GB/s\n", static_cast<long>(rows), static_cast<long>(out),
              static_cast<long>(in), bandwidth * 1e-9);
  for (size_t i = 1; i < all.size(); ++i) {
    std::printf("  %-22s %9.3f ms   of float32 %6.2f x   of bfloat16 %6.2f x   %5.1f %% of bandwidth\n",
                all[i].name.c_str(), 1e3 * median(times[i]), median_ratio(times[1], times[i]),
                median_ratio(times[2], times[i]), 100 * all[i].bytes / fastest(times[i]) / bandwidth);
  }
}

std::vector<int64_t> numbers(const std::string& text) {
  std::vector<int64_t> all;
  for (size_t at = 0; at < text.size();) {
    size_t used = 0;
    all.push_back(std::stoll(text.substr(at), &used));
    at += used + 1;
  }
  return all;
}

}  // namespace

int main_of(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  const c10::InferenceMode inference;
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 11;
  const auto rows = numbers(argc > 2 ? argv[2] : "1,8,16,128");
  std::printf("threads %d   ATen's instruction set %s\n", at::get_num_threads(), at::get_cpu_capability().c_str());
  for (const int64_t count : rows) {
    measure(count, 4096, 4096, rounds);
    measure(count, 11008, 4096, rounds);
  }
  return 0;
}

}  // namespace limbeck::bench::quantized_bench
