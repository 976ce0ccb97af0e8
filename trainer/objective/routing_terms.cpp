#include <fmt/format.h>

#include <cmath>

#include "modules/errors.h"
#include "trainer/objective/head/row_chunks.h"
#include "trainer/objective/layer_map.h"
#include "trainer/objective/routing_terms.h"

namespace limbeck::objective {

at::Tensor imbalance(const at::Tensor& logits_ne, const at::Tensor& weight_n) {
  constexpr double kTiny = 1e-20;  // an empty batch has no mean: its imbalance is finite, and weighs nothing
  const at::Tensor share = weight_n / weight_n.sum().clamp_min(kTiny);
  const at::Tensor mean = (at::softmax(logits_ne, -1) * share.unsqueeze(-1)).sum(0).clamp_min(kTiny);
  return -(mean.log().mean() + std::log(static_cast<double>(logits_ne.size(-1))));
}

namespace {

class RoutingTerms : public TermGroup {
 public:
  RoutingTerms(const TermWeights& weights, const ModelPair& pair, Projectors& all)
      : mixes_(weights.full(TermKind::kExpertMix) > 0), balances_(weights.full(TermKind::kBalance) > 0) {
    const models::Architecture& s = pair.student.model->architecture();
    student_sparse_ = s.experts.count > 0;
    if (mixes_) {
      if (!pair.teacher || pair.teacher->model->architecture().experts.count == 0) {
        throw UsageError(
            "objective.expert_mix_weight: the teacher has no experts whose routing could be learnt: set it to 0, or "
            "teacher.model to a mixture of experts");
      }
      make_routers(pair.student, pair.teacher->model->architecture(), all);
    }
    if (balances_ && !student_sparse_ && !mixes_) {
      throw UsageError(
          "objective.balance_weight: neither the student nor an expert mix has a router to balance: set it to 0, or "
          "objective.expert_mix_weight above 0");
    }
  }

  void ask(PassRequest& request) const override {
    request.router = true;
    request.hidden = request.hidden || mixes_;
  }

  void add_terms(const ForwardPass& pass, const TermWeights& weights, TermSum& sum) const override {
    std::vector<at::Tensor> routings;  // [N, E] of every router that should be balanced
    if (balances_ && student_sparse_) {
      for (const at::Tensor& logits : pass.student_taps.router_logits)
        routings.push_back(widened(logits, pass.wide, "objective.balance (student)").flatten(0, 1));
    }
    const double mix = mixes_ ? weight_in(pass, weights, TermKind::kExpertMix) : 0;
    for (const Router& router : routers_) {
      const std::string name = fmt::format("expert_mix.{}", router.student), place = "objective." + name;
      const at::Tensor student =
          router.projector->forward(pass.student.hidden[static_cast<size_t>(router.student)]).flatten(0, 1);
      if (balances_) routings.push_back(student);
      if (mix == 0) continue;
      const at::Tensor& routed = pass.teacher_taps.router_logits[router.teacher_ordinal];
      const at::Tensor teacher = widened(pass.align(routed, place + " (alignment)"), pass.wide, place + " (teacher)");
      const at::Tensor value = (rows::forward_kl(student, teacher.flatten(0, 1)) * pass.token_weight_n).sum();
      sum.add(name, value, mix / static_cast<double>(routers_.size()));
    }
    const double balance = balances_ ? weight_in(pass, weights, TermKind::kBalance) : 0;
    if (balance == 0 || routings.empty()) return;
    at::Tensor total;
    for (const at::Tensor& logits : routings) {
      const at::Tensor one = imbalance(logits, pass.token_weight_n);
      total = total.defined() ? total + one : one;
    }
    // The batch counts by its share of the update's tokens, as every other term does.
    sum.add("balance", total / static_cast<double>(routings.size()) * pass.token_weight_n.sum(), balance);
  }

 private:
  struct Router {
    int64_t student;         // layers passed
    size_t teacher_ordinal;  // among the teacher's sparse layers
    std::shared_ptr<projectors::HiddenProjector> projector;
  };

  void make_routers(const models::BuiltModel& student, const models::Architecture& teacher, Projectors& all) {
    const int64_t layers = student.model->architecture().layers;
    const at::ScalarType own = student.policy->stream_dtype();
    for (int64_t s = 0; s < layers; ++s) {
      const int64_t t = layer_at_same_place(s, layers, teacher.layers);
      if (!teacher.sparse(t)) continue;
      size_t ordinal = 0;
      for (int64_t i = 0; i < t; ++i) ordinal += teacher.sparse(i) ? 1 : 0;
      routers_.push_back({s, ordinal,
                          all.from_student(fmt::format("projector.expert_mix.{}", s), teacher.experts.count, own,
                                           wide_type(own), projectors::HiddenProjector::Kind::kLinear, "router")});
    }
    if (routers_.empty()) throw UsageError("objective.expert_mix_weight: no layer of the student faces a sparse one");
  }

  bool mixes_, balances_, student_sparse_ = false;
  std::vector<Router> routers_;
};

}  // namespace

std::unique_ptr<TermGroup> routing_terms(const ObjectiveOptions& options, const ModelPair& pair,
                                         Projectors& projectors) {
  const TermWeights& weights = options.weights;
  if (weights.full(TermKind::kExpertMix) == 0 && weights.full(TermKind::kBalance) == 0) return nullptr;
  return std::make_unique<RoutingTerms>(weights, pair, projectors);
}

}  // namespace limbeck::objective
