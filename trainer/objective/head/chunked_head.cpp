#include "trainer/objective/head/chunked_head.h"

#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "modules/precision/casts.h"
#include "trainer/objective/head/row_chunks.h"

namespace limbeck::objective {

namespace {

at::Tensor tempered(const at::Tensor& logits, const HeadRequest& request) {
  if (!request.divergence->tempered) return logits;
  const at::Tensor z = request.temperature == 1.0 ? logits : logits / request.temperature;
  return request.clamp > 0.0 ? z.clamp(-request.clamp, request.clamp) : z;
}

at::Tensor divergence_rows(const at::Tensor& student, const at::Tensor& teacher, const HeadRequest& request,
                           const VocabularySums& over) {
  const at::Tensor zs = tempered(student, request), zt = tempered(teacher, request);
  at::Tensor d =
      request.divergence->sliced ? request.divergence->sliced(zs, zt, over) : request.divergence->rows(zs, zt);
  // The gradient stays that of the formula: only the value is lifted.
  if (request.divergence->never_negative) d = d + (d.detach().clamp_min(0) - d.detach());
  return request.divergence->tempered ? d * (request.temperature * request.temperature) : d;
}

// Its gradient is written out, because no autograd knows of the other slices: p less what the labels want.
at::Tensor cross_entropy_rows(const at::Tensor& logits, const at::Tensor& labels_n, double smoothing,
                              const VocabularySums& over) {
  const int64_t here = logits.size(-1);
  const auto ids = static_cast<double>(over.ids(here));
  at::Tensor value_n, gradient_nv;
  {
    const at::NoGradGuard no_gradient;
    const at::Tensor z = logits - over.highest(logits), e = z.exp();
    const at::Tensor column = labels_n.unsqueeze(-1) - over.first(),
                     elsewhere = column.lt(0).bitwise_or(column.ge(here));
    const at::Tensor place = column.clamp(0, here - 1);
    std::vector<at::Tensor> parts{e.sum(-1, true), z.gather(-1, place).masked_fill(elsewhere, 0)};
    if (smoothing > 0.0) parts.push_back(z.sum(-1, true));
    const at::Tensor sums = over.total(at::cat(parts, -1));
    value_n = sums.select(-1, 0).log() - (1.0 - smoothing) * sums.select(-1, 1);
    if (smoothing > 0.0) value_n = value_n - sums.select(-1, 2) * (smoothing / ids);
    if (!logits.requires_grad()) return value_n;
    gradient_nv = e / sums.narrow(-1, 0, 1) - smoothing / ids;
    gradient_nv.scatter_add_(-1, place, at::full_like(z.narrow(-1, 0, 1), smoothing - 1.0).masked_fill(elsewhere, 0));
  }
  const at::Tensor line = (gradient_nv * logits).sum(-1);
  return value_n + (line - line.detach());
}

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

// One value a chunk put back at its tokens.
at::Tensor spread(const std::vector<at::Tensor>& parts, const at::Tensor& rows, const at::Tensor& like) {
  if (parts.empty()) return at::zeros_like(like);
  const at::Tensor values = at::cat(parts);
  return rows.defined() ? at::zeros_like(like).index_copy(0, rows, values) : values;
}

}  // namespace

void SideGradients::allocate(const HeadSide& side, at::ScalarType wide, bool trains) {
  hidden = trains && side.hidden_nd.requires_grad();
  weight = trains && side.weight_vd.requires_grad();
  const auto options = side.hidden_nd.options().dtype(wide);
  if (hidden) hidden_nd = at::zeros(side.hidden_nd.sizes(), options);
  if (weight) weight_vd = at::zeros(side.weight_vd.sizes(), options);
}

void SideGradients::add(const HeadSide& side, const at::Tensor& gradient_nv, const at::Tensor& hidden_wide,
                        const at::Tensor& rows_n, int64_t begin, at::ScalarType wide) {
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

ChunkedHead chunked_head(const HeadRequest& request, const VocabularySums& over) {
  const HeadSide& student = request.student;
  const bool compares = request.divergence != nullptr && request.teacher.has_value();
  const at::ScalarType wide = wide_type(student.hidden_nd.scalar_type());
  const bool trains = at::GradMode::is_enabled();
  const at::NoGradGuard no_gradient;
  ChunkedHead result;
  SideGradients &of_student = result.student, &of_teacher = result.teacher;
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
  for_chunks(rows, student.hidden_nd.size(0), over.widest(widest), [&](const Chunk& chunk) {
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
      take(divergence_rows(logits, capped(zt, request.teacher->softcap), request, over), request.divergence_weight_n,
           divergences);
    if (request.labels_n.defined())
      take(cross_entropy_rows(logits, chunk.of(request.labels_n), request.label_smoothing, over), request.ce_weight_n,
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
  result.divergence_n = spread(divergences, rows, request.divergence_weight_n);
  result.cross_entropy_n = spread(cross_entropies, rows, request.ce_weight_n);
  return result;
}

at::Tensor loss_with_gradients(const at::Tensor& loss, const HeadRequest& request, const SideGradients& student,
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

}  // namespace limbeck::objective
