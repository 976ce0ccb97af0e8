#include "trainer/objective/head/divergence.h"

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

constexpr double kNear = 0.5;  // |log(a / b)|, up to which the forms without cancellation are used

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

// KL(a || b), summed as a (e^d - 1 - d) with d = log(b / a): every summand is nonnegative.
at::Tensor kl(const Softened& a, const Softened& b) {
  at::Tensor d, far, less_one, value_n;
  {
    const at::NoGradGuard no_gradient;
    d = log_ratio(b, a);
    far = d.abs().gt(kNear);
    const at::Tensor near = d.clamp(-kNear, kNear);
    less_one = at::expm1(near);
    value_n = row_sum(a, at::where(far, (b.p - a.p) - a.p * d, a.p * (less_one - near).clamp_min(0)));
  }
  return with_gradient(
      value_n, a.z, [&] { return centred(a, -d); }, b.z, [&] { return at::where(far, b.p - a.p, a.p * less_one); });
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
    value_n =
        row_sum(a, at::where(d.abs().gt(kNear), (1.0 - share) * (b.p - a.p) - a.p * log, a.p * excess.clamp_min(0)));
  }
  const auto less_than_m = [&] { return at::expm1(-log.clamp_min(kLowest)); };  // a / m - 1
  return with_gradient(
      value_n, a.z, [&] { return centred(a, -log - share * less_than_m()); }, b.z,
      [&] { return centred(b, (share - 1.0) * less_than_m()); });
}

at::Tensor sorted_probabilities(const at::Tensor& logits, int64_t width) {
  const at::Tensor sorted = std::get<0>(at::softmax(logits, -1).sort(/*dim=*/-1, /*descending=*/true));
  return at::constant_pad_nd(sorted, {0, width - logits.size(-1)}, 0);
}

}  // namespace

at::Tensor forward_kl(const at::Tensor& student_nv, const at::Tensor& teacher_nv, const VocabularySums& over) {
  return kl(Softened(teacher_nv, over), Softened(student_nv, over));
}

at::Tensor reverse_kl(const at::Tensor& student_nv, const at::Tensor& teacher_nv, const VocabularySums& over) {
  return kl(Softened(student_nv, over), Softened(teacher_nv, over));
}

at::Tensor jensen_shannon(const at::Tensor& student_nv, const at::Tensor& teacher_nv, double beta,
                          const VocabularySums& over) {
  const Softened s(student_nv, over), t(teacher_nv, over);
  return beta * kl_to_mixture(t, s, beta) + (1.0 - beta) * kl_to_mixture(s, t, 1.0 - beta);
}

at::Tensor skew_forward_kl(const at::Tensor& student_nv, const at::Tensor& teacher_nv, double alpha,
                           const VocabularySums& over) {
  return kl_to_mixture(Softened(teacher_nv, over), Softened(student_nv, over), alpha);
}

at::Tensor skew_reverse_kl(const at::Tensor& student_nv, const at::Tensor& teacher_nv, double alpha,
                           const VocabularySums& over) {
  return kl_to_mixture(Softened(student_nv, over), Softened(teacher_nv, over), alpha);
}

at::Tensor total_variation(const at::Tensor& student_nv, const at::Tensor& teacher_nv, const VocabularySums& over) {
  const Softened s(student_nv, over), t(teacher_nv, over);
  at::Tensor difference, value_n;
  {
    const at::NoGradGuard no_gradient;
    difference = s.p - t.p;
    value_n = row_sum(s, difference.abs()) * 0.5;
  }
  return with_gradient(
      value_n, s.z, [&] { return centred(s, difference.sign() * 0.5); }, t.z,
      [&] { return centred(t, difference.sign() * -0.5); });
}

at::Tensor logit_mse(const at::Tensor& student_nv, const at::Tensor& teacher_nv, const VocabularySums& over) {
  const auto ids = static_cast<double>(over.ids(student_nv.size(-1)));
  at::Tensor difference, value_n;
  {
    const at::NoGradGuard no_gradient;
    difference = student_nv - teacher_nv;
    value_n = over.sum(difference * difference).squeeze(-1) / ids;
  }
  return with_gradient(
      value_n, student_nv, [&] { return difference * (2 / ids); }, teacher_nv, [&] { return difference * (-2 / ids); });
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
  return kl(renormalised(teacher_nv), renormalised(student_nv));
}

}  // namespace rows

namespace {

using Fused = kernels::Divergence;
using recipe::Settings;

// A formula that is a sum over ids.
Divergence summed(const SlicedDivergence& formula, Fused fused) {
  return {.rows = [formula](const at::Tensor& student,
                            const at::Tensor& teacher) { return formula(student, teacher, all_ids()); },
          .sliced = formula,
          .fused = fused};
}

DivergenceFactory plain(at::Tensor (*formula)(const at::Tensor&, const at::Tensor&, const VocabularySums&),
                        Fused fused) {
  return [=](const Settings&) { return summed(formula, fused); };
}

// A formula with a mixture, whose share is the recipe key `key`. Where the mixture is one of its parts the divergence
// is always 0: at 1, and for jsd at 0 too.
DivergenceFactory mixed(at::Tensor (*formula)(const at::Tensor&, const at::Tensor&, double, const VocabularySums&),
                        Fused fused, const std::string& key) {
  return [=](const Settings& settings) {
    const double share = settings.number(key);
    if (share == 1.0 || (share == 0.0 && fused == Fused::kJensenShannon)) {
      throw UsageError(fmt::format("{} = {} {}: the divergence would always be 0; set it {} 1", key, share,
                                   settings.where(key),
                                   fused == Fused::kJensenShannon ? "between 0 and" : "from 0 to below"));
    }
    Divergence made = summed([=](const at::Tensor& student, const at::Tensor& teacher,
                                 const VocabularySums& over) { return formula(student, teacher, share, over); },
                             fused);
    made.mix = share;
    return made;
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
    Divergence made = summed(rows::logit_mse, Fused::kLogitMse);
    made.tempered = false;
    return made;
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
            Divergence made = summed(rows::forward_kl, Fused::kForwardKl);
            made.crosses_vocabularies = made.dual_space = true;
            return made;
          });
}

}  // namespace limbeck::objective
