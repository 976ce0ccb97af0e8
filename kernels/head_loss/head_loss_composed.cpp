// The fused head where a head is float64, on the CPU and on CUDA: a composition of ATen operators over runs of tokens,
// so that the logits of one run stay within a fixed size. The gradient by the logits is written down, not recorded.
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/_assert_async.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <string>
#include <utility>

#include "kernels/head_loss/divergence_tensors.h"
#include "kernels/head_loss/head_loss_operands.h"

namespace limbeck::kernels {
namespace {

using at::Tensor;

constexpr int64_t kLogitsAtOnce = int64_t{1} << 24;  // of one run and one head: 64 MB in float32

// a b in the wide dtype: of a float64 teacher's half student the sums are wanted in float64.
Tensor wide_product(const Tensor& a, const Tensor& b, at::ScalarType wide) { return at::mm(a.to(wide), b.to(wide)); }

struct Logits {
  Tensor plain, plain_slope;  // after scale and softcap; slopes are undefined where they are the constant scale
  Tensor tempered, inside;    // of the divergence; inside is undefined without a clamp
};

Logits logits_of(const Tensor& hidden, const Tensor& weight, at::ScalarType wide, double scale, double cap,
                 const HeadLossOptions& o) {
  Logits z;
  z.plain = wide_product(hidden, weight.t(), wide).mul_(scale);
  if (cap > 0) {
    const auto t = at::tanh(z.plain.div_(cap));
    z.plain_slope = (1.0 - t) * (1.0 + t);
    z.plain = t * cap;
  }
  z.tempered = o.divergence == Divergence::kLogitMse ? z.plain : z.plain / o.temperature;
  if (o.clamp > 0) {
    z.inside = z.tempered.abs() <= o.clamp;
    z.tempered = z.tempered.clamp(-o.clamp, o.clamp);
  }
  return z;
}

struct Divergences {
  Tensor value;     // [run]
  Tensor gradient;  // [run, V] by the tempered student logits
};

Divergences divergence_of(const Tensor& a, const Tensor& b, const HeadLossOptions& o, int64_t vocabulary) {
  const DivergenceKind kind{o.divergence, o.mix};
  if (o.divergence == Divergence::kLogitMse) {
    const auto terms = divergence_terms(kind, a - b, {}, {});
    return {terms.value.mean(-1), terms.slope * (2.0 / static_cast<double>(vocabulary))};
  }
  const auto lse_a = at::logsumexp(a, -1, true), lse_b = at::logsumexp(b, -1, true);
  const auto p_s = at::exp(a - lse_a), p_t = at::exp(b - lse_b);
  const auto terms = divergence_terms(kind, (a - b) - (lse_a - lse_b), p_s, p_t);
  if (!needs_mean_slope(o.divergence)) return {terms.value.sum(-1), terms.slope};
  return {terms.value.sum(-1), p_s * (terms.slope - (p_s * terms.slope).sum(-1, true))};
}

class Composition {
 public:
  Composition(const HeadLossInputs& in, const HeadLossOptions& options, bool hidden_gradient, bool weight_gradient);
  HeadLossResults results();

 private:
  void run(const Tensor& tokens);
  Tensor divergence_part(const Tensor& tokens, const Logits& student);
  Tensor cross_entropy_part(const Tensor& tokens, const Logits& student);
  void add_gradients(const Tensor& tokens, const Tensor& hidden, Tensor dz);

