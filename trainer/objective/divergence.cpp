#include "trainer/objective/divergence.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>

#include "modules/errors.h"

namespace limbeck::objective {

namespace rows {

namespace {

// A softmax in parts, outside the graph. Log-probabilities are never formed: rounding a number as large as a
// log-sum-exp would drown the differences of near distributions. What is compared instead is the logits, whose
// difference is exact when they are near.
struct Softened {
  explicit Softened(const at::Tensor& logits) : z(logits) {
    const at::NoGradGuard no_gradient;
    highest = z.amax(-1, /*keepdim=*/true);
    const at::Tensor e = (z - highest).exp();
    sum = e.sum(-1, /*keepdim=*/true);
    p = e / sum;
  }
  at::Tensor z, highest, sum, p;
};

constexpr double kNear = 0.5;  // |log(a / b)|, up to which the forms without cancellation are used

// log(a / b). The quotient of the two sums, too, comes from the differences of the logits where all of a row are small.
at::Tensor log_ratio(const Softened& a, const Softened& b) {
  const at::Tensor d = (a.z - b.z) - (a.highest - b.highest);
  const at::Tensor far = d.abs().amax(-1, /*keepdim=*/true).gt(kNear);
  const at::Tensor near = (b.p * at::expm1(d.clamp(-kNear, kNear))).sum(-1, /*keepdim=*/true);  // a.sum / b.sum - 1
  return d - at::where(far, a.sum.log() - b.sum.log(), at::log1p(near));
}

// A row's value with its derivatives by the logits in closed form. Autograd would subtract one probability from the
// other, which for near distributions leaves the rounding errors: a hundred times 1e-7 of float32 at 1 % of difference.
at::Tensor with_gradient(const at::Tensor& value_n, const Softened& a, const std::function<at::Tensor()>& gradient_a,
                         const Softened& b, const std::function<at::Tensor()>& gradient_b) {
  at::Tensor result = value_n;
  const auto attach = [&](const Softened& side, const std::function<at::Tensor()>& gradient) {
    if (!at::GradMode::is_enabled() || !side.z.requires_grad()) return;
    at::Tensor g;
    {
      const at::NoGradGuard no_gradient;
      g = gradient();
    }
    const at::Tensor line = (g * side.z).sum(-1);
    result = result + (line - line.detach());  // exactly 0
  };
  attach(a, gradient_a);
  attach(b, gradient_b);
  return result;
}

// Derivative by the logits of what has the derivative `slope` by the logarithms of the probabilities.
at::Tensor centred(const at::Tensor& p, const at::Tensor& slope) {
  return p * (slope - (p * slope).sum(-1, /*keepdim=*/true));
}

// KL(a || b), summed as a (e^d - 1 - d) with d = log(b / a): every summand is nonnegative.
at::Tensor kl(const Softened& a, const Softened& b) {
  at::Tensor d, far, less_one, value_n;
  {
    const at::NoGradGuard no_gradient;
    d = log_ratio(b, a);
    far = d.abs().gt(kNear);
    const at::Tensor near = d.clamp(-kNear, kNear);
    less_one = at::expm1(near);
    value_n = at::where(far, (b.p - a.p) - a.p * d, a.p * (less_one - near).clamp_min(0)).sum(-1);
  }
  return with_gradient(
      value_n, a, [&] { return centred(a.p, -d); }, b, [&] { return at::where(far, b.p - a.p, a.p * less_one); });
}

// log(1 - share + share e^x) without overflow, exactly 0 at 0. Each side of 0 has its own form.
at::Tensor log_mixed(const at::Tensor& x, double share) {
  const at::Tensor above = x.gt(0), low = x.masked_fill(above, 0), high = x.masked_fill(above.bitwise_not(), 0);
  return at::log1p(share * at::expm1(low)) + high + at::log1p((1.0 - share) * at::expm1(-high));
}

// KL(a || m) with m = share a + (1 - share) b, summed as m - a - a log(m / a).
at::Tensor kl_to_mixture(const Softened& a, const Softened& b, double share) {
  constexpr double kLowest = -80;  // e^80 is a float32
  at::Tensor log, value_n;
  {
    const at::NoGradGuard no_gradient;
    const at::Tensor d = log_ratio(b, a), near = d.clamp(-kNear, kNear);
    log = log_mixed(d, 1.0 - share);
    const at::Tensor excess = (1.0 - share) * at::expm1(near) - log_mixed(near, 1.0 - share);
    value_n = at::where(d.abs().gt(kNear), (1.0 - share) * (b.p - a.p) - a.p * log, a.p * excess.clamp_min(0)).sum(-1);
  }
  const auto less_than_m = [&] { return at::expm1(-log.clamp_min(kLowest)); };  // a / m - 1
  return with_gradient(
      value_n, a, [&] { return centred(a.p, -log - share * less_than_m()); }, b,
      [&] { return centred(b.p, (share - 1.0) * less_than_m()); });
}

at::Tensor sorted_probabilities(const at::Tensor& logits, int64_t width) {
  const at::Tensor sorted = std::get<0>(at::softmax(logits, -1).sort(/*dim=*/-1, /*descending=*/true));
  return at::constant_pad_nd(sorted, {0, width - logits.size(-1)}, 0);
}

}  // namespace

at::Tensor forward_kl(const at::Tensor& student_nv, const at::Tensor& teacher_nv) {
  return kl(Softened(teacher_nv), Softened(student_nv));
}

at::Tensor reverse_kl(const at::Tensor& student_nv, const at::Tensor& teacher_nv) {
  return kl(Softened(student_nv), Softened(teacher_nv));
}

at::Tensor jensen_shannon(const at::Tensor& student_nv, const at::Tensor& teacher_nv, double beta) {
  const Softened s(student_nv), t(teacher_nv);
  return beta * kl_to_mixture(t, s, beta) + (1.0 - beta) * kl_to_mixture(s, t, 1.0 - beta);
}

at::Tensor skew_forward_kl(const at::Tensor& student_nv, const at::Tensor& teacher_nv, double alpha) {
  return kl_to_mixture(Softened(teacher_nv), Softened(student_nv), alpha);
}

at::Tensor skew_reverse_kl(const at::Tensor& student_nv, const at::Tensor& teacher_nv, double alpha) {
  return kl_to_mixture(Softened(student_nv), Softened(teacher_nv), alpha);
}

at::Tensor total_variation(const at::Tensor& student_nv, const at::Tensor& teacher_nv) {
  return (at::softmax(student_nv, -1) - at::softmax(teacher_nv, -1)).abs().sum(-1) * 0.5;
}

at::Tensor logit_mse(const at::Tensor& student_nv, const at::Tensor& teacher_nv) {
  const at::Tensor difference = student_nv - teacher_nv;
  return (difference * difference).mean(-1);
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
    return Softened(logits.gather(-1, ids).masked_fill(twice, kOutside));
  };
  return kl(renormalised(teacher_nv), renormalised(student_nv));
}

}  // namespace rows

