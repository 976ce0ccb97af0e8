// What the Meta kernels plan for a GPU is what the bodies of CUDA take, to the byte.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <array>
#include <optional>
#include <string>

#include "fake_cuda/device_memory.h"
#include "kernels/attention/flash_attention_3.h"
#include "kernels/operator/operator_handle.h"
#include "kernels/operator/planned_device.h"
#include "kernels/quantized/quantized_linear.h"
#include "kernels/quantized/quantized_plan.h"
#include "kernels/quantized/row_codes.h"
#include "kernels/resolvent/resolvent.h"
#include "kernels/resolvent/tridiagonal_solve.h"
#include "kernels/sampling/sampling.h"
#include "modules/memory/meta_memory.h"

namespace limbeck::test {
namespace {

using at::Tensor;
using kernels::QuantizedFormat;
using kernels::QuantizedMatrix;
using memory::MetaMemory;

struct Product {
  int64_t count, rows, columns;
  QuantizedFormat format;
  at::ScalarType dtype;
  bool gaps, bias;

  std::string text() const {
    return std::to_string(count) + " rows of " + std::to_string(columns) + " to " + std::to_string(rows) + ", " +
           kernels::format_name(format) + " beside " + c10::toString(dtype) + (gaps ? ", with gaps" : "") +
           (bias ? ", with a bias" : "");
  }
};

template <class Call>
int64_t taken_by(const Call& call) {
  fake_cuda::reset_peak();
  const int64_t before = fake_cuda::live_bytes();
  call();
  return fake_cuda::peak_bytes() - before;
}

template <class Call>
int64_t planned_beside(const Call& call) {
  const kernels::PlanFor device(at::kCUDA);
  MetaMemory::reset_peak();
  const int64_t before = MetaMemory::live_bytes();
  call();
  return MetaMemory::peak_bytes() - before;
}

template <class Call>
int64_t planned_by(const Call& call) {
  const MetaMemory memory;
  return planned_beside(call);
}

using GradientOfX = Tensor(const Tensor&, at::TensorList, c10::string_view, int64_t, int64_t);

// What measure(call) says of the product and of the gradient of x, whose operands were made before, on this device.
// Without autograd: its threads free what they had at a time of their own.
template <class Measure>
std::array<int64_t, 2> peaks(const Product& p, c10::Device device, const Measure& measure) {
  static const auto gradient = kernels::typed_operator<GradientOfX>("limbeck::quantized_linear_backward");
  const at::NoGradGuard no_gradient;
  const auto options = at::TensorOptions(device).dtype(p.dtype);
  QuantizedMatrix weight = kernels::quantize(
      at::ones({p.rows, p.columns}, at::TensorOptions(device.is_meta() ? at::kMeta : at::kCPU)), p.format);
  for (Tensor& part : weight.parts) part = part.to(device);
  const auto made = [&](int64_t width) {
    return p.gaps ? at::ones({p.count, 2 * width}, options).narrow(1, 0, width) : at::ones({p.count, width}, options);
  };
  const Tensor x = made(p.columns), dy = made(p.rows);
  const auto bias = p.bias ? std::optional<Tensor>(at::ones({p.rows}, options)) : std::nullopt;
  return {measure([&] { kernels::quantized_linear(x, weight, bias); }),
          measure([&] { gradient.call(dy, weight.parts, kernels::format_name(p.format), p.rows, p.columns); })};
}

std::array<int64_t, 2> taken(const Product& p) {
  return peaks(p, at::kCUDA, [](const auto& call) { return taken_by(call); });
}

std::array<int64_t, 2> planned(const Product& p) {
  const MetaMemory memory;
  return peaks(p, at::kMeta, [](const auto& call) { return planned_beside(call); });
}

TEST(PlannedPeak, OfAQuantizedProductIsWhatItTakes) {
  // All rows at once; runs of 64, whose sums are float32 beside half types; a few rows of x, which unpack nothing.
  for (const int64_t bytes : {int64_t{0}, int64_t{64 * 96 * 4}}) {
    kernels::set_unpacked_bytes(bytes);
    for (const auto format :
         {QuantizedFormat::kInt8, QuantizedFormat::kInt8Dynamic, QuantizedFormat::kInt4, QuantizedFormat::kNf4}) {
      for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
        for (const int64_t count : {1, 8, 9, 40, 600}) {
          for (const bool gaps : {false, true}) {
            for (const int64_t rows : {300, 304}) {
              if (rows == 304 && !format.dynamic) continue;  // whose sums are cuBLAS's then
              const Product p{count, rows, 96, format, dtype, gaps, /*bias=*/count == 40};
              EXPECT_EQ(planned(p), taken(p)) << p.text() << ", scratch of " << bytes;
            }
          }
        }
      }
    }
  }
  kernels::set_unpacked_bytes(0);
}

TEST(PlannedPeak, OfAQuantizedProductHoldsItsUnpackedRows) {
  const Product few{8, 300, 96, QuantizedFormat::kNf4, at::kFloat, false, false};
  Product many = few;
  many.count = 9;
  // The gradient unpacks whatever the number of rows.
  EXPECT_EQ(planned(few), (std::array<int64_t, 2>{8 * 300 * 4, (8 + 300) * 96 * 4}));
  EXPECT_EQ(planned(many), (std::array<int64_t, 2>{9 * 300 * 4 + 300 * 96 * 4, (9 + 300) * 96 * 4}));
}

// Values alone, and by autograd's own two operators what training takes; a of heads that lie between tokens, as the
// mixer has it, is copied, and documents of heads too.
TEST(PlannedPeak, OfTheResolventIsWhatItTakes) {
  using Forward = std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&, bool,
                                                     const std::optional<Tensor>&, bool);
  using Backward = std::tuple<Tensor, Tensor, Tensor, Tensor>(
      const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, bool, const std::optional<Tensor>&,
      const Tensor&, const Tensor&);
  static const auto forward = kernels::typed_operator<Forward>("limbeck::resolvent_forward");
  static const auto backward = kernels::typed_operator<Backward>("limbeck::resolvent_backward");
  const at::NoGradGuard no_gradient;
  for (const int64_t n : {1, 32, 33, 3000}) {
    for (const bool causal : {true, false}) {
      for (const bool between : {true, false}) {
        const auto peaks_on = [&](c10::Device device, const auto& measure) {
          const auto options = at::TensorOptions(device).dtype(at::kFloat);
          const Tensor a = between ? at::ones({2, n, 3}, options).transpose(1, 2) : at::ones({2, 3, n}, options);
          const Tensor b = at::ones({n - 1}, options).expand({2, 3, n - 1}), z = at::ones({2, 3, 2}, options);
          std::optional<Tensor> documents;
          if (between) documents = at::zeros({2, 1, n}, options.dtype(at::kLong));
          const auto [g, left, right] = forward.call(a, b, b, z, causal, documents, true);
          const Tensor state = at::zeros({2, 3, 2}, options.dtype(at::kDouble)), coupling = at::ones_like(a);
          return std::array<int64_t, 4>{
              measure([&] { forward.call(a, b, b, z, causal, documents, false); }),
              measure([&] { forward.call(a, b, b, z, causal, documents, true); }),
              measure([&, &of = left, &other = right, &grad = g] {
                backward.call(grad, a, b, b, z, causal, documents, of, other);
              }),
              measure([&] { kernels::continued_resolvent(a, coupling, coupling, z, state); })};
        };
        const auto took = peaks_on(at::kCUDA, [](const auto& call) { return taken_by(call); });
        const MetaMemory memory;
        const auto plan = peaks_on(at::kMeta, [](const auto& call) { return planned_beside(call); });
        EXPECT_EQ(plan, took) << n << (causal ? " causal" : " whole") << (between ? ", heads between" : "");
      }
    }
  }
}

