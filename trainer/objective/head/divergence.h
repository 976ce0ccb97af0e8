// The divergences a recipe chooses by name (objective.divergence): what a registry entry of kind "objectives" makes.
// Each is a function of the logits of a few rows; those that the fused head kernel knows say so and run through it.
#pragma once
#include <ATen/core/Tensor.h>

#include <functional>
#include <optional>

#include "kernels/head_loss/head_loss.h"
#include "trainer/objective/head/vocabulary_sums.h"
#include "trainer/registry.h"

namespace limbeck::objective {

// Student [n, Vs] and teacher [n, Vt] logits in float32 (float64 for float64 models), divided by the temperature, real
// token ids only -> [n], differentiable in both. Vs = Vt unless the divergence crosses vocabularies.
using RowDivergence = std::function<at::Tensor(const at::Tensor& student_nv, const at::Tensor& teacher_nv)>;

// The same from a slice of the ids: a sum over ids by `over`, differentiable in the slice's own logits.
using SlicedDivergence =
    std::function<at::Tensor(const at::Tensor& student_nv, const at::Tensor& teacher_nv, const VocabularySums& over)>;

struct Divergence {
  RowDivergence rows;
  SlicedDivergence sliced = {};                             // empty: rows needs all ids at once
  std::optional<kernels::Divergence> fused = std::nullopt;  // the same, by the fused head
  double mix = 0.5;                                         // of the fused one
  bool tempered = true;               // logits are divided by T and clamped, the result multiplied by T^2
  bool never_negative = true;         // rounding below zero is lifted to zero
  bool crosses_vocabularies = false;  // compares models of different tokenizers
  bool dual_space = false;            // both directions, through both heads (dual_space.h)
};

// Of a mixture of two distributions.
struct MixtureShare {
  double value;
  std::string words;  // by which a refusal names it: "objective.beta = 1 (my.ini:4)"
};

// What a recipe says for divergences to choose from (objective.beta, skew, top_k).
struct DivergenceOptions {
  MixtureShare beta = {0.5, "beta = 0.5"}, skew = {0.1, "skew = 0.1"};
  int64_t top_k = 256;
};

using DivergenceFactory = std::function<Divergence(const DivergenceOptions&)>;

void register_divergences(Registries& registries);

// The row formulas, for the factories and for tests.
namespace rows {
// Those that the kernels know (kernels/head_loss/divergence_formula.h). With `over` the columns are a slice of the ids.
at::Tensor summed(kernels::DivergenceKind kind, const at::Tensor& student_nv, const at::Tensor& teacher_nv,
                  const VocabularySums& over);
at::Tensor forward_kl(const at::Tensor& student_nv, const at::Tensor& teacher_nv);
// Sum of the differences of the sorted probabilities; the smaller vocabulary is filled up with zeros.
at::Tensor sorted_distance(const at::Tensor& student_nv, const at::Tensor& teacher_nv);
// KL(p_t || p_s) over the union of both models' k likeliest ids, each id once, both renormalised there.
at::Tensor union_kl(const at::Tensor& student_nv, const at::Tensor& teacher_nv, int64_t k);
}  // namespace rows

}  // namespace limbeck::objective
