#include "kernels/resolvent/tridiagonal_solve.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "gpu_case.h"
#include "resolvent_cases.h"
#include "support/operator_checks.h"

namespace limbeck::test {
namespace {

Tensors system_of(int64_t rows, int64_t n, int64_t columns, uint64_t seed) {
  const at::TensorOptions options(at::kDouble);
  return {random_tensor({rows, n}, options, seed), random_tensor({rows, n - 1}, options, seed + 1).abs() + 0.2,
          random_tensor({rows, n - 1}, options, seed + 2).abs() + 0.2, at::tensor({0.3, 0.8}, options),
          random_tensor({rows, n, columns, 2}, options, seed + 3)};
}

at::Tensor solved(const Tensors& in) { return kernels::tridiagonal_solve(in[0], in[1], in[2], in[3], in[4]); }
at::Tensor solved_reference(const Tensors& in) {
  return at::view_as_real(at::linalg_solve(dense_system(in), at::view_as_complex(in[4])));
}

at::Tensor corrected(const Tensors& in) {
  return kernels::low_rank_resolvent(in[0], in[1], in[2], in[3], in[4], in[5]);
}
at::Tensor corrected_reference(const Tensors& in) {
  const at::Tensor matrix = dense_system(in) + at::matmul(in[4], in[5].transpose(-2, -1));
  return at::view_as_real(at::linalg_inv(matrix).diagonal(0, -2, -1));
}

void expect_values_and_gradients(const Operator& ours, const Operator& reference, const Tensors& in, double tolerance) {
  const Tensors got = output_and_gradients(ours, in, in.size());
  const Tensors wanted = output_and_gradients(reference, in, in.size());
  for (size_t k = 0; k < got.size(); ++k) {
    expect_close(got[k], wanted[k], {tolerance, tolerance}, "result " + std::to_string(k));
  }
}

TEST(TridiagonalSolve, EqualsTheDenseSolutionAndItsGradients) {
  // oneMKL fails on batches of dense complex systems of 150, which would be those of the reference (ZLASWP, two
  // threads).
  for (const int64_t n : {1, 2, 3, 64, 90}) {
    SCOPED_TRACE(n);
    const Tensors in = system_of(2, n, 3, 10 + n);
    expect_values_and_gradients(solved, solved_reference, in, 1e-11);
    const Case c{solved, solved_reference, in, 5};
    expect_inference_equals_training(c);
    expect_threads_do_not_matter(c);
    expect_meta_agrees(c);
  }
}

TEST(LowRankResolvent, EqualsTheDenseInverseAndItsGradients) {
  for (const int64_t rank : {1, 3, 8}) {
    for (const int64_t n : {1, 9, 60}) {
      SCOPED_TRACE(std::to_string(rank) + " of " + std::to_string(n));
      Tensors in = system_of(2, n, 1, 20 + n);
      in[4] = random_tensor({2, n, rank}, at::kDouble, 30) * 0.3;
      in.push_back(random_tensor({2, n, rank}, at::kDouble, 31) * 0.3);
      expect_values_and_gradients(corrected, corrected_reference, in, 1e-9);
      Tensors single, widened;
      for (const at::Tensor& one : in) single.push_back(one.to(at::kFloat));
      for (const at::Tensor& one : single) widened.push_back(one.to(at::kDouble));
      expect_close(corrected(single), corrected_reference(widened), {1e-5, 1e-6}, "float32");
      // Not what it is without the correction.
      const at::Tensor none = at::zeros_like(in[4]);
      EXPECT_FALSE(at::allclose(corrected(in), corrected({in[0], in[1], in[2], in[3], none, none}), 1e-3, 1e-3));
    }
  }
}

// What a device makes of them, on the CPU.
Tensors results_on_gpu(const Operator& op, const Tensors& in) {
  Tensors there;
  for (const at::Tensor& one : in) there.push_back(one.cuda());
  Tensors out = output_and_gradients(op, there, in.size());
  for (at::Tensor& one : out) one = one.cpu();
  return out;
}

void expect_those_of_the_cpu(const Operator& op, const Tensors& in, double tolerance, const std::string& what) {
  const Tensors got = results_on_gpu(op, in), wanted = output_and_gradients(op, in, in.size());
  for (size_t k = 0; k < got.size(); ++k) {
    expect_close(got[k], wanted[k], {tolerance, tolerance}, what + ", result " + std::to_string(k));
  }
}

TEST(TridiagonalSolve, cuda_HasTheValuesAndGradientsOfTheCpu) {
  LIMBECK_NEEDS_GPU();
  for (const auto& [rows, n, columns] : std::vector<std::tuple<int64_t, int64_t, int64_t>>{
           {1, 1, 1}, {2, 2, 3}, {3, 3, 1}, {2, 64, 5}, {70, 9, 2}, {2, 33, 2}, {1, 2048, 11}}) {
    const Tensors in = system_of(rows, n, columns, 50 + static_cast<uint64_t>(n));
    expect_those_of_the_cpu(solved, in, 1e-10, std::to_string(n));
    if (n < 90) expect_close(results_on_gpu(solved, in)[0], solved_reference(in), {1e-11, 1e-11}, "dense");
  }
  // Of any strides; and of nothing.
  const Tensors in = system_of(4, 20, 3, 60);
  const at::Tensor rhs = in[4].cuda().transpose(1, 2).contiguous().transpose(1, 2);
  const at::Tensor x = kernels::tridiagonal_solve(in[0].t().cuda().t(), in[1].cuda(), in[2].cuda(), in[3].cuda(), rhs);
  expect_close(x.cpu(), solved(in), {1e-11, 1e-11}, "strides");
  EXPECT_EQ(results_on_gpu(solved, system_of(2, 5, 0, 61))[0].numel(), 0);
}

TEST(TridiagonalSolve, cuda_AWrongPointIsNanInItsRowAlone) {
  LIMBECK_NEEDS_GPU();
  Tensors in = system_of(3, 6, 2, 70);
  in[3] = at::tensor({0.3, 0.8, 0.3, 0.0, std::numeric_limits<double>::infinity(), 0.8}, at::kDouble).view({3, 2});
  const at::Tensor x = results_on_gpu(solved, in)[0];
  EXPECT_TRUE(x[0].isfinite().all().item<bool>());
  EXPECT_TRUE(x.narrow(0, 1, 2).isnan().all().item<bool>());
}

// By what a position takes of the first one they grow beyond every number, and there is nothing to take.
TEST(TridiagonalSolve, cuda_CouplingsOfAnySizeOverflowNowhere) {
  LIMBECK_NEEDS_GPU();
  for (const double uneven : {1e3, 1e-3}) {
    Tensors in = system_of(2, 3000, 2, 90);
    in[1] = in[1] / uneven;
    in[2] = in[2] * uneven;
    const bool grows = uneven > 1;  // to the right; from the right what is put in does
    in[4].narrow(1, grows ? 0 : 3, 2997).zero_();
    const at::Tensor wanted = solved(in), got = results_on_gpu(solved, in)[0];
    ASSERT_TRUE(wanted.isfinite().all().item<bool>());
    expect_close(got, wanted, {1e-10, 1e-10}, std::to_string(uneven));
  }
}

TEST(TridiagonalSolve, cuda_ASingularLeadingMatrixGivesNoNumber) {
  LIMBECK_NEEDS_GPU();
  Tensors in = system_of(1, 70, 2, 91);
  in[0].zero_();
  in[1].fill_(1.0);
  in[2].fill_(-1.0);
  in[3] = at::tensor({0.0, 1.0}, at::kDouble);
  EXPECT_FALSE(solved(in).isfinite().any().item<bool>());
  EXPECT_FALSE(results_on_gpu(solved, in)[0].isfinite().any().item<bool>());
}

TEST(LowRankResolvent, cuda_HasTheValuesAndGradientsOfTheCpu) {
  LIMBECK_NEEDS_GPU();
  for (const int64_t rank : {1, 5}) {
    for (const int64_t n : {1, 9, 200}) {
      Tensors in = system_of(2, n, 1, 80 + static_cast<uint64_t>(n));
      in[4] = random_tensor({2, n, rank}, at::kDouble, 81) * 0.2;
      in.push_back(random_tensor({2, n, rank}, at::kDouble, 82) * 0.2);
      expect_those_of_the_cpu(corrected, in, 1e-9, std::to_string(rank) + " of " + std::to_string(n));
      if (n < 90) {
        const Tensors got = results_on_gpu(corrected, in), wanted = output_and_gradients(corrected_reference, in, 6);
        for (size_t k = 0; k < got.size(); ++k) expect_close(got[k], wanted[k], {1e-9, 1e-9}, "dense");
      }
    }
  }
}

TEST(TridiagonalSolve, RefusesWhatItCannotMean) {
  const Tensors in = system_of(2, 5, 3, 40);
  const auto refusal = [](const Operator& op, Tensors all, size_t which, const at::Tensor& other) {
    all[which] = other;
    try {
      op(all);
    } catch (const c10::Error& error) {
      return std::string(error.what_without_backtrace());
    }
    return std::string("taken");
  };
  const auto expect_words = [](const std::string& message, const std::string& words) {
    EXPECT_NE(message.find(words), std::string::npos) << message;
  };
  expect_words(refusal(solved, in, 0, in[0].to(at::kFloat)), "a is float32 [2, 5] on cpu, wanted float64");
  expect_words(refusal(solved, in, 1, in[0]), "b is float64 [2, 5] on cpu, wanted [2, 4]");
  expect_words(refusal(solved, in, 3, at::tensor({1.0, 0.0})),
               "z of row 0 is 1 + 0i, wanted a finite number with Im z > 0");
  expect_words(refusal(solved, in, 4, at::zeros({2, 5, 3})), "rhs is");
  expect_words(refusal(solved, in, 4, at::zeros({2, 4, 3, 2}, at::kDouble)),
               "rhs is float64 [2, 4, 3, 2] on cpu, wanted [2, 5, 3, 2]");
  Tensors low = in;
  low[4] = random_tensor({2, 5, 2}, at::kDouble, 41);
  low.push_back(low[4]);
  expect_words(refusal(corrected, low, 5, random_tensor({2, 5, 1}, at::kDouble, 42)), "v is float64 [2, 5, 1]");
  expect_words(refusal(corrected, low, 4, random_tensor({2, 4, 2}, at::kDouble, 42)), "u is float64 [2, 4, 2]");
}

}  // namespace
}  // namespace limbeck::test