TEST(PlannedPeak, OfTridiagonalSystemsIsWhatTheyTake) {
  const at::NoGradGuard no_gradient;
  for (const int64_t n : {1, 32, 33, 3000}) {
    for (const int64_t columns : {0, 1, 5}) {
      const auto peak_on = [&](c10::Device device, const auto& measure) {
        const auto options = at::TensorOptions(device).dtype(at::kDouble);
        const Tensor a = at::ones({n, 3}, options).t(), b = at::ones({3, n - 1}, options);
        const Tensor z = at::ones({2}, options), rhs = at::ones({3, n, columns, 2}, options);
        return measure([&] { kernels::tridiagonal_solve(a, b, b, z, rhs); });
      };
      const int64_t took = peak_on(at::kCUDA, [](const auto& call) { return taken_by(call); });
      const MetaMemory memory;
      EXPECT_EQ(peak_on(at::kMeta, [](const auto& call) { return planned_beside(call); }), took) << n << ' ' << columns;
    }
  }
}

// Without gaps, and as the mixer has G of heads: with a copy.
TEST(PlannedPeak, OfRowsSeenAsCodesIsWhatTheyTake) {
  const at::NoGradGuard no_gradient;
  for (const bool between : {false, true}) {
    const auto peak_on = [&](c10::Device device, const auto& measure) {
      const Tensor made = at::ones({2, 40, 5, 3}, at::TensorOptions(device));
      const Tensor x = between ? made.permute({0, 2, 3, 1}) : made;
      return measure([&] { kernels::seen_through_row_codes(x); });
    };
    const int64_t took = peak_on(at::kCUDA, [](const auto& call) { return taken_by(call); });
    const MetaMemory memory;
    EXPECT_EQ(peak_on(at::kMeta, [](const auto& call) { return planned_beside(call); }), took) << between;
  }
}

