#include "trainer/objective/hidden_terms.h"

#include <fmt/format.h>

#include "modules/errors.h"
#include "trainer/objective/head/row_chunks.h"
#include "trainer/objective/layer_map.h"

namespace limbeck::objective {

namespace {

using Kind = projectors::HiddenProjector::Kind;
using Projector = std::shared_ptr<projectors::HiddenProjector>;

// Keeps the norm of a zero vector from dividing; far below any real state's.
constexpr double kSmallestNorm = 1e-12;

at::Tensor norm_rows(const at::Tensor& x) { return (x * x).sum(-1, /*keepdim=*/true).clamp_min(kSmallestNorm).sqrt(); }

}  // namespace

at::Tensor cosine_rows(const at::Tensor& a, const at::Tensor& b) {
  return ((a / norm_rows(a)) * (b / norm_rows(b))).sum(-1);
}

at::Tensor pooled_states(const at::Tensor& last_btd, const data::TokenStream& stream, bool first_token,
                         at::ScalarType wide, const std::string& place) {
  if (first_token) return widened(last_btd.select(1, 0), wide, place);
  return models::mean_pool(widened(last_btd, wide, place), valid_tokens(stream));
}

at::Tensor info_nce(const at::Tensor& student_nd, const at::Tensor& teacher_nd, double temperature) {
  const at::Tensor s = student_nd / norm_rows(student_nd), t = teacher_nd / norm_rows(teacher_nd);
  return -at::log_softmax(at::mm(s, t.t()) / temperature, -1).diagonal();
}

namespace {

class StateTerms : public TermGroup {
 public:
  StateTerms(const ObjectiveOptions& options, const ModelPair& pair, Projectors& all)
      : cosine_(options.hidden.cosine), feature_(options.weights.full(TermKind::kFeature) > 0) {
    using Wanted = HiddenOptions::Projector;
    const models::Architecture &s = pair.student.model->architecture(), &t = pair.teacher->model->architecture();
    const Wanted kind = options.hidden.projector;
    if (kind == Wanted::kNone && s.hidden != t.hidden) {
      throw UsageError(
          fmt::format("objective.hidden_projector = none {}: the student's states are {} wide, the "
                      "teacher's {}: set it to linear or mlp",
                      options.hidden.projector_where, s.hidden, t.hidden));
    }
    const at::ScalarType own = pair.student.policy->stream_dtype();
    auto make = [&](const std::string& path) -> Projector {
      if (kind == Wanted::kNone) return nullptr;
      return all.from_student(path, t.hidden, own, wide_type(own), kind == Wanted::kMlp ? Kind::kMlp : Kind::kLinear);
    };
    if (feature_) last_projector_ = make("projector.feature");
    const auto add = [&](std::vector<Pair>& pairs, const char* what, int64_t student, int64_t teacher) {
      pairs.push_back({student, teacher, make(fmt::format("projector.{}.{}", what, student))});
    };
    if (options.weights.full(TermKind::kLayer) > 0) {
      for (const auto& [of_student, of_teacher] : layer_map(options.hidden.layers, s.layers, t.layers))
        add(layers_, "hidden", of_student, of_teacher);
    }
    if (options.weights.full(TermKind::kMixer) > 0) {
      for (int64_t i = 0; i < s.layers; ++i) add(mixers_, "mixer", i, layer_at_same_place(i, s.layers, t.layers));
    }
  }

  void ask(PassRequest& request) const override {
    request.hidden = request.hidden || !layers_.empty();
    request.mixed = request.mixed || !mixers_.empty();
  }

  void add_terms(const ForwardPass& pass, const TermWeights& weights, TermSum& sum) const override {
    const double feature = weight_in(pass, weights, TermKind::kFeature);
    if (feature_ && feature > 0)
      sum.add("feature", distance(pass, pass.student.last, pass.teacher.last, last_projector_, "feature"), feature);
    add_pairs(pass, layers_, "hidden", pass.student.hidden, pass.teacher.hidden,
              weight_in(pass, weights, TermKind::kLayer), sum);
    add_pairs(pass, mixers_, "mixer", pass.student_taps.mixed, pass.teacher_taps.mixed,
              weight_in(pass, weights, TermKind::kMixer), sum);
  }

 private:
  struct Pair {
    int64_t student, teacher;
    Projector projector;
  };

  // The weight is that of their mean.
  void add_pairs(const ForwardPass& pass, const std::vector<Pair>& pairs, const char* kind,
                 const std::vector<at::Tensor>& student, const std::vector<at::Tensor>& teacher, double weight,
                 TermSum& sum) const {
    if (weight == 0) return;
    for (const Pair& pair : pairs) {
      const std::string name = fmt::format("{}.{}", kind, pair.student);
      const at::Tensor value = distance(pass, student[static_cast<size_t>(pair.student)],
                                        teacher[static_cast<size_t>(pair.teacher)], pair.projector, name);
      sum.add(name, value, weight / static_cast<double>(pairs.size()));
    }
  }

