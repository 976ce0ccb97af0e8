#include "trainer/objective/head_terms.h"

#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "modules/precision/casts.h"
#include "trainer/objective/row_chunks.h"

namespace limbeck::objective {

namespace {

at::Tensor tempered(const at::Tensor& logits, const HeadRequest& request) {
  if (!request.divergence->tempered) return logits;
  const at::Tensor z = request.temperature == 1.0 ? logits : logits / request.temperature;
  return request.clamp > 0.0 ? z.clamp(-request.clamp, request.clamp) : z;
}

at::Tensor divergence_rows(const at::Tensor& student, const at::Tensor& teacher, const HeadRequest& request) {
  at::Tensor d = request.divergence->rows(tempered(student, request), tempered(teacher, request));
  // The gradient stays that of the formula: only the value is lifted.
  if (request.divergence->never_negative) d = d + (d.detach().clamp_min(0) - d.detach());
  return request.divergence->tempered ? d * (request.temperature * request.temperature) : d;
}

at::Tensor cross_entropy_rows(const at::Tensor& logits, const at::Tensor& labels_n, double smoothing) {
  const at::Tensor log_p = at::log_softmax(logits, -1);
  const at::Tensor gold = log_p.gather(-1, labels_n.clamp_min(0).unsqueeze(-1)).squeeze(-1);
  if (smoothing == 0.0) return -gold;
  return -(gold * (1.0 - smoothing) + log_p.mean(-1) * smoothing);
}

// Gradients of one side, gathered over the chunks in the wide dtype.
struct SideGradients {
  bool hidden = false, weight = false;  // wanted
  at::Tensor hidden_nd, weight_vd;
  bool any() const { return hidden || weight; }
  void allocate(const HeadSide& side, at::ScalarType wide, bool trains) {
    hidden = trains && side.hidden_nd.requires_grad();
    weight = trains && side.weight_vd.requires_grad();
    const auto options = side.hidden_nd.options().dtype(wide);
    if (hidden) hidden_nd = at::zeros(side.hidden_nd.sizes(), options);
    if (weight) weight_vd = at::zeros(side.weight_vd.sizes(), options);
  }
  // Rows are those of the chunk: `rows_n` when the chunk was picked out of all tokens, else [begin, begin + n).
  void add(const HeadSide& side, const at::Tensor& gradient_nv, const at::Tensor& hidden_wide, const at::Tensor& rows_n,
           int64_t begin, at::ScalarType wide) {
    at::Tensor sum;
    for_weight_tiles(side, wide, [&](const at::Tensor& tile, int64_t first, int64_t n) {
      const at::Tensor part = gradient_nv.narrow(1, first, n);
      if (hidden) sum = sum.defined() ? sum.addmm_(part, tile) : at::mm(part, tile);
      if (weight) weight_vd.narrow(0, first, n).addmm_(part.t(), hidden_wide);
    });
    if (!hidden) return;
    if (rows_n.defined())
      hidden_nd.index_copy_(0, rows_n, sum);
    else
      hidden_nd.narrow(0, begin, sum.size(0)).copy_(sum);
  }
};

// A loss whose gradients are known: backward scales them in the wide dtype and rounds once.
struct KnownGradients : torch::autograd::Function<KnownGradients> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& loss, at::TensorList inputs,
                            const torch::autograd::variable_list& known, const std::string& place) {
    context->save_for_backward(known);
    std::vector<int64_t> dtypes;
    for (const at::Tensor& input : inputs) dtypes.push_back(static_cast<int64_t>(input.scalar_type()));
    context->saved_data["dtypes"] = dtypes;
    context->saved_data["place"] = place;
    return loss.clone();
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    const auto known = context->get_saved_variables();
    const auto dtypes = context->saved_data["dtypes"].toIntVector();
    const std::string place = context->saved_data["place"].toStringRef() + " (gradient)";
    torch::autograd::variable_list result{at::Tensor()};  // of the loss itself
    for (size_t i = 0; i < dtypes.size(); ++i) {
      result.push_back(known[i].defined() ? precision::cast(known[i] * gradients[0], known[i].scalar_type(),
                                                            static_cast<at::ScalarType>(dtypes[i]), place)
                                          : at::Tensor());
    }
    for (int i = 0; i < 2; ++i) result.push_back(at::Tensor());  // of `known` and `place`
    return result;
  }
};

at::Tensor with_gradients(const at::Tensor& loss, const HeadRequest& request, const SideGradients& student,
                          const SideGradients& teacher) {
  torch::autograd::variable_list inputs, known;
  auto add = [&](const at::Tensor& input, const at::Tensor& gradient, bool wanted) {
    if (!wanted) return;
    inputs.push_back(input);
    known.push_back(gradient);
  };
  add(request.student.hidden_nd, student.hidden_nd, student.hidden);
  add(request.student.weight_vd, student.weight_vd, student.weight);
  if (request.teacher) add(request.teacher->hidden_nd, teacher.hidden_nd, teacher.hidden);
  return inputs.empty() ? loss : KnownGradients::apply(loss, at::TensorList(inputs), known, request.student.place);
}

// One value a chunk put back at its tokens.
at::Tensor spread(const std::vector<at::Tensor>& parts, const at::Tensor& rows, const at::Tensor& like) {
  if (parts.empty()) return at::zeros_like(like);
  const at::Tensor values = at::cat(parts);
  return rows.defined() ? at::zeros_like(like).index_copy(0, rows, values) : values;
}

}  // namespace

