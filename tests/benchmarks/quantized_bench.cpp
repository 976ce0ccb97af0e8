// Linears with packed weights beside our float32 and bfloat16 ones, interleaved in one run, and the bandwidth of
// memory, measured by reading a block that no cache holds. limbeck_bench quantized [rounds] [rows,rows,...]; prints the
// median milliseconds, how often each is as fast as the float32 and the bfloat16 linear (medians of the ratios of a
// round), and for what share of the bandwidth it reads.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "benchmarks/benchmarks.h"
#include "kernels/linear/linear.h"
#include "kernels/quantized/int8_dynamic_linear.h"
#include "kernels/quantized/quantized_linear.h"

namespace limbeck::bench::quantized_bench {
namespace {

using at::Tensor;

struct Contestant {
  std::string name;
  double bytes;  // of the weight
  std::function<void()> work;
};

double seconds(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

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

// All threads add up the words of a block that is larger than the last cache, in vectors.
struct StreamRead {
  typedef int64_t Words __attribute__((vector_size(32)));
  static constexpr int64_t kTogether = 8, kWords = 4;
  Tensor block = at::ones({int64_t{32} << 20}, at::kLong);
  int64_t sum = 0;

  void operator()() {
    const auto* words = block.const_data_ptr<int64_t>();
    constexpr int64_t piece = kTogether * kWords;
    const int64_t pieces = block.numel() / piece;
    sum += at::parallel_reduce(
        0, pieces, pieces / at::get_num_threads(), int64_t{0},
        [&](int64_t begin, int64_t end, int64_t from) {
          Words part[kTogether] = {};
          for (int64_t i = begin; i < end; ++i) {
            for (int64_t j = 0; j < kTogether; ++j) {
              Words read;
              __builtin_memcpy(&read, words + i * piece + j * kWords, sizeof read);
              part[j] += read;
            }
          }
          for (const Words& each : part) from += each[0] + each[1] + each[2] + each[3];
          return from;
        },
        [](int64_t a, int64_t b) { return a + b; });
  }
};

void measure(int64_t rows, int64_t out, int64_t in, int rounds) {
  const auto w = at::randn({out, in}) * 0.02;
  const auto w16 = w.to(at::kBFloat16);
  std::vector<kernels::QuantizedMatrix> packed;
  for (const std::string& format : kernels::format_names())
    packed.push_back(kernels::quantize(w, kernels::format_named(format)));
  const auto x = at::randn({rows, in}), x16 = x.to(at::kBFloat16), half = x.to(at::kHalf);
  StreamRead stream;
  std::vector<Contestant> all = {
      {"read", static_cast<double>(stream.block.nbytes()), [&] { stream(); }},
      {"linear float32", static_cast<double>(w.nbytes()), [&] { kernels::linear(x, w); }},
      {"linear bfloat16", static_cast<double>(w16.nbytes()), [&] { kernels::linear(x16, w16); }}};
  for (const kernels::QuantizedMatrix& weight : packed) {
    for (const Tensor* of : {&x, &x16, &half}) {
      all.push_back({std::string(kernels::format_name(weight.format)) + " " + c10::toString(of->scalar_type()),
                     bytes_of(weight), [&weight, of] { kernels::quantized_linear(*of, weight); }});
      if (weight.format == kernels::QuantizedFormat::kInt8) {
        all.push_back({std::string("int8 dynamic ") + c10::toString(of->scalar_type()), bytes_of(weight),
                       [&weight, of] { kernels::int8_dynamic_linear(*of, weight); }});
      }
    }
  }
  std::vector<std::vector<double>> times(all.size());
  for (const Contestant& contestant : all) contestant.work();
  for (int round = 0; round < rounds; ++round) {
    for (size_t i = 0; i < all.size(); ++i) times[i].push_back(seconds(all[i].work));
  }
  const double bandwidth = all[0].bytes / median(times[0]);
  std::printf("%ld rows, weight %ld x %ld; memory gives %.1f GB/s\n", static_cast<long>(rows), static_cast<long>(out),
              static_cast<long>(in), bandwidth * 1e-9);
  for (size_t i = 1; i < all.size(); ++i) {
    std::printf("  %-22s %9.3f ms   of float32 %6.2f x   of bfloat16 %6.2f x   %5.1f %% of bandwidth\n",
                all[i].name.c_str(), 1e3 * median(times[i]), median_ratio(times[1], times[i]),
                median_ratio(times[2], times[i]), 100 * all[i].bytes / median(times[i]) / bandwidth);
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
