// How far predictions are from each other, against float64, from differences of 1e-7 to logits that are no numbers, and
// on the CUDA device.
#include "kernels/prediction_distance/prediction_distance.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "gpu_case.h"
#include "support/operator_checks.h"

namespace limbeck::test {
namespace {

constexpr double kEndless = std::numeric_limits<double>::infinity();

at::Tensor wide(const at::Tensor& x) { return x.to(at::kDouble); }

at::Tensor distances(const Tensors& in) {
  const auto found = kernels::prediction_distances(in[0], in[1], kernels::log_sums(in[1]));
  return at::stack({found.log_sums, found.kl, found.squares}, -1);
}

// KL as log of the mean of exp(d - mean d) under p, by a series where exp(x) - 1 - x cancels.
at::Tensor distances_in_float64(const Tensors& in) {
  const at::Tensor q = wide(in[0]), p = wide(in[1]), d = q - p, share = at::softmax(p, -1);
  const at::Tensor x = d - (share * d).sum(-1, true);
  const at::Tensor series = x * x * (0.5 + x * (1.0 / 6 + x * (1.0 / 24 + x * (1.0 / 120 + x / 720))));
  const at::Tensor excess = at::where(x.abs() < 0.01, series, at::expm1(x) - x);
  return at::stack({at::logsumexp(q, -1), at::log1p((share * excess).sum(-1)), (d * d).sum(-1)}, -1);
}

// Logits of a model and of one that is so far away from it.
Tensors pair_of(int64_t rows, int64_t width, double away, at::ScalarType of_q, at::ScalarType of_p) {
  const at::Tensor p = random_tensor({rows, width}, at::kDouble, 1).mul(3).to(of_p);
  return {(wide(p) + away * random_tensor({rows, width}, at::kDouble, 2)).to(of_q), p};
}

void expect_as_in_float64(const Tensors& in, const std::string& what) {
  const at::Tensor found = distances(in), wanted = distances_in_float64(in);
  const at::Tensor off = (found - wanted).abs(), kl = wanted.select(1, 1);
  // float32's exp at a distance of 16, where float64 takes over, is off by 1.1e-6 of itself; so are KL and logarithm.
  EXPECT_LT(off.select(1, 0).max().item<double>(), 2e-6) << what;
  EXPECT_TRUE((off.select(1, 1) <= 2e-6 * kl + 1e-30).all().item<bool>()) << what << off.select(1, 1).div(kl).max();
  EXPECT_TRUE((off.select(1, 2) <= 1e-12 * wanted.select(1, 2)).all().item<bool>()) << what;
}

TEST(PredictionDistances, cpu_AreThoseOfFloat64FromTheSmallestToTheLargest) {
  for (const auto of_q : {at::kFloat, at::kBFloat16, at::kHalf}) {
    for (const auto of_p : {at::kFloat, of_q}) {
      for (const int64_t width : {1, 5, 16, 33, 64, 67, 1000}) {
        for (const double away : {1e-7, 1e-4, 0.01, 0.3, 2.0, 6.0, 40.0}) {
          const Tensors in = pair_of(20, width, away, of_q, of_p);
          expect_as_in_float64(in, c10::str(of_q, " ", of_p, " ", width, " ", away));
        }
      }
    }
  }
}

// All logits by the same amount say nothing about predictions.
TEST(PredictionDistances, cpu_DoNotSeeWhatAllLogitsMoveBy) {
  for (const double shift : {-50.0, -1.0, 0.25, 8.0, 300.0}) {
    Tensors in = pair_of(20, 500, 1e-3, at::kFloat, at::kFloat);
    in[0] = in[0] + shift;
    const at::Tensor found = distances(in), wanted = distances_in_float64(in);
    EXPECT_TRUE(((found - wanted).abs().select(1, 1) <= 2e-6 * wanted.select(1, 1)).all().item<bool>()) << shift;
    EXPECT_LT((found - wanted).abs().select(1, 0).max().item<double>(), 2e-6) << shift;
  }
}

// Of what hardly anything is expected of, too far for float32: KL stays as small as it is, to float64's rounding.
TEST(PredictionDistances, cpu_AreSmallWhereOnlyWhatIsUnlikelyMovesFar) {
  for (const double to : {-90.0, -58.0, -22.0}) {
    const Tensors in = pair_of(20, 300, 1e-5, at::kFloat, at::kFloat);
    in[1].select(1, 7).fill_(-40);
    in[0].select(1, 7).fill_(to);
    const at::Tensor kl = distances(in).select(1, 1), wanted = distances_in_float64(in).select(1, 1);
    EXPECT_TRUE(((kl - wanted).abs() <= 2e-6 * wanted + 1e-13).all().item<bool>()) << to << (kl - wanted).abs().max();
  }
}

TEST(PredictionDistances, cpu_OfEqualLogitsAreNothing) {
  const at::Tensor p = random_tensor({9, 333}, at::kFloat, 3);
  const at::Tensor found = distances({p, p.clone()});
  EXPECT_TRUE(found.slice(1, 1).eq(0).all().item<bool>());
  expect_same_bits(found.select(1, 0).contiguous(), kernels::log_sums(p), "logarithms");
}

TEST(PredictionDistances, cpu_OfFloat64AreInFloat64) {
  for (const auto of_p : {at::kDouble, at::kFloat, at::kHalf}) {
    const Tensors in = pair_of(20, 77, 0.3, at::kDouble, of_p);
    EXPECT_LT((distances(in) - distances_in_float64(in)).abs().max().item<double>(), 1e-12) << of_p;
    EXPECT_LT((distances({in[1], in[0]}) - distances_in_float64({in[1], in[0]})).abs().max().item<double>(), 1e-12);
  }
}

// Neither is a KL that is finite made of what is not.
TEST(PredictionDistances, cpu_KeepWhatIsNoNumber) {
  for (const int64_t width : {5, 40, 100}) {
    for (const int64_t place : {int64_t{0}, width / 2, width - 1}) {
      for (const double value : {kEndless, -kEndless, std::numeric_limits<double>::quiet_NaN()}) {
        const Tensors in = pair_of(4, width, 0.1, at::kFloat, at::kFloat);
        in[0][1][place] = value;
        const at::Tensor found = distances(in), sums = kernels::log_sums(in[0]);
        const at::Tensor wanted = at::logsumexp(wide(in[0]), -1);
        EXPECT_TRUE(at::allclose(sums, wanted, 1e-6, 1e-6, /*equal_nan=*/true))
            << width << " " << place << " " << value;
        EXPECT_TRUE(at::allclose(found.select(1, 0), wanted, 1e-6, 1e-6, /*equal_nan=*/true)) << value;
        EXPECT_FALSE(std::isfinite(found[1][1].item<double>())) << value;
        EXPECT_FALSE(std::isfinite(found[1][2].item<double>())) << value;
        const at::Tensor others = at::cat({found.slice(0, 0, 1), found.slice(0, 2)});
        expect_same_bits(others,
                         distances({at::cat({in[0].slice(0, 0, 1), in[0].slice(0, 2)}),
                                    at::cat({in[1].slice(0, 0, 1), in[1].slice(0, 2)})}),
                         "the others");
      }
    }
  }
  const at::Tensor none = at::full({1, 20}, -kEndless);
  EXPECT_EQ(kernels::log_sums(none).item<double>(), -kEndless);
  // Float32's largest: their difference is none, but float64's.
  const at::Tensor most = at::full({1, 20}, std::numeric_limits<float>::max());
  EXPECT_DOUBLE_EQ(distances({most, -most})[0][2].item<double>(),
                   20 * std::pow(2.0 * std::numeric_limits<float>::max(), 2));
}

TEST(PredictionDistances, cpu_DependOnTheRowAlone) {
  const Tensors in = pair_of(300, 1000, 0.2, at::kFloat, at::kFloat);
  const at::Tensor all = distances(in);
  for (const int threads : {1, 2}) {
    const int before = at::get_num_threads();
    at::set_num_threads(threads);
    const at::Tensor again = distances(in);
    at::set_num_threads(before);
    expect_same_bits(again, all, c10::str(threads, " threads"));
  }
  const at::Tensor meta = distances({in[0].to(at::kMeta), in[1].to(at::kMeta)});
  EXPECT_TRUE(meta.is_meta() && meta.sizes() == all.sizes() && meta.scalar_type() == at::kDouble);
  EXPECT_FALSE(distances({in[0].detach().requires_grad_(), in[1]}).requires_grad());
  for (const int64_t row : {0, 17, 299}) {
    expect_same_bits(all.narrow(0, row, 1), distances({in[0].narrow(0, row, 1), in[1].narrow(0, row, 1)}), "alone");
  }
  const Tensors turned{in[0].t().contiguous().t(), in[1].t().contiguous().t()};
  expect_same_bits(distances(turned), all, "strides");
  const Tensors parts{in[0].slice(1, 3, 900), in[1].slice(1, 3, 900)};
  expect_same_bits(distances(parts), distances({parts[0].contiguous(), parts[1].contiguous()}), "parts of rows");
  EXPECT_EQ(distances({in[0].narrow(0, 0, 0), in[1].narrow(0, 0, 0)}).sizes(), at::IntArrayRef({0, 3}));
}

TEST(PredictionDistances, RefuseWhatDoesNotFit) {
  const at::Tensor z = at::ones({3, 4});
  const auto refused = [](const at::Tensor& a, const at::Tensor& b, const at::Tensor& sums, const char* message) {
    try {
      kernels::prediction_distances(a, b, sums);
      ADD_FAILURE() << message;
    } catch (const c10::Error& error) {
      EXPECT_NE(std::string(error.what()).find(message), std::string::npos) << error.what();
    }
  };
  const at::Tensor sums = kernels::log_sums(z);
  refused(at::ones({3, 4, 2}), z, sums, "[prediction_distances] logits is float32 [3, 4, 2] on cpu, wanted [rows, V]");
  refused(z, at::ones({3, 5}), sums, "[prediction_distances] reference is float32 [3, 5] on cpu, wanted [3, 4]");
  refused(z, z.to(at::kLong), sums, "[prediction_distances] reference is int64 [3, 4] on cpu, wanted float32");
  refused(z, z.to(at::kMeta), sums, "[prediction_distances] reference is float32 [3, 4] on meta, wanted it on cpu");
  refused(z, z, sums.to(at::kFloat), "[prediction_distances] of_reference is float32 [3] on cpu, wanted float64 [3]");
  refused(z, z, sums.narrow(0, 0, 2), "[prediction_distances] of_reference is float64 [2] on cpu, wanted float64 [3]");
}

TEST(PredictionDistances, cuda_AreThoseOfFloat64) {
  LIMBECK_NEEDS_GPU();
  for (const auto of_q : {at::kFloat, at::kHalf}) {
    const Tensors in = pair_of(20, 500, 0.3, of_q, at::kFloat);
    const at::Tensor found = distances({in[0].cuda(), in[1].cuda()}).cpu();
    EXPECT_LT((found - distances_in_float64(in)).abs().max().item<double>(), 1e-10) << of_q;
    EXPECT_EQ(distances({in[0].cuda().narrow(0, 0, 0), in[1].cuda().narrow(0, 0, 0)}).numel(), 0);
  }
}

}  // namespace
}  // namespace limbeck::test
