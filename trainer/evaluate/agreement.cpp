#include "trainer/evaluate/agreement.h"

#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/cosine_similarity.h>
#include <ATen/ops/log_softmax.h>

#include <algorithm>

#include "modules/models/token_loss.h"
#include "modules/precision/casts.h"

namespace limbeck::evaluate {

namespace {

constexpr int64_t kLogitsAtOnce = int64_t{1} << 23;  // 32 MiB of float32

// Log-probabilities of some rows over the real vocabulary, in float32 or wider.
at::Tensor log_probabilities(const models::Transformer& model, const at::Tensor& last_nd, int64_t vocabulary) {
  const at::Tensor logits = model.head(last_nd);
  const at::ScalarType from = logits.scalar_type(), wide = from == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor real = logits.narrow(-1, 0, std::min(vocabulary, logits.size(-1)));
  return at::log_softmax(precision::cast(real, from, wide, model.path() + ".evaluation (logits)"), -1);
}

// Positions of the flattened [B, T] whose next token is a target, and those targets.
struct Targets {
  at::Tensor rows, ids;
};

Targets targets_of(const at::Tensor& labels) {
  const at::Tensor next =
      at::constant_pad_nd(labels.narrow(1, 1, labels.size(1) - 1), {0, 1}, models::kIgnoredLabel).reshape({-1});
  const at::Tensor rows = next.ne(models::kIgnoredLabel).nonzero().squeeze(1);
  return {rows, next.index_select(0, rows)};
}

double likelihood_loss(const at::Tensor& log_p, const at::Tensor& ids) {
  return -log_p.gather(1, ids.unsqueeze(1)).sum(at::kDouble).item<double>();
}

void add_agreement(const at::Tensor& log_s, const at::Tensor& log_t, Agreement& sums) {
  sums.kl += (log_t.exp() * (log_t - log_s)).sum(at::kDouble).item<double>();
  const int64_t five = std::min<int64_t>(5, log_s.size(1));
  const at::Tensor of_s = std::get<1>(log_s.topk(five, -1)), of_t = std::get<1>(log_t.topk(five, -1));
  sums.top1 += static_cast<double>(of_s.select(1, 0).eq(of_t.select(1, 0)).sum().item<int64_t>());
  const at::Tensor shared = of_s.unsqueeze(2).eq(of_t.unsqueeze(1)).sum();
  sums.top5 += static_cast<double>(shared.item<int64_t>()) / static_cast<double>(five);
}

}  // namespace

Agreement& Agreement::operator+=(const Agreement& other) {
  targets += other.targets;
  student_loss += other.student_loss;
  teacher_loss += other.teacher_loss;
  kl += other.kl;
  top1 += other.top1;
  top5 += other.top5;
  has_teacher = has_teacher || other.has_teacher;
  return *this;
}

models::ModelInput model_input(const data::TokenStream& stream) {
  models::ModelInput input;
  input.ids = stream.ids;
  input.attention_mask = stream.attention_mask;
  input.document_ids = stream.document_ids;
  return input;
}

Agreement compare(const models::Transformer* teacher, const models::Transformer& student, const data::Batch& batch,
                  int64_t vocabulary) {
  const at::NoGradGuard no_gradient;
  Agreement sums;
  sums.has_teacher = teacher != nullptr && !batch.teacher;
  const Targets targets = targets_of(batch.student.labels);
  sums.targets = targets.rows.size(0);
  if (sums.targets == 0) return sums;
  const models::ModelInput input = model_input(batch.student);
  auto rows_of = [&](const models::Transformer& model) {
    const at::Tensor last = model.encode(input).last;
    return last.reshape({-1, last.size(-1)}).index_select(0, targets.rows);
  };
  const at::Tensor student_nd = rows_of(student);
  const at::Tensor teacher_nd = sums.has_teacher ? rows_of(*teacher) : at::Tensor();
  const int64_t chunk = std::max<int64_t>(1, kLogitsAtOnce / vocabulary);
  for (int64_t row = 0; row < sums.targets; row += chunk) {
    const int64_t count = std::min(chunk, sums.targets - row);
    const at::Tensor ids = targets.ids.narrow(0, row, count);
    const at::Tensor log_s = log_probabilities(student, student_nd.narrow(0, row, count), vocabulary);
    sums.student_loss += likelihood_loss(log_s, ids);
    if (!sums.has_teacher) continue;
    const at::Tensor log_t = log_probabilities(*teacher, teacher_nd.narrow(0, row, count), vocabulary);
    sums.teacher_loss += likelihood_loss(log_t, ids);
    add_agreement(log_s, log_t, sums);
  }
  return sums;
}

double pooled_cosine(const models::Transformer& teacher, const models::Transformer& student, const data::Batch& batch) {
  const at::NoGradGuard no_gradient;
  auto pooled = [](const models::Transformer& model, const data::TokenStream& stream) {
    const at::Tensor state = models::mean_pool(model.encode(model_input(stream)).last, stream.attention_mask);
    return precision::cast(state, state.scalar_type(), at::kDouble, model.path() + ".evaluation (pooled)");
  };
  const at::Tensor s = pooled(student, batch.student), t = pooled(teacher, batch.teacher.value_or(batch.student));
  return at::cosine_similarity(s, t, -1).sum().item<double>();
}

double correct_classes(const models::Transformer& model, const data::Batch& batch) {
  const at::NoGradGuard no_gradient;
  const at::Tensor logits = model.head(model.encode(model_input(batch.student)).last);
  return static_cast<double>(logits.argmax(-1).eq(batch.classes).sum().item<int64_t>());
}

}  // namespace limbeck::evaluate
