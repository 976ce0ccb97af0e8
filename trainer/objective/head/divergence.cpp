#include "trainer/objective/head/divergence.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>

#include "kernels/head_loss/divergence_tensors.h"
#include "modules/errors.h"

namespace limbeck::objective {

using Fused = kernels::Divergence;
using kernels::DivergenceKind;

namespace rows {

namespace {

// A softmax in parts, outside the graph. Log-probabilities are never formed: rounding a number as large as a
// log-sum-exp would drown the differences of near distributions. What is compared instead is the logits, whose
// difference is exact when they are near.
struct Softened {
  Softened(const at::Tensor& logits, const VocabularySums& all) : z(logits), over(all) {
    const at::NoGradGuard no_gradient;
    highest = over.highest(z);
    const at::Tensor e = (z - highest).exp();
    sum = over.sum(e);
    p = e / sum;
  }
  at::Tensor z, highest, sum, p;
  const VocabularySums& over;  // of which z and p hold a slice
};

constexpr double kNear = 0.5;  // of a logarithm of a quotient, as in divergence_formula.h

// log(a / b). The quotient of the two sums, too, comes from the differences of the logits where all of a row are small.
at::Tensor log_ratio(const Softened& a, const Softened& b) {
  const at::Tensor d = (a.z - b.z) - (a.highest - b.highest);
  const at::Tensor far = a.over.highest(d.abs()).gt(kNear);
  const at::Tensor near = a.over.sum(b.p * at::expm1(d.clamp(-kNear, kNear)));  // a.sum / b.sum - 1
  return d - at::where(far, a.sum.log() - b.sum.log(), at::log1p(near));
}

// A row's value with its derivatives by the logits in closed form. Autograd would subtract one probability from the
// other, which for near distributions leaves the rounding errors: a hundred times 1e-7 of float32 at 1 % of difference.
at::Tensor with_gradient(const at::Tensor& value_n, const at::Tensor& a, const std::function<at::Tensor()>& gradient_a,
                         const at::Tensor& b, const std::function<at::Tensor()>& gradient_b) {
  at::Tensor result = value_n;
  const auto attach = [&](const at::Tensor& z, const std::function<at::Tensor()>& gradient) {
    if (!at::GradMode::is_enabled() || !z.requires_grad()) return;
    at::Tensor g;
    {
      const at::NoGradGuard no_gradient;
      g = gradient();
    }
    const at::Tensor line = (g * z).sum(-1);
    result = result + (line - line.detach());  // exactly 0
  };
  attach(a, gradient_a);
  attach(b, gradient_b);
  return result;
}

// Derivative by the logits of what has the derivative `slope` by the logarithms of the probabilities.
at::Tensor centred(const Softened& of, const at::Tensor& slope) { return of.p * (slope - of.over.sum(of.p * slope)); }

at::Tensor row_sum(const Softened& of, const at::Tensor& x_nv) { return of.over.sum(x_nv).squeeze(-1); }

// The kernels' formula of every id, summed.
at::Tensor compared(DivergenceKind kind, const Softened& student, const Softened& teacher) {
  at::Tensor d, value_n;
  kernels::TensorTerms of_student;
  {
    const at::NoGradGuard no_gradient;
    d = log_ratio(student, teacher);
    of_student = kernels::divergence_terms(kind, d, student.p, teacher.p);
    value_n = row_sum(student, of_student.value);
  }
  const auto gradient = [](DivergenceKind of, const Softened& side, const at::Tensor& slope) {
    return kernels::needs_mean_slope(of.divergence) ? centred(side, slope) : slope;
  };
  return with_gradient(
      value_n, student.z, [&] { return gradient(kind, student, of_student.slope); }, teacher.z,
      [&] {
        const DivergenceKind exchanged = kernels::with_roles_exchanged(kind);
        return gradient(exchanged, teacher, kernels::divergence_terms(exchanged, -d, teacher.p, student.p).slope);
      });
}

at::Tensor sorted_probabilities(const at::Tensor& logits, int64_t width) {
  const at::Tensor sorted = std::get<0>(at::softmax(logits, -1).sort(/*dim=*/-1, /*descending=*/true));
  return at::constant_pad_nd(sorted, {0, width - logits.size(-1)}, 0);
}

}  // namespace

at::Tensor summed(DivergenceKind kind, const at::Tensor& student_nv, const at::Tensor& teacher_nv,
                  const VocabularySums& over) {
  if (kind.divergence != kernels::Divergence::kLogitMse) {
    return compared(kind, Softened(student_nv, over), Softened(teacher_nv, over));
  }
  const auto ids = static_cast<double>(over.ids(student_nv.size(-1)));
  at::Tensor value_n;
  kernels::TensorTerms terms;
  {
    const at::NoGradGuard no_gradient;
    terms = kernels::divergence_terms(kind, student_nv - teacher_nv, {}, {});
    value_n = over.sum(terms.value).squeeze(-1) / ids;
  }
  return with_gradient(
      value_n, student_nv, [&] { return terms.slope * (2 / ids); }, teacher_nv,
      [&] { return terms.slope * (-2 / ids); });
}

at::Tensor forward_kl(const at::Tensor& student_nv, const at::Tensor& teacher_nv) {
  return summed({Fused::kForwardKl, 0.0}, student_nv, teacher_nv, all_ids());
}

at::Tensor sorted_distance(const at::Tensor& student_nv, const at::Tensor& teacher_nv) {
  const int64_t width = std::max(student_nv.size(-1), teacher_nv.size(-1));
  return (sorted_probabilities(student_nv, width) - sorted_probabilities(teacher_nv, width)).abs().sum(-1);
}

at::Tensor union_kl(const at::Tensor& student_nv, const at::Tensor& teacher_nv, int64_t k) {
  // Stands for minus infinity, but its difference with itself is 0 and not NaN.
  constexpr double kOutside = -1e30;
  k = std::min(k, student_nv.size(-1));
  const at::Tensor of_teacher = std::get<1>(teacher_nv.detach().topk(k, -1));
  const at::Tensor of_student = std::get<1>(student_nv.detach().topk(k, -1));
  at::Tensor taken = at::zeros(teacher_nv.sizes(), teacher_nv.options().dtype(at::kBool));
  taken.scatter_(-1, of_teacher, true);
  // The student's ids that the teacher has named already stay in their place, without mass.
  const at::Tensor twice = at::cat({at::zeros_like(of_teacher, at::kBool), taken.gather(-1, of_student)}, -1);
  const at::Tensor ids = at::cat({of_teacher, of_student}, -1);
  const auto renormalised = [&](const at::Tensor& logits) {
    return Softened(logits.gather(-1, ids).masked_fill(twice, kOutside), all_ids());
  };
  return compared({Fused::kForwardKl, 0.0}, renormalised(student_nv), renormalised(teacher_nv));
}

}  // namespace rows

namespace {

// A formula that is a sum over ids.
Divergence summed(DivergenceKind kind) {
  return {.rows = [kind](const at::Tensor& student,
                         const at::Tensor& teacher) { return rows::summed(kind, student, teacher, all_ids()); },
          .sliced = [kind](const at::Tensor& student, const at::Tensor& teacher,
                           const VocabularySums& over) { return rows::summed(kind, student, teacher, over); },
          .fused = kind.divergence,
          .mix = kind.mix};
}

DivergenceFactory plain(Fused divergence) {
  return [divergence](const DivergenceOptions&) { return summed({divergence, 0.5}); };
}

// A formula with a mixture. Where the mixture is one of its parts the divergence is always 0: at a share of 1, and for
// jsd at 0 too.
DivergenceFactory mixed(Fused divergence, MixtureShare DivergenceOptions::*which) {
  return [=](const DivergenceOptions& options) {
    const auto& [share, words] = options.*which;
    if (share == 1.0 || (share == 0.0 && divergence == Fused::kJensenShannon)) {
      throw UsageError(fmt::format("{}: the divergence would always be 0; set it {} 1", words,
                                   divergence == Fused::kJensenShannon ? "between 0 and" : "from 0 to below"));
    }
    if (divergence != Fused::kJensenShannon && !kernels::is_skew_share(share)) {
      throw UsageError(
          fmt::format("{}: float32 does not resolve so small a share of a mixture; set it 0, or from {} to below 1",
                      words, kernels::kLeastSkew));
    }
    return summed(kernels::without_empty_share({divergence, share}));
  };
}

}  // namespace

void register_divergences(Registries& registries) {
  auto& all = registries.of<DivergenceFactory>("objectives");
  all.add("forward_kl", "KL(teacher || student): covers all of the teacher's mass", plain(Fused::kForwardKl));
  all.add("reverse_kl", "KL(student || teacher): seeks the teacher's modes", plain(Fused::kReverseKl));
  all.add("jsd", "generalized Jensen-Shannon divergence, share objective.beta",
          mixed(Fused::kJensenShannon, &DivergenceOptions::beta));
  all.add("skew_forward_kl", "KL(teacher || mixture), share objective.skew of the teacher in it",
          mixed(Fused::kSkewForwardKl, &DivergenceOptions::skew));
  all.add("skew_reverse_kl", "KL(student || mixture), share objective.skew of the student in it",
          mixed(Fused::kSkewReverseKl, &DivergenceOptions::skew));
  all.add("total_variation", "half the summed difference of the probabilities", plain(Fused::kTotalVariation));
  all.add(
      "uld", "Wasserstein distance of the sorted probabilities: models of different tokenizers",
      [](const DivergenceOptions&) { return Divergence{.rows = rows::sorted_distance, .crosses_vocabularies = true}; });
  all.add("logit_mse", "mean squared difference of the logits", [](const DivergenceOptions&) {
    Divergence made = summed({Fused::kLogitMse, 0.5});
    made.tempered = false;
    return made;
  });
  all.add("topk_union", "KL over the union of both models' objective.top_k likeliest ids, renormalised",
          [](const DivergenceOptions& options) {
            return Divergence{.rows = [k = options.top_k](const at::Tensor& student, const at::Tensor& teacher) {
              return rows::union_kl(student, teacher, k);
            }};
          });
  all.add("dskd", "dual space: both directions through both heads; different tokenizers by cross-model attention",
          [](const DivergenceOptions&) {
            Divergence made = summed({Fused::kForwardKl, 0.5});
            made.crosses_vocabularies = made.dual_space = true;
            return made;
          });
}

}  // namespace limbeck::objective