kernels::HeadLoss chunked_head_terms(const HeadRequest& request) {
  const HeadSide& student = request.student;
  const bool compares = request.divergence != nullptr && request.teacher.has_value();
  const at::ScalarType wide = wide_type(student.hidden_nd.scalar_type());
  const bool trains = at::GradMode::is_enabled();
  const at::NoGradGuard no_gradient;
  SideGradients of_student, of_teacher;
  of_student.allocate(student, wide, trains);
  if (compares && request.teacher_learns) {
    HeadSide learner = *request.teacher;
    learner.weight_vd = learner.weight_vd.detach();
    of_teacher.allocate(learner, wide, trains);
  }
  // Tokens without weight cost nothing.
  const at::Tensor rows = chosen_rows(request.divergence_weight_n.ne(0).bitwise_or(request.ce_weight_n.ne(0)));
  const int64_t widest = std::max(real_rows(student), compares ? real_rows(*request.teacher) : 0);
  std::vector<at::Tensor> divergences, cross_entropies;
  for_chunks(rows, student.hidden_nd.size(0), widest, [&](const Chunk& chunk) {
    const at::Tensor hs = widened(chunk.of(student.hidden_nd.detach()), wide, student.place + " (hidden)");
    at::Tensor zs = wide_logits(student, hs, wide), ht, zt;
    if (compares) {
      const HeadSide& teacher = *request.teacher;
      ht = widened(chunk.of(teacher.hidden_nd.detach()), wide, teacher.place + " (hidden)");
      zt = wide_logits(teacher, ht, wide);
      zt.set_requires_grad(of_teacher.any());
    }
    zs.set_requires_grad(of_student.any());
    const at::AutoGradMode recording(of_student.any() || of_teacher.any());
    const at::Tensor logits = capped(zs, student.softcap);
    at::Tensor loss;
    auto take = [&](const at::Tensor& rows_n, const at::Tensor& weight_n, std::vector<at::Tensor>& values) {
      const at::Tensor weight = chunk.of(weight_n);
      values.push_back(rows_n.detach().masked_fill(weight.eq(0), 0));
      const at::Tensor sum = (rows_n * weight).sum();
      loss = loss.defined() ? loss + sum : sum;
    };
    if (compares)
      take(divergence_rows(logits, capped(zt, request.teacher->softcap), request), request.divergence_weight_n,
           divergences);
    if (request.labels_n.defined())
      take(cross_entropy_rows(logits, chunk.of(request.labels_n), request.label_smoothing), request.ce_weight_n,
           cross_entropies);
    if (!loss.defined() || !loss.requires_grad()) return;
    torch::autograd::variable_list leaves;
    if (of_student.any()) leaves.push_back(zs);
    if (of_teacher.any()) leaves.push_back(zt);
    const auto gradients = torch::autograd::grad({loss}, leaves, {}, std::nullopt, false, /*allow_unused=*/true);
    const at::NoGradGuard still_none;
    if (of_student.any() && gradients.front().defined())
      of_student.add(student, gradients.front(), hs, chunk.rows_n, chunk.begin, wide);
    if (of_teacher.any() && gradients.back().defined())
      of_teacher.add(*request.teacher, gradients.back(), ht, chunk.rows_n, chunk.begin, wide);
  });
  kernels::HeadLoss result;
  result.divergence_n = spread(divergences, rows, request.divergence_weight_n);
  result.cross_entropy_n = spread(cross_entropies, rows, request.ce_weight_n);
  result.loss =
      (result.divergence_n * request.divergence_weight_n).sum() + (result.cross_entropy_n * request.ce_weight_n).sum();
  const at::AutoGradMode recording(trains);
  result.loss = with_gradients(result.loss, request, of_student, of_teacher);
  return result;
}

namespace {

// What the fused operator computes: one vocabulary, a teacher that does not learn, a formula it knows.
bool fused_knows(const HeadRequest& request) {
  const auto is_double = [](const HeadSide& side) { return side.hidden_nd.scalar_type() == at::kDouble; };
  if (request.divergence == nullptr || !request.teacher) return true;
  if (is_double(request.student) && !is_double(*request.teacher)) return false;
  return request.divergence->fused.has_value() && !request.teacher_learns &&
         real_rows(request.student) == real_rows(*request.teacher);
}

kernels::HeadLoss fused_head_terms(const HeadRequest& request) {
  kernels::HeadLossOptions options;
  const bool compares = request.divergence != nullptr && request.teacher.has_value();
  options.divergence = compares ? *request.divergence->fused : kernels::Divergence::kNone;
  if (compares) options.mix = request.divergence->mix;
  options.temperature = request.temperature;
  options.student_softcap = request.student.softcap;
  options.clamp = request.clamp;
  options.label_smoothing = request.label_smoothing;
  options.vocabulary = real_rows(request.student);
  options.gradient_scale = request.gradient_scale;
  std::optional<at::Tensor> teacher_hidden, teacher_weight, labels;
  if (compares) {
    options.teacher_softcap = request.teacher->softcap;
    teacher_hidden = request.teacher->hidden_nd.detach();
    teacher_weight = request.teacher->weight_vd.detach();
  }
  if (request.labels_n.defined()) labels = request.labels_n;
  return kernels::head_loss(request.student.hidden_nd, request.student.weight_vd, teacher_hidden, teacher_weight,
                            labels, request.divergence_weight_n, request.ce_weight_n, options);
}

}  // namespace

kernels::HeadLoss head_terms(const HeadRequest& request) {
  return fused_knows(request) ? fused_head_terms(request) : chunked_head_terms(request);
}

}  // namespace limbeck::objective