// Greedy or sampled: of both the workspace, whatever the vocabulary.
TEST(PlannedPeak, OfSamplingIsWhatItTakes) {
  for (const double temperature : {0.0, 0.8}) {
    for (const auto dtype : {at::kFloat, at::kBFloat16}) {
      for (const int64_t rows : {1, 5}) {
        const auto sampled = [&](c10::Device device) {
          return [&, device] {
            kernels::sample_ids(at::ones({rows, 300}, at::TensorOptions(device).dtype(dtype)),
                                {.temperature = temperature, .top_k = 20, .top_p = 0.9});
          };
        };
        const int64_t plan = planned_by(sampled(at::kMeta)), took = taken_by(sampled(at::kCUDA));
        EXPECT_EQ(plan, took) << rows << " rows at " << temperature;
        EXPECT_GT(plan, rows * 2 * 2048 * 24);
      }
    }
  }
}

// Forward and backward, by FlashAttention 3.
struct Attended {
  int64_t batch, queries, keys, heads, key_heads, depth, window;
  bool causal, documents;
  double softcap;
};

// What measure(call) says of the backward, whose operands were made before, on this device.
template <class Measure>
int64_t peak_of_backward(const Attended& a, c10::Device device, const Measure& measure) {
  using Gradients =
      std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                         const Tensor&, const std::optional<Tensor>&, const std::optional<Tensor>&,
                                         double, bool, int64_t, double, const std::optional<Tensor>&);
  static const auto backward = kernels::typed_operator<Gradients>("limbeck::attention_backward");
  const at::NoGradGuard no_gradient;
  const auto options = at::TensorOptions(device).dtype(at::kBFloat16);
  const Tensor q = at::ones({a.batch, a.queries, a.heads, a.depth}, options), out = at::ones_like(q);
  const Tensor k = at::ones({a.batch, a.keys, a.key_heads, a.depth}, options), v = at::ones_like(k);
  const Tensor lse = at::ones({a.batch, a.heads, a.queries}, options.dtype(at::kFloat));
  std::optional<Tensor> segments, runs;
  if (a.documents) {
    segments = at::ones({a.batch, a.queries}, options.dtype(at::kInt));
    runs = at::arange(a.batch + 1, options.dtype(at::kInt)).mul(a.queries);
  }
  return measure(
      [&] { backward.call(out, q, k, v, out, lse, segments, segments, 0.1, a.causal, a.window, a.softcap, runs); });
}

TEST(PlannedPeak, OfFlashAttention3IsWhatItsStandInTakes) {
  kernels::use_flash_attention_3(LIMBECK_FAKE_FLASH_ATTENTION_3);
  for (const bool documents : {false, true}) {
    for (const bool causal : {false, true}) {
      for (const double softcap : {0.0, 3.0}) {
        for (const auto& [depth, key_heads] :
             {std::pair<int64_t, int64_t>{16, 4}, {64, 2}, {96, 1}, {128, 2}, {192, 4}}) {
          for (const int64_t window : {0, 20}) {
            const Attended a{2, 70, 70, 4, key_heads, depth, window, causal, documents, softcap};
            // Lengths, padding by documents and numbers of a few bytes beside it. The device is asked first: a plan
            // that nobody could ask for softcaps has the composition for them.
            const int64_t took = peak_of_backward(a, at::kCUDA, [](const auto& call) { return taken_by(call); });
            const MetaMemory memory;
            const int64_t plan = peak_of_backward(a, at::kMeta, [](const auto& call) { return planned_beside(call); });
            EXPECT_LE(std::abs(plan - took), 4 * 2 * 4 * 70)
                << depth << " wide, " << key_heads << " key heads, window " << window << ", causal " << causal
                << ", documents " << documents << ": " << plan << " and " << took;
          }
        }
      }
    }
  }
  kernels::use_flash_attention_3("");
}

TEST(PlannedPeak, RefusesWhatTheDeviceRefusesInItsWords) {
  const auto words = [](c10::Device device) -> std::string {
    const kernels::PlanFor plan(at::kCUDA);
    try {
      kernels::sample_ids(at::zeros({65536, 2}, at::TensorOptions(device)), {});
    } catch (const c10::Error& error) {
      const std::string text = error.what_without_backtrace();
      return text.substr(text.find("wanted"));
    }
    return "";
  };
  EXPECT_EQ(words(at::kMeta), "wanted at most 65535 rows of 4194303 on CUDA");
  EXPECT_EQ(words(at::kMeta), words(at::kCUDA));
}

}  // namespace
}  // namespace limbeck::test
