#include "trainer/objective/distillation.h"

#include <stdexcept>

#include "trainer/metrics/phase_clock.h"
#include "trainer/objective/attention_terms.h"
#include "trainer/objective/class_terms.h"
#include "trainer/objective/equivalence_terms.h"
#include "trainer/objective/routing_terms.h"

namespace limbeck::objective {

struct Distillation::State {
  State(const ObjectiveOptions& options, std::shared_ptr<ModelPair> shared, const Vocabulary& vocabulary,
        VocabularyRanks ranks);

  void make_groups(const Vocabulary& vocabulary);
  void encode(ForwardPass& pass, bool with_teacher) const;

  ObjectiveOptions options;
  std::shared_ptr<ModelPair> pair;
  VocabularyRanks divided;
  Projectors projectors;
  double dropout = 0;
  bool needs_teacher = false;
  std::vector<std::unique_ptr<TermGroup>> groups;
  const HeadTermGroup* heads = nullptr;  // one of the groups; null for a bare encoder
  bool embeds = false;
  PassRequest request;
};

Distillation::State::State(const ObjectiveOptions& read, std::shared_ptr<ModelPair> shared,
                           const Vocabulary& vocabulary, VocabularyRanks ranks)
    : options(read),
      pair(std::move(shared)),
      divided(std::move(ranks)),
      projectors(options.projectors, *pair),
      dropout(pair->adapter ? adapters::dropout_of(*pair->adapter) : 0),
      needs_teacher(options.needs_teacher()) {
  if (needs_teacher && !pair->teacher) throw std::logic_error("the options were read for another pair of models");
  make_groups(vocabulary);
}

void Distillation::State::make_groups(const Vocabulary& vocabulary) {
  const auto add = [&](std::unique_ptr<TermGroup> group) {
    if (group == nullptr) return;
    group->ask(request);
    groups.push_back(std::move(group));
  };
  std::unique_ptr<HeadTermGroup> head;
  if (has_language_head(pair->student)) head = language_terms(options, *pair, vocabulary, divided, projectors);
  if (is_classifier(pair->student)) head = class_terms(options, *pair);
  heads = head.get();
  add(std::move(head));
  if (needs_teacher) {
    add(state_terms(options, *pair, projectors));
    add(attention_terms(options, *pair, projectors));
    add(pooled_terms(options, *pair, projectors));
    add(equivalence_terms(options, *pair));
  }
  add(routing_terms(options, *pair, projectors));
  embeds = needs_teacher && options.weights.full(TermKind::kEmbedding) > 0;
}

void Distillation::State::encode(ForwardPass& pass, bool with_teacher) const {
  const data::Batch& batch = *pass.batch;
  pass.has_teacher = with_teacher;
  pass.causal = pair->student.model->architecture().kind == models::ModelKind::kDecoder;
  pass.wide = wide_type(pair->student.policy->stream_dtype());
  if (with_teacher && batch.teacher) pass.align = TokenAlignment(batch, options.interpolates);
  pass.student_taps.keep_attention = pass.teacher_taps.keep_attention = request.attention;
  pass.student_taps.keep_router = pass.teacher_taps.keep_router = request.router;
  pass.student_taps.keep_mixed = pass.teacher_taps.keep_mixed = request.mixed;
  pass.student_taps.keep_adapted = request.adapted;
  const bool taps = request.attention || request.router || request.mixed || request.adapted;
  if (with_teacher) {
    const metrics::InPhase phase("teacher");
    const at::NoGradGuard no_gradient;
    pass.teacher = pair->teacher->model->encode(
        model_input(batch.teacher ? *batch.teacher : batch.student, taps ? &pass.teacher_taps : nullptr),
        request.hidden);
  }
  const metrics::InPhase phase("student");
  models::ModelInput input = model_input(batch.student, taps ? &pass.student_taps : nullptr);
  if (pass.progress.training && dropout > 0) {
    const at::Tensor& ids = batch.student.ids;
    const auto first_row = [](const Progress&, const data::Batch& b) { return b.first_row; };
    pass.draws = models::draws_of(options.seed, pass.number(first_row, at::kLong), ids.sizes());
    input.draws = pass.draws;
  }
  if (request.guided && with_teacher) input.layer_inputs = &pass.teacher.hidden;
  pass.student = pair->student.model->encode(input, request.hidden);
  count_tokens(pass);
}

Distillation::Distillation(const ObjectiveOptions& options, std::shared_ptr<ModelPair> pair,
                           const Vocabulary& vocabulary, VocabularyRanks divided)
    : state_(std::make_unique<State>(options, std::move(pair), vocabulary, std::move(divided))) {}

Distillation::~Distillation() = default;

Terms Distillation::forward(const data::Batch& batch, const Progress& progress, Measures* measures) const {
  const bool with_teacher = state_->pair->teacher && (state_->needs_teacher || measures != nullptr);
  ForwardPass pass;
  pass.batch = &batch;
  pass.progress = progress;
  state_->encode(pass, with_teacher);
  const metrics::InPhase phase("loss");
  TermSum sum;
  for (const auto& group : state_->groups) group->add_terms(pass, state_->options.weights, sum);
  if (measures != nullptr && !pass.meta) {
    if (state_->heads != nullptr) state_->heads->measure(pass, *measures);
    if (state_->embeds) measure_pooled(pass, state_->options.pooled.first_token, *measures);
  }
  return std::move(sum).finish(counted(batch), pass);
}

int64_t Distillation::counted(const data::Batch& batch) const {
  const bool causal = student().model->architecture().kind == models::ModelKind::kDecoder;
  return causal || batch.student.masked ? data::target_count(batch.student) : batch.student.ids.size(0);
}

std::vector<double> Distillation::constants(const Progress& progress) const {
  return state_->options.weights.all(progress.fraction());
}

const ObjectiveOptions& Distillation::options() const { return state_->options; }

const ModelPair& Distillation::pair() const { return *state_->pair; }

std::vector<std::shared_ptr<precision::ContractModule>> Distillation::contract_modules() const {
  std::vector<std::shared_ptr<precision::ContractModule>> found;
  const auto add = [&](const torch::nn::Module& root) {
    for (auto& module : precision::contract_modules(root)) found.push_back(std::move(module));
  };
  if (teacher()) add(*teacher()->model);
  add(*student().model);
  for (const auto& [module, group] : state_->projectors.kept()) add(*module);
  return found;
}

std::vector<TrainedParameter> Distillation::trained_parameters() const {
  std::vector<TrainedParameter> found;
  // The pooler of a bare encoder is part of its checkpoint, but no head reads it.
  const bool bare = student().model->architecture().head == models::HeadKind::kNone;
  const auto is_unused = [&](const precision::ContractModule& module) {
    return bare && module.path() == student().model->path() + ".pooler";
  };
  const auto collect = [&](const torch::nn::Module& root, const std::string& group) {
    for (const auto& module : precision::contract_modules(root)) {
      if (is_unused(*module)) continue;
      const bool routes = module->role() == precision::Role::kRouter;
      for (const auto& [name, tensor] : precision::path_parameters(*module)) {
        if (!tensor.requires_grad()) continue;
        found.push_back(
            {name, tensor, routes ? "router" : group, /*decays=*/tensor.dim() >= 2 && !name.ends_with("bias")});
      }
    }
  };
  collect(*student().model, "student");
  for (const auto& [module, group] : state_->projectors.kept()) collect(*module, group);
  return found;
}

std::vector<std::pair<std::string, at::Tensor>> Distillation::projector_tensors() const {
  std::vector<std::pair<std::string, at::Tensor>> found;
  const auto add = [&](std::vector<std::pair<std::string, at::Tensor>> tensors) {
    for (auto& named : tensors) found.push_back(std::move(named));
  };
  for (const auto& [root, group] : state_->projectors.kept()) add(precision::path_parameters(*root));
  if (pair().average) add(pair().average->tensors());
  return found;
}

std::vector<std::pair<std::string, at::Tensor>> Distillation::kept_tensors() const {
  std::vector<std::pair<std::string, at::Tensor>> found = projector_tensors();
  for (const auto& module : precision::contract_modules(*student().model)) {
    if (pair().adapter && module->role() != precision::Role::kAdapter) continue;
    for (auto& named : precision::path_parameters(*module)) found.push_back(std::move(named));
  }
  return found;
}

void Distillation::fill(const std::function<void()>& write) {
  write();
  if (state_->pair->average) state_->pair->average->refresh();
}

bool Distillation::follows_student() const { return pair().average.has_value(); }

void Distillation::after_update(const Progress&) {
  if (state_->pair->average) state_->pair->average->follow();
}

}  // namespace limbeck::objective
