#include "support/head_loss_reference.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "support/operator_checks.h"

namespace limbeck::test {
namespace {

using at::Tensor;
using kernels::Divergence;

Tensor kl(const Tensor& p_log, const Tensor& q_log) { return (p_log.exp() * (p_log - q_log)).sum(-1); }

// log(share p + (1 - share) q)
Tensor log_mixture(const Tensor& p_log, const Tensor& q_log, double share) {
  return at::log(share * p_log.exp() + (1.0 - share) * q_log.exp());
}

Tensor divergence_of(Tensor s, Tensor t, const kernels::HeadLossOptions& o) {
  const bool squared = o.divergence == Divergence::kLogitMse;
  if (!squared) s = s / o.temperature, t = t / o.temperature;
  if (o.clamp > 0) s = s.clamp(-o.clamp, o.clamp), t = t.clamp(-o.clamp, o.clamp);
  if (squared) return (s - t).square().mean(-1);
  s = s.log_softmax(-1), t = t.log_softmax(-1);
  const double mix = o.mix;
  Tensor d;
  switch (o.divergence) {
    case Divergence::kForwardKl:
      d = kl(t, s);
      break;
    case Divergence::kReverseKl:
      d = kl(s, t);
      break;
    case Divergence::kJensenShannon: {
      const auto m = log_mixture(t, s, mix);
      d = mix * kl(t, m) + (1.0 - mix) * kl(s, m);
      break;
    }
    case Divergence::kSkewForwardKl:
      d = kl(t, log_mixture(t, s, mix));
      break;
    case Divergence::kSkewReverseKl:
      d = kl(s, log_mixture(s, t, mix));
      break;
    default:
      d = (t.exp() - s.exp()).abs().sum(-1) / 2;
      break;
  }
  return d * (o.temperature * o.temperature);
}

Tensor logits(const Tensor& hidden, const Tensor& weight, int64_t vocabulary, double scale, double cap) {
  const auto z = hidden.mm(weight.narrow(0, 0, vocabulary).t()) * scale;
  return cap > 0 ? cap * at::tanh(z / cap) : z;
}

}  // namespace

HeadCase head_case(int64_t tokens, int64_t vocabulary, int64_t width, double size, double noise, at::ScalarType student,
                   at::ScalarType teacher) {
  const auto wide = at::TensorOptions().dtype(at::kDouble);
  const auto hidden = random_tensor({tokens, width}, wide, 1);
  const double per_column = size / std::sqrt(static_cast<double>(width));
  const auto weight = random_tensor({vocabulary + 9, width}, wide, 2) * per_column;
  const auto difference =
      random_tensor({vocabulary + 3, width}, wide, 3) * (noise / std::sqrt(static_cast<double>(width)));
  HeadCase c;
  c.student_hidden = hidden.to(student);
  c.student_weight = (weight.narrow(0, 0, vocabulary + 3) + difference).to(student);
  c.teacher_hidden = hidden.to(teacher);
  c.teacher_weight = weight.to(teacher);
  c.labels = (random_tensor({tokens}, wide, 4).abs() * 1e6).to(at::kLong).remainder(vocabulary);
  const auto type = student == at::kDouble && teacher == at::kDouble ? at::kDouble : at::kFloat;
  c.divergence_weight = random_tensor({tokens}, wide, 5).abs().to(type);
  c.ce_weight = random_tensor({tokens}, wide, 6).abs().to(type);
  return c;
}

HeadNumbers reference_head_loss(const HeadCase& c, const kernels::HeadLossOptions& options) {
  const auto wide = [](const Tensor& t) { return t.detach().to(at::kDouble); };
  const int64_t vocabulary = options.vocabulary > 0 ? options.vocabulary : c.student_weight.size(0);
  const auto hidden = wide(c.student_hidden).requires_grad_(), weight = wide(c.student_weight).requires_grad_();
  const auto student = logits(hidden, weight, vocabulary, options.student_scale, options.student_softcap);
  HeadNumbers n;
  n.divergence = at::zeros({hidden.size(0)}, hidden.options().requires_grad(false));
  n.cross_entropy = at::zeros_like(n.divergence);
  if (options.divergence != Divergence::kNone) {
    const auto teacher = logits(wide(c.teacher_hidden), wide(c.teacher_weight), vocabulary, options.teacher_scale,
                                options.teacher_softcap);
    n.divergence = divergence_of(student, teacher, options).masked_fill(c.divergence_weight == 0.0, 0.0);
  }
  if (c.labels) {
    const auto log_p = student.log_softmax(-1);
    const auto picked = log_p.gather(1, c.labels->clamp_min(0).unsqueeze(1)).squeeze(1);
    const auto value = -(1.0 - options.label_smoothing) * picked - options.label_smoothing * log_p.mean(-1);
    n.cross_entropy = value.masked_fill((*c.labels < 0).logical_or(c.ce_weight == 0.0), 0.0);
  }
  n.loss = (wide(c.divergence_weight) * n.divergence + wide(c.ce_weight) * n.cross_entropy).sum();
  const auto gradients = torch::autograd::grad({n.loss}, {hidden, weight});
  n.hidden_gradient = gradients[0], n.weight_gradient = gradients[1];
  n.divergence = n.divergence.detach(), n.cross_entropy = n.cross_entropy.detach(), n.loss = n.loss.detach();
  return n;
}

HeadNumbers fused_head_loss(const HeadCase& c, const kernels::HeadLossOptions& options, bool gradients) {
  const auto hidden = c.student_hidden.detach().requires_grad_(gradients);
  const auto weight = c.student_weight.detach().requires_grad_(gradients);
  const bool teacher = options.divergence != Divergence::kNone;
  const auto given = [&](const Tensor& t) { return teacher ? std::optional<Tensor>(t) : std::nullopt; };
  const auto out = kernels::head_loss(hidden, weight, given(c.teacher_hidden), given(c.teacher_weight), c.labels,
                                      c.divergence_weight, c.ce_weight, options);
  HeadNumbers n{out.loss.detach(), out.divergence_n, out.cross_entropy_n, {}, {}};
  if (!gradients) return n;
  const auto seed = at::full_like(out.loss.detach(), options.gradient_scale);
  const auto made = torch::autograd::grad({out.loss}, {hidden, weight}, {seed});
  n.hidden_gradient = made[0], n.weight_gradient = made[1];
  return n;
}

double relative_distance(const Tensor& a, const Tensor& b) {
  const auto wanted = b.to(at::kDouble);
  const double size = wanted.norm().item<double>();
  return (a.to(at::kDouble) - wanted).norm().item<double>() / (size > 0 ? size : 1.0);
}

}  // namespace limbeck::test