  at::Tensor distance(const ForwardPass& pass, const at::Tensor& student_btd, const at::Tensor& teacher_btd,
                      const Projector& projector, const std::string& name) const {
    const std::string place = "objective." + name;
    const at::Tensor s =
        projector ? projector->forward(student_btd) : widened(student_btd, pass.wide, place + " (student)");
    const at::Tensor t = widened(pass.align(teacher_btd, place + " (alignment)"), pass.wide, place + " (teacher)");
    const at::Tensor rows = cosine_ ? 1.0 - cosine_rows(s, t) : (s - t).square().mean(-1);
    return (rows.flatten() * pass.token_weight_n).sum();
  }

  bool cosine_, feature_;
  Projector last_projector_;
  std::vector<Pair> layers_, mixers_;  // counted in layers passed; from 0
};

class PooledTerms : public TermGroup {
 public:
  PooledTerms(const ObjectiveOptions& options, const ModelPair& pair, Projectors& all)
      : first_token_(options.pooled.first_token),
        temperature_(options.pooled.temperature),
        contrasts_(options.weights.full(TermKind::kContrastive) > 0),
        embeds_(options.weights.full(TermKind::kEmbedding) > 0) {
    const models::Architecture &s = pair.student.model->architecture(), &t = pair.teacher->model->architecture();
    if (s.hidden == t.hidden) return;
    const at::ScalarType wide = wide_type(pair.student.policy->stream_dtype());
    if (contrasts_) contrast_ = all.from_student("projector.contrastive", t.hidden, wide, wide, Kind::kLinear);
    if (embeds_) embedding_ = all.from_student("projector.embedding", t.hidden, wide, wide, Kind::kLinear);
  }

  void add_terms(const ForwardPass& pass, const TermWeights& weights, TermSum& sum) const override {
    const double contrastive = contrasts_ ? weight_in(pass, weights, TermKind::kContrastive) : 0;
    const double embedding = embeds_ ? weight_in(pass, weights, TermKind::kEmbedding) : 0;
    if (contrastive == 0 && embedding == 0) return;
    const data::Batch& batch = *pass.batch;
    const at::Tensor s =
        pooled_states(pass.student.last, batch.student, first_token_, pass.wide, "objective.pooled (student)");
    const at::Tensor t = pooled_states(pass.teacher.last, batch.teacher ? *batch.teacher : batch.student, first_token_,
                                       pass.wide, "objective.pooled (teacher)");
    const auto projected = [&](const Projector& projector) { return projector ? projector->forward(s) : s; };
    if (contrastive > 0)
      sum.add("contrastive", info_nce(projected(contrast_), t, temperature_).sum() / pass.sequences(), contrastive);
    if (embedding > 0)
      sum.add("embedding", (1.0 - cosine_rows(projected(embedding_), t)).sum() / pass.sequences(), embedding);
  }

 private:
  bool first_token_;
  double temperature_;
  bool contrasts_, embeds_;
  Projector contrast_, embedding_;
};

}  // namespace

void measure_pooled(const ForwardPass& pass, bool first_token, Measures& measures) {
  if (pass.student.last.size(-1) != pass.teacher.last.size(-1)) return;
  const at::NoGradGuard no_gradient;
  const data::Batch& batch = *pass.batch;
  const at::Tensor s =
      pooled_states(pass.student.last, batch.student, first_token, pass.wide, "evaluation (student pooled)");
  const at::Tensor t = pooled_states(pass.teacher.last, batch.teacher ? *batch.teacher : batch.student, first_token,
                                     pass.wide, "evaluation (teacher pooled)");
  measures.cosine += cosine_rows(s, t).sum().item<double>();
  measures.pooled += s.size(0);
}

std::unique_ptr<TermGroup> state_terms(const ObjectiveOptions& options, const ModelPair& pair, Projectors& projectors) {
  const auto is_off = [&](TermKind kind) { return options.weights.full(kind) == 0; };
  if (is_off(TermKind::kFeature) && is_off(TermKind::kLayer) && is_off(TermKind::kMixer)) return nullptr;
  return std::make_unique<StateTerms>(options, pair, projectors);
}

std::unique_ptr<TermGroup> pooled_terms(const ObjectiveOptions& options, const ModelPair& pair,
                                        Projectors& projectors) {
  const TermWeights& weights = options.weights;
  if (weights.full(TermKind::kContrastive) == 0 && weights.full(TermKind::kEmbedding) == 0) return nullptr;
  return std::make_unique<PooledTerms>(options, pair, projectors);
}

}  // namespace limbeck::objective