namespace {

using Fused = kernels::Divergence;
using recipe::Settings;

DivergenceFactory plain(at::Tensor (*formula)(const at::Tensor&, const at::Tensor&), Fused fused) {
  return [=](const Settings&) { return Divergence{.rows = formula, .fused = fused}; };
}

// A formula with a mixture, whose share is the recipe key `key`. Where the mixture is one of its parts the divergence
// is always 0: at 1, and for jsd at 0 too.
DivergenceFactory mixed(at::Tensor (*formula)(const at::Tensor&, const at::Tensor&, double), Fused fused,
                        const std::string& key) {
  return [=](const Settings& settings) {
    const double share = settings.number(key);
    if (share == 1.0 || (share == 0.0 && fused == Fused::kJensenShannon)) {
      throw UsageError(fmt::format("{} = {} {}: the divergence would always be 0; set it {} 1", key, share,
                                   settings.where(key),
                                   fused == Fused::kJensenShannon ? "between 0 and" : "from 0 to below"));
    }
    return Divergence{
        .rows = [=](const at::Tensor& student, const at::Tensor& teacher) { return formula(student, teacher, share); },
        .fused = fused,
        .mix = share};
  };
}

}  // namespace

void register_divergences(Registries& registries) {
  auto& all = registries.of<DivergenceFactory>("objectives");
  all.add("forward_kl", "KL(teacher || student): covers all of the teacher's mass",
          plain(rows::forward_kl, Fused::kForwardKl));
  all.add("reverse_kl", "KL(student || teacher): seeks the teacher's modes",
          plain(rows::reverse_kl, Fused::kReverseKl));
  all.add("jsd", "generalized Jensen-Shannon divergence, share objective.beta",
          mixed(rows::jensen_shannon, Fused::kJensenShannon, "objective.beta"));
  all.add("skew_forward_kl", "KL(teacher || mixture), share objective.skew of the teacher in it",
          mixed(rows::skew_forward_kl, Fused::kSkewForwardKl, "objective.skew"));
  all.add("skew_reverse_kl", "KL(student || mixture), share objective.skew of the student in it",
          mixed(rows::skew_reverse_kl, Fused::kSkewReverseKl, "objective.skew"));
  all.add("total_variation", "half the summed difference of the probabilities",
          plain(rows::total_variation, Fused::kTotalVariation));
  all.add("uld", "Wasserstein distance of the sorted probabilities: models of different tokenizers",
          [](const Settings&) { return Divergence{.rows = rows::sorted_distance, .crosses_vocabularies = true}; });
  all.add("logit_mse", "mean squared difference of the logits", [](const Settings&) {
    return Divergence{.rows = rows::logit_mse, .fused = Fused::kLogitMse, .tempered = false};
  });
  all.add("topk_union", "KL over the union of both models' objective.top_k likeliest ids, renormalised",
          [](const Settings& settings) {
            const int64_t k = settings.integer("objective.top_k");
            return Divergence{.rows = [k](const at::Tensor& student, const at::Tensor& teacher) {
              return rows::union_kl(student, teacher, k);
            }};
          });
  all.add("dskd", "dual space: both directions through both heads; different tokenizers by cross-model attention",
          [](const Settings&) {
            return Divergence{
                .rows = rows::forward_kl, .fused = Fused::kForwardKl, .crosses_vocabularies = true, .dual_space = true};
          });
}

}  // namespace limbeck::objective
