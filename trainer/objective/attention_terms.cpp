#include <fmt/format.h>

#include "modules/errors.h"
#include "modules/precision/casts.h"
#include "modules/projectors/attention_projector.h"
#include "trainer/objective/attention_terms.h"
#include "trainer/objective/layer_map.h"

namespace limbeck::objective {

at::Tensor attention_scores(const models::Taps::Operands& operands, const models::Architecture& a, at::ScalarType wide,
                            const std::string& place) {
  const at::ScalarType own = operands.query_bthd.scalar_type();
  const at::Tensor q = precision::cast(operands.query_bthd, own, wide, place + " (queries)").transpose(1, 2);
  const at::Tensor k = precision::cast(operands.key_bshd, own, wide, place + " (keys)").transpose(1, 2);
  const int64_t groups = a.heads / a.key_value_heads;
  const at::Tensor grouped = q.unflatten(1, {a.key_value_heads, groups});  // [B, Hkv, G, T, D]
  const at::Tensor scores = at::matmul(grouped, k.unsqueeze(2).transpose(-1, -2)).flatten(1, 2) * a.attention_scale;
  return a.attention_softcap > 0 ? at::tanh(scores / a.attention_softcap) * a.attention_softcap : scores;
}

at::Tensor visible_keys(const data::TokenStream& stream, const models::Architecture& a, int64_t layer) {
  const int64_t length = stream.ids.size(1);
  const bool causal = a.kind == models::ModelKind::kDecoder;
  const int64_t window = a.window.empty() ? 0 : a.window[static_cast<size_t>(layer)];
  const at::Tensor step = at::arange(length, stream.ids.options());
  const at::Tensor distance = step.unsqueeze(1) - step.unsqueeze(0);  // query - key
  at::Tensor seen = causal ? distance.ge(0) : distance.eq(distance);
  if (window > 0) seen = seen.bitwise_and((causal ? distance : distance.abs()).lt(window));
  seen = seen.view({1, 1, length, length});
  const at::Tensor valid = valid_tokens(stream);
  seen = seen.bitwise_and(valid.view({-1, 1, 1, length}));
  if (!stream.document_ids) return seen;
  const at::Tensor& documents = *stream.document_ids;
  return seen.bitwise_and(documents.unsqueeze(2).eq(documents.unsqueeze(1)).unsqueeze(1));
}

namespace {

void require_attention(const models::Transformer& model) {
  for (const auto& layer : model.layers()) {
    if (layer->has_attention()) continue;
    throw UsageError(
        fmt::format("[{}] mixes its tokens by {}, which has no attention maps to transfer: set "
                    "objective.attention_weight = 0",
                    layer->path(), layer->mixer_name()));
  }
}

class AttentionTerms : public TermGroup {
 public:
  AttentionTerms(const ModelPair& pair, Projectors& all)
      : student_(pair.student.model->architecture()), teacher_(pair.teacher->model->architecture()) {
    require_attention(*pair.student.model);
    require_attention(*pair.teacher->model);
    for (int64_t s = 0; s < student_.layers; ++s) {
      const std::string path = fmt::format("projector.attention.{}", s);
      pairs_.push_back({s, layer_at_same_place(s, student_.layers, teacher_.layers),
                        all.keep(std::make_shared<projectors::AttentionProjector>(
                            all.scope(path, Projectors::Side::kStudent), student_.heads, teacher_.heads))});
    }
  }

  void ask(PassRequest& request) const override { request.attention = true; }

  void add_terms(const ForwardPass& pass, const TermWeights& weights, TermSum& sum) const override {
    const double weight = weight_in(pass, weights, TermKind::kAttention);
    if (weight == 0) return;
    const data::TokenStream& stream = pass.batch->student;
    if (pass.batch->teacher) {
      throw UsageError(
          "attention transfer compares maps token by token, but teacher and student read different tokens: set "
          "objective.attention_weight = 0");
    }
    for (const Pair& pair : pairs_) {
      const std::string name = fmt::format("attention.{}", pair.student), place = "objective." + name;
      const at::Tensor hidden = visible_keys(stream, student_, pair.student)
                                    .bitwise_and(visible_keys(stream, teacher_, pair.teacher))
                                    .bitwise_not();
      const auto& s = pass.student_taps.attention[static_cast<size_t>(pair.student)];
      const auto& t = pass.teacher_taps.attention[static_cast<size_t>(pair.teacher)];
      const at::Tensor student =
          pair.projector->forward(attention_scores(s, student_, pass.wide, place + " (student)"));
      const at::Tensor teacher = attention_scores(t, teacher_, pass.wide, place + " (teacher)");
      const at::Tensor rows =
          rows::forward_kl(student.masked_fill(hidden, kHidden), teacher.masked_fill(hidden, kHidden)).mean(1);
      const at::Tensor value = (rows.flatten() * pass.token_weight_n).sum();
      sum.add(name, value, weight / static_cast<double>(pairs_.size()));
    }
  }

 private:
  struct Pair {
    int64_t student, teacher;
    std::shared_ptr<projectors::AttentionProjector> projector;
  };
  const models::Architecture &student_, &teacher_;
  std::vector<Pair> pairs_;
};

}  // namespace

std::unique_ptr<TermGroup> attention_terms(const ObjectiveOptions& options, const ModelPair& pair,
                                           Projectors& projectors) {
  if (options.weights.full(TermKind::kAttention) == 0) return nullptr;
  return std::make_unique<AttentionTerms>(pair, projectors);
}

}  // namespace limbeck::objective