  const HeadLossInputs& in_;
  const HeadLossOptions& options_;
  at::ScalarType wide_, student_wide_;
  bool wants_hidden_, wants_weight_;
  Tensor student_weight_, divergence_, cross_entropy_, hidden_gradient_, weight_sums_;
};

Composition::Composition(const HeadLossInputs& in, const HeadLossOptions& options, bool hidden_gradient,
                         bool weight_gradient)
    : in_(in),
      options_(options),
      wide_(head_loss_type(in)),
      wants_hidden_(hidden_gradient),
      wants_weight_(weight_gradient) {
  const bool any_double = in.student_hidden.scalar_type() == at::kDouble ||
                          (in.teacher_hidden && in.teacher_hidden->scalar_type() == at::kDouble);
  student_wide_ = any_double ? at::kDouble : at::kFloat;
  student_weight_ = in.student_weight.narrow(0, 0, options.vocabulary);
  divergence_ = at::zeros({in.student_hidden.size(0)}, in.divergence_weight.options());
  cross_entropy_ = at::zeros_like(divergence_);
  const int64_t tokens = hidden_gradient ? in.student_hidden.size(0) : 0;
  hidden_gradient_ = at::zeros({tokens, in.student_hidden.size(1)}, in.student_hidden.options());
  const int64_t rows = weight_gradient ? in.student_weight.size(0) : 0;
  weight_sums_ = at::zeros({rows, in.student_weight.size(1)}, in.student_weight.options().dtype(student_wide_));
}

// The weighted gradient by the plain student logits; fills divergence_.
Tensor Composition::divergence_part(const Tensor& tokens, const Logits& student) {
  const auto& o = options_;
  const auto weights = in_.divergence_weight.index_select(0, tokens).to(student_wide_);
  const auto teacher =
      logits_of(in_.teacher_hidden->index_select(0, tokens), in_.teacher_weight->narrow(0, 0, o.vocabulary),
                student_wide_, o.teacher_scale, o.teacher_softcap, o);
  auto [value, gradient] = divergence_of(student.tempered, teacher.tempered, o, o.vocabulary);
  const double t = o.divergence == Divergence::kLogitMse ? 1.0 : o.temperature;
  divergence_.index_copy_(0, tokens, (value * (t * t)).masked_fill(weights == 0.0, 0.0).to(wide_));
  if (student.inside.defined()) gradient = gradient * student.inside;
  return gradient * (weights * t).unsqueeze(1);  // T^2 of the value, 1 / T of the logits
}

Tensor Composition::cross_entropy_part(const Tensor& tokens, const Logits& student) {
  const auto labels = in_.labels->index_select(0, tokens);
  const auto counts = labels >= 0;
  const auto weights = in_.ce_weight.index_select(0, tokens).to(student_wide_).masked_fill(counts.logical_not(), 0.0);
  const auto column = labels.clamp(0, options_.vocabulary - 1).unsqueeze(1);
  const auto lse = at::logsumexp(student.plain, -1, true);
  const double smoothing = options_.label_smoothing;
  const auto value =
      (lse - student.plain.gather(1, column) * (1.0 - smoothing)).squeeze(1) - student.plain.mean(-1) * smoothing;
  cross_entropy_.index_copy_(0, tokens, value.masked_fill(weights == 0.0, 0.0).to(wide_));
  auto gradient = at::exp(student.plain - lse).sub_(smoothing / static_cast<double>(options_.vocabulary));
  gradient.scatter_add_(1, column, at::empty_like(column, gradient.options()).fill_(smoothing - 1.0));
  return gradient * weights.unsqueeze(1);
}

// The largest weight is taken out while dz is in the storage dtype: products with 1 / tokens would vanish in float16.
void Composition::add_gradients(const Tensor& tokens, const Tensor& hidden, Tensor dz) {
  const auto size = dz.abs().amax().clamp_min(1e-30);
  const auto storage = in_.student_hidden.scalar_type();
  const auto narrow = dz.div_(size).to(storage);
  const auto factor = size * options_.gradient_scale;
  if (wants_hidden_) {
    const auto rows = wide_product(narrow, student_weight_, student_wide_).mul_(factor);
    hidden_gradient_.index_copy_(0, tokens, rows.to(storage));
  }
  if (wants_weight_) {
    weight_sums_.narrow(0, 0, options_.vocabulary).add_(wide_product(narrow.t(), hidden, student_wide_).mul_(factor));
  }
}

void Composition::run(const Tensor& tokens) {
  const auto hidden = in_.student_hidden.index_select(0, tokens);
  const auto student =
      logits_of(hidden, student_weight_, student_wide_, options_.student_scale, options_.student_softcap, options_);
  Tensor dz;
  if (options_.divergence != Divergence::kNone) dz = divergence_part(tokens, student);
  if (in_.labels) {
    const auto part = cross_entropy_part(tokens, student);
    dz = dz.defined() ? dz.add_(part) : part;
  }
  if (!wants_hidden_ && !wants_weight_) return;
  dz.mul_(options_.student_scale);
  if (student.plain_slope.defined()) dz.mul_(student.plain_slope);
  add_gradients(tokens, hidden, dz);
}

HeadLossResults Composition::results() {
  const bool on_cpu = in_.student_hidden.is_cpu();
  if (in_.labels && !on_cpu) refuse_labels_out_of_range(in_, options_.vocabulary);
  // How many tokens count is not asked of a GPU, which the host would have to wait for: all run, the others weigh 0.
  const auto tokens = on_cpu ? counted_tokens(in_, options_)
                             : at::arange(in_.student_hidden.size(0), in_.student_hidden.options().dtype(at::kLong));
  const int64_t step = std::max<int64_t>(kLogitsAtOnce / options_.vocabulary, 1);
  for (int64_t i = 0; i < tokens.size(0); i += step) run(tokens.narrow(0, i, std::min(step, tokens.size(0) - i)));
  return {weighted_loss(in_, divergence_, cross_entropy_), divergence_, cross_entropy_, hidden_gradient_,
          weight_sums_.to(in_.student_weight.scalar_type())};
}

}  // namespace

void refuse_labels_out_of_range(const HeadLossInputs& in, int64_t vocabulary) {
  const Tensor& label = *in.labels;
  const auto known = (label == -100).logical_or((label >= 0).logical_and(label < vocabulary));
  at::_assert_async(
      known.logical_or(in.ce_weight == 0.0).all(),
      "[head_loss] a label is out of range, wanted -100 (none) or 0 to " + std::to_string(vocabulary - 1));
}

Tensor weighted_loss(const HeadLossInputs& in, const Tensor& divergence, const Tensor& cross_entropy) {
  const auto total = [](const Tensor& weight, const Tensor& value) {
    return (weight.to(at::kDouble) * value.to(at::kDouble)).sum();
  };
  return (total(in.divergence_weight, divergence) + total(in.ce_weight, cross_entropy)).to(head_loss_type(in));
}

HeadLossResults composed_head_loss(const HeadLossInputs& in, const HeadLossOptions& options, bool hidden_gradient,
                                   bool weight_gradient) {
  return Composition(in, options, hidden_gradient, weight_gradient).results();
}

}  // namespace limbeck::kernels
