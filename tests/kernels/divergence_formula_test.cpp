// The formulas of the divergences on plain numbers, as device code has them, and on tensors.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <array>
#include <string>
#include <vector>

#include "kernels/head_loss/divergence_numbers.h"
#include "kernels/head_loss/divergence_tensors.h"
#include "kernels/head_loss/head_loss_operands.h"
#include "support/head_loss_reference.h"

namespace limbeck::test {
namespace {

using at::Tensor;
using kernels::Divergence;
using kernels::DivergenceKind;

constexpr std::array kEveryDivergence = {
    Divergence::kForwardKl,     Divergence::kReverseKl,      Divergence::kJensenShannon, Divergence::kSkewForwardKl,
    Divergence::kSkewReverseKl, Divergence::kTotalVariation, Divergence::kLogitMse};
constexpr int64_t kTokens = 5, kIds = 60;

// Logits are hidden states under the identity, so that the gradient by the hidden states is the one by the logits.
HeadCase logits_case(double noise) {
  at::manual_seed(3);
  HeadCase c;
  c.teacher_hidden = at::randn({kTokens, kIds}, at::kDouble);
  c.student_hidden = c.teacher_hidden + noise * at::randn({kTokens, kIds}, at::kDouble);
  c.student_weight = c.teacher_weight = at::eye(kIds, at::kDouble);
  c.divergence_weight = at::ones({kTokens}, at::kDouble);
  c.ce_weight = at::zeros({kTokens}, at::kDouble);
  return c;
}

struct Found {
  Tensor value_n, gradient_nv;
};

// From the terms of all ids; V is taken as the kernels take it.
Found from_terms(Divergence divergence, const Tensor& value, const Tensor& slope, const Tensor& p_s) {
  if (divergence == Divergence::kLogitMse) return {value.mean(-1), slope * (2.0 / kIds)};
  if (!kernels::needs_mean_slope(divergence)) return {value.sum(-1), slope};
  return {value.sum(-1), p_s * (slope - (p_s * slope).sum(-1, true))};
}

struct Operands {
  Tensor d, p_s, p_t;
};
Operands operands_of(const HeadCase& c, Divergence divergence) {
  const Tensor ls = c.student_hidden.log_softmax(-1), lt = c.teacher_hidden.log_softmax(-1);
  return {divergence == Divergence::kLogitMse ? c.student_hidden - c.teacher_hidden : ls - lt, ls.exp(), lt.exp()};
}

template <class T>
Found on_numbers(const HeadCase& c, DivergenceKind kind) {
  const auto x = operands_of(c, kind.divergence);
  Tensor value = at::empty({kTokens, kIds}, at::kDouble), slope = at::empty_like(value);
  const auto at_of = [](const Tensor& t, int64_t i) { return static_cast<T>(t.const_data_ptr<double>()[i]); };
  kernels::with_divergence(kind.divergence, [&](auto tag) {
    constexpr Divergence kKind = decltype(tag)::kKind;
    if constexpr (kKind != Divergence::kNone) {
      for (int64_t i = 0; i < value.numel(); ++i) {
        const auto terms = kernels::divergence_terms<kKind, kernels::NumberOps<T>>(
            at_of(x.d, i), at_of(x.p_t, i), static_cast<T>(kind.mix), [&] { return at_of(x.p_s, i); });
        value.mutable_data_ptr<double>()[i] = terms.value;
        slope.mutable_data_ptr<double>()[i] = terms.slope;
      }
    }
  });
  return from_terms(kind.divergence, value, slope, x.p_s);
}

Found on_tensors(const HeadCase& c, DivergenceKind kind) {
  const auto x = operands_of(c, kind.divergence);
  const auto terms = kernels::divergence_terms(kind, x.d, x.p_s, x.p_t);
  return from_terms(kind.divergence, terms.value, terms.slope, x.p_s);
}

TEST(DivergenceFormula, OnNumbersAndOnTensorsIsTheTextbooks) {
  for (const double noise : {0.05, 0.5, 5.0}) {
    const auto c = logits_case(noise);
    for (const auto divergence : kEveryDivergence) {
      const std::string what = std::string(kernels::divergence_name(divergence)) + ", noise " + std::to_string(noise);
      const DivergenceKind kind{divergence, 0.3};
      const auto want = reference_head_loss(c, {.divergence = divergence, .mix = 0.3});
      const auto expect = [&](const Found& got, double tolerance) {
        EXPECT_LE(relative_distance(got.value_n, want.divergence), tolerance) << what;
        EXPECT_LE(relative_distance(got.gradient_nv, want.hidden_gradient), tolerance) << what;
      };
      expect(on_numbers<double>(c, kind), 1e-12);
      expect(on_tensors(c, kind), 1e-12);
      expect(on_numbers<float>(c, kind), 1e-5);  // y - log(1 + y) of float32 at y = 0.05: 1e-7 y of y^2 / 2
    }
  }
}

TEST(DivergenceFormula, ExchangedRolesGiveTheSameValue) {
  const auto c = logits_case(0.5);
  auto exchanged = c;
  std::swap(exchanged.student_hidden, exchanged.teacher_hidden);
  for (const auto divergence : kEveryDivergence) {
    const auto one = on_tensors(c, {divergence, 0.3});
    const auto other = on_tensors(exchanged, kernels::with_roles_exchanged({divergence, 0.3}));
    EXPECT_LE(relative_distance(other.value_n, one.value_n), 1e-13) << kernels::divergence_name(divergence);
  }
}

}  // namespace
}  // namespace limbeck::test
