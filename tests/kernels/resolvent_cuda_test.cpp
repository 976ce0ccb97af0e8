// The resolvent on CUDA against dense inverses and against the CPU's, whose recurrence is not divided.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>

#include "gpu_case.h"
#include "kernels/resolvent/resolvent.h"
#include "resolvent_cases.h"
#include "support/operator_checks.h"

namespace limbeck::test {
namespace {

using kernels::resolvent;

// What a device makes of matrices: values and the gradients of a, b, c and z, all on the CPU.
Tensors results_on(c10::Device device, bool causal, const Tensors& in, const at::Tensor& documents = {}) {
  std::optional<at::Tensor> ids;
  if (documents.defined()) ids = documents.to(device);
  Tensors there;
  for (const at::Tensor& one : in) there.push_back(one.to(device));
  const Operator op = [&](const Tensors& x) { return resolvent(x[0], x[1], x[2], x[3], causal, ids); };
  Tensors out = output_and_gradients(op, there, 4);
  for (at::Tensor& one : out) one = one.cpu();
  return out;
}

// Errors relative to the largest number of each result.
void expect_near(const Tensors& ours, const Tensors& wanted, double most, const std::string& what) {
  ASSERT_EQ(ours.size(), wanted.size());
  for (size_t k = 0; k < ours.size(); ++k) {
    if (wanted[k].numel() == 0) continue;
    ASSERT_EQ(ours[k].scalar_type(), wanted[k].scalar_type()) << what;
    const at::Tensor want = wanted[k].to(at::kDouble), error = (ours[k].to(at::kDouble) - want).abs().max();
    EXPECT_LE(error.item<double>(), most * std::max(1.0, want.abs().max().item<double>())) << what << ", result " << k;
  }
}

std::string said(int64_t n, bool causal) { return std::to_string(n) + (causal ? " causal" : " whole"); }

TEST(ResolventCuda, cuda_EqualsDenseInversesWithAllGradients) {
  LIMBECK_NEEDS_GPU();
  for (const bool causal : {true, false}) {
    const Tensors of_one = matrices({2}, 1, at::kDouble, 200);
    EXPECT_LT(worst(results_on(at::kCUDA, causal, of_one)[0], dense_reference(of_one)), 1e-12);
    for (const int64_t n : {2, 3, 33, 64}) {
      const Tensors in = matrices({2}, n, at::kDouble, 200 + n);
      const Tensors wanted = output_and_gradients(causal ? leading_reference : dense_reference, in, 4);
      expect_near(results_on(at::kCUDA, causal, in), wanted, 1e-10, said(n, causal));
    }
  }
  const Tensors in = matrices({}, 970, at::kDouble, 210);
  expect_near(results_on(at::kCUDA, false, in), output_and_gradients(dense_reference, in, 4), 1e-10, "970 whole");
}

// 1e-7: one rounding to float32, which the CPU makes too of a number that differs by float64's.
TEST(ResolventCuda, cuda_HasTheValuesAndGradientsOfTheCpu) {
  LIMBECK_NEEDS_GPU();
  for (const bool causal : {true, false}) {
    for (const int64_t n : {1, 2, 31, 32, 33, 65, 970, 2048, 8192, 8193}) {
      for (const auto dtype : {at::kFloat, at::kDouble}) {
        for (const bool symmetric : {false, true}) {
          const Tensors in = matrices({n > 1000 ? 1 : 3}, n, dtype, 220 + n, symmetric ? 0.01 : 0.5, symmetric);
          expect_near(results_on(at::kCUDA, causal, in), results_on(at::kCPU, causal, in),
                      dtype == at::kFloat ? 1.2e-7 : 1e-10, said(n, causal) + (symmetric ? " symmetric" : ""));
        }
      }
    }
  }
}

// One sequence of one head, divided among 4,096 threads in 128 blocks. In the even matrix z is close above its band and
// nothing contracts: what errors of float64 grow to, the CPU's as well.
TEST(ResolventCuda, cuda_ALongRowIsThatOfTheCpu) {
  LIMBECK_NEEDS_GPU();
  constexpr int64_t n = 131072;
  for (const bool causal : {true, false}) {
    const Tensors in = matrices({}, n, at::kDouble, 230, 0.1, true);
    expect_near(results_on(at::kCUDA, causal, in), results_on(at::kCPU, causal, in), 1e-10, said(n, causal));
    const auto options = at::TensorOptions(at::kDouble);
    const Tensors even{at::full({n}, -0.7, options), at::ones({n - 1}, options), at::ones({n - 1}, options),
                       at::tensor({0.3, 1e-3}, options)};
    expect_near(results_on(at::kCUDA, causal, even), results_on(at::kCPU, causal, even), 1e-9,
                said(n, causal) + " even");
  }
}

TEST(ResolventCuda, cuda_PassesASingularLeadingMatrixAtAnyPlace) {
  LIMBECK_NEEDS_GPU();
  for (const int64_t n : {3, 33, 64, 97, 1000}) {  // of 2, 5, .., 32, .. positions singular, of these not
    const Tensors in{at::zeros({n}, at::kDouble), at::ones({n - 1}, at::kDouble), -at::ones({n - 1}, at::kDouble),
                     at::tensor({0.0, 1.0}, at::kDouble)};
    const at::Tensor whole = results_on(at::kCUDA, false, in)[0];
    EXPECT_LT(worst(whole, results_on(at::kCPU, false, in)[0]), 1e-12) << n;
  }
}

// Determinants of 20,000 rows overflow every float there is.
TEST(ResolventCuda, cuda_LongRowsNeitherOverflowNorVanish) {
  LIMBECK_NEEDS_GPU();
  for (const double scale : {1e-6, 1.0, 1e6}) {
    Tensors in = matrices({}, 20000, at::kFloat, 240, 0.5, true);
    for (size_t k = 0; k < 3; ++k) in[k] = in[k] * scale;
    for (const bool causal : {true, false}) {
      const Tensors ours = results_on(at::kCUDA, causal, in);
      EXPECT_TRUE(ours[0].isfinite().all().item<bool>() && ours[0].select(-1, 1).gt(0).all().item<bool>()) << scale;
      expect_near(ours, results_on(at::kCPU, causal, in), 1.2e-7, std::to_string(scale));
    }
  }
}

TEST(ResolventCuda, cuda_DocumentsAreAloneEvenBesideNan) {
  LIMBECK_NEEDS_GPU();
  const std::vector<int64_t> lengths = {1, 70, 3, 40, 2500, 32, 1, 300};
  Tensors ids;
  for (size_t k = 0; k < lengths.size(); ++k) ids.push_back(at::full({lengths[k]}, static_cast<int64_t>(k), at::kLong));
  const at::Tensor documents = at::cat(ids);
  Tensors in = matrices({2}, documents.numel(), at::kDouble, 250);
  in[0].narrow(-1, 5, 1).fill_(std::numeric_limits<double>::quiet_NaN());  // the second document's own affair
  for (const bool causal : {true, false}) {
    const Tensors ours = results_on(at::kCUDA, causal, in, documents),
                  wanted = results_on(at::kCPU, causal, in, documents);
    for (size_t k = 0; k < 3; ++k) {
      const int64_t along = k == 0 ? 1 : -1;
      EXPECT_TRUE(ours[k].isnan().equal(wanted[k].isnan())) << k << " causal " << causal;
      EXPECT_TRUE(ours[k].narrow(along, 71, 3000 - 71 - 100).isfinite().all().item<bool>()) << k;
      EXPECT_LT(worst(ours[k].nan_to_num(), wanted[k].nan_to_num()), 1e-10) << k << " causal " << causal;
    }
  }
}

TEST(ResolventCuda, cuda_ReadsAnyStridesAndPointsOfEachRow) {
  LIMBECK_NEEDS_GPU();
  const Tensors plain = matrices({2, 3}, 77, at::kFloat, 260);
  const at::Tensor points = at::rand({2, 3, 2}, at::kFloat) + 0.2,
                   documents = at::arange(77).div(20, "floor").expand({2, 1, 77});
  const at::Tensor a = plain[0].transpose(1, 2).contiguous().cuda().transpose(1, 2);
  const at::Tensor ones = at::ones({76}, at::kFloat), b = ones.cuda().expand({2, 3, 76});
  for (const bool causal : {true, false}) {
    const at::Tensor ours = resolvent(a, b, b, points.cuda(), causal, documents.cuda()).cpu();
    const at::Tensor same = ones.expand({2, 3, 76});
    EXPECT_LT(worst(ours, resolvent(plain[0], same, same, points, causal, documents).to(at::kDouble)), 1.2e-7);
  }
  EXPECT_EQ(resolvent(a.narrow(0, 0, 0), b.narrow(0, 0, 0), b.narrow(0, 0, 0), at::ones({2}).cuda()).numel(), 0);
}

TEST(ResolventCuda, cuda_AWrongPointIsNanInItsRowAlone) {
  LIMBECK_NEEDS_GPU();
  Tensors in = matrices({5}, 40, at::kFloat, 270);
  const float inf = std::numeric_limits<float>::infinity();
  in[3] = at::tensor({0.3f, 0.5f, 0.3f, 0.0f, 0.3f, -1.0f, inf, 0.5f, 0.3f, inf}).view({5, 2});
  for (const bool causal : {true, false}) {
    const at::Tensor g = resolvent(in[0].cuda(), in[1].cuda(), in[2].cuda(), in[3].cuda(), causal).cpu();
    EXPECT_TRUE(g[0].isfinite().all().item<bool>());
    EXPECT_TRUE(g.narrow(0, 1, 4).isnan().all().item<bool>());
  }
}

TEST(ResolventCuda, cuda_GoesOnPieceByPiece) {
  LIMBECK_NEEDS_GPU();
  const Tensors in = matrices({3}, 700, at::kDouble, 280);
  const at::Tensor zero = at::zeros({3, 1}, at::kDouble).cuda(), b = at::cat({zero, in[1].cuda()}, -1),
                   c = at::cat({zero, in[2].cuda()}, -1), a = in[0].cuda(), z = in[3].cuda();
  for (const int64_t length : {1, 7, 33, 100, 700}) {
    at::Tensor state = at::zeros({3, 2}, at::kDouble).cuda(), piece;
    Tensors pieces;
    for (int64_t begin = 0; begin < 700; begin += length) {
      const auto part = [&](const at::Tensor& t) { return t.narrow(-1, begin, std::min(length, 700 - begin)); };
      std::tie(piece, state) = kernels::continued_resolvent(part(a), part(b), part(c), z, state);
      pieces.push_back(piece.cpu());
    }
    const at::Tensor wanted = resolvent(in[0], in[1], in[2], in[3]);
    EXPECT_LT(worst(at::cat(pieces, 1), wanted), 1e-12) << length;
    EXPECT_LT(worst(state.cpu(), wanted.select(1, 699)), 1e-12) << length;
  }
}

TEST(ResolventCuda, cuda_HasTheSameBitsAgainAndAmongOtherRows) {
  LIMBECK_NEEDS_GPU();
  const Tensors in = matrices({4}, 3000, at::kFloat, 290);
  const Tensors one{in[0][2], in[1][2], in[2][2], in[3]};
  for (const bool causal : {true, false}) {
    const Tensors first = results_on(at::kCUDA, causal, in), again = results_on(at::kCUDA, causal, in);
    for (size_t k = 0; k < first.size(); ++k) expect_same_bits(first[k], again[k], "again");
    const at::Tensor alone = resolvent(one[0].cuda(), one[1].cuda(), one[2].cuda(), one[3].cuda(), causal).cpu();
    expect_same_bits(first[0][2], alone, "a row alone");
  }
}

// More positions than the scratch is for: rows in turn.
TEST(ResolventCuda, cuda_RowsInTurnHaveTheBitsOfARowAlone) {
  LIMBECK_NEEDS_GPU();
  constexpr int64_t n = (1 << 21) - 5;
  const at::Tensor a = random_tensor({3, n}, at::kFloat, 300).cuda(), b = at::ones({n - 1}, at::kFloat).cuda();
  const at::Tensor beside = b.expand({3, n - 1}), z = at::tensor({0.1f, 0.4f}).cuda();
  const at::Tensor together = resolvent(a, beside, beside, z, false);
  for (const int64_t row : {0, 2})
    expect_same_bits(together[row].cpu(), resolvent(a[row], b, b, z, false).cpu(), "row");
}

}  // namespace
}  // namespace limbeck::test
