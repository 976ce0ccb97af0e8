#include "trainer/objective/distillation.h"

#include <fmt/format.h>

#include "modules/errors.h"
#include "trainer/agreement/data_guard.h"
#include "trainer/agreement/masking_guard.h"
#include "trainer/agreement/vocabulary_guard.h"
#include "trainer/build/recipe_adapter.h"
#include "trainer/build/recipe_models.h"
#include "trainer/metrics/phase_clock.h"
#include "trainer/objective/attention_terms.h"
#include "trainer/objective/class_terms.h"
#include "trainer/objective/equivalence_terms.h"
#include "trainer/objective/routing_terms.h"

namespace limbeck::objective {

namespace {

using models::HeadKind;
using models::ModelKind;

bool is_classifier(const models::BuiltModel& model) {
  const HeadKind head = model.model->architecture().head;
  return head == HeadKind::kBertClassifier || head == HeadKind::kDistilBertClassifier;
}

bool has_language_head(const models::BuiltModel& model) {
  return model.model->architecture().head == HeadKind::kLanguageModel;
}

bool any_needs_teacher(const TermWeights& weights) {
  for (const TermKind kind :
       {TermKind::kKd, TermKind::kFeature, TermKind::kLayer, TermKind::kAttention, TermKind::kContrastive,
        TermKind::kEmbedding, TermKind::kExpertMix, TermKind::kEquivalence}) {
    if (weights.full(kind) > 0) return true;
  }
  return false;
}

}  // namespace

struct Distillation::State {
  State(const recipe::Settings& recipe, const Registries& registries, bool on_meta);

  void check_pair();
  void make_groups();
  void encode(ForwardPass& pass, bool with_teacher) const;

  recipe::Settings settings;
  bool meta;
  models::BuiltModel student;
  std::vector<std::string> notes;
  std::optional<adapters::AdapterConfig> adapter;
  double dropout = 0;
  bool shares_weights = false;
  std::optional<models::BuiltModel> teacher;
  TermWeights weights;
  Divergence divergence;
  bool needs_teacher, crosses;
  std::unique_ptr<Projectors> projectors;
  mutable std::optional<MovingAverage> average;
  std::optional<PairVocabulary> tokenizers;
  Vocabulary vocabulary;
  VocabularyRanks divided;
  std::vector<std::unique_ptr<TermGroup>> groups;
  const HeadTermGroup* heads = nullptr;  // one of the groups; null for a bare encoder
  bool embeds = false;
  PassRequest request;
};

Distillation::State::State(const recipe::Settings& recipe, const Registries& registries, bool on_meta)
    : settings(recipe),
      meta(on_meta),
      student(build_student(recipe, on_meta)),
      adapter(adapt_student(recipe, student, notes)),
      dropout(adapter ? adapters::dropout_of(*adapter) : 0),
      weights(recipe, student.model->architecture().head == HeadKind::kNone) {
  BuiltTeacher built = build_teacher(recipe, student, on_meta);
  teacher = std::move(built.model);
  shares_weights = built.shares_weights;
  const auto* list = dynamic_cast<const Registry<DivergenceFactory>*>(registries.find("objectives"));
  if (list == nullptr) throw std::logic_error("no objective is registered: call register_builtins()");
  divergence = list->find(settings.text("objective.divergence"))(settings);
  needs_teacher = any_needs_teacher(weights);
  crosses = divergence.crosses_vocabularies || settings.text("projector.kind") == "logit";
  require_fitting_masks(settings, weights, student, teacher && needs_teacher ? &*teacher : nullptr);
  tokenizers.emplace(student, teacher ? &*teacher : nullptr);
  check_pair();
  if (settings.enabled("objective.vocabulary_parallel")) {
    require_divisible_vocabulary(settings, divergence, has_language_head(student));
  }
  const models::BuiltModel* with = teacher ? &*teacher : nullptr;
  projectors = std::make_unique<Projectors>(settings, student, with, meta);
  if (settings.text("teacher.kind") == "ema" && !meta)
    average.emplace(*teacher, student, settings.number("objective.ema_decay"));
  vocabulary.student = student.config.architecture.vocabulary;
  vocabulary.teacher = teacher ? teacher->config.architecture.vocabulary : 0;
  if (teacher && !crosses) vocabulary.student = vocabulary.teacher = std::min(vocabulary.student, vocabulary.teacher);
  make_groups();
  student.model->train();
  if (teacher) teacher->model->eval();
}

void Distillation::State::check_pair() {
  if (!teacher) {
    if (!needs_teacher) return;
    throw UsageError(
        fmt::format("objective.alpha = {} {} compares with a teacher, and the recipe has none: set teacher.model, or "
                    "teacher.kind = self or ema, or train without one by objective.alpha = 0 (and no other teacher "
                    "term)",
                    settings.number("objective.alpha"), settings.where("objective.alpha")));
  }
  if (needs_teacher && has_language_head(student) && weights.full(TermKind::kKd) > 0 && !has_language_head(*teacher) &&
      settings.text("projector.kind") != "logit") {
    throw UsageError(
        fmt::format("teacher.model {} has no language-model head, which objective.alpha compares with: set "
                    "another teacher.model, or objective.alpha = 0",
                    settings.where("teacher.model")));
  }
  if (settings.text("projector.kind") == "logit" && !has_language_head(student)) {
    throw UsageError(
        fmt::format("projector.kind = logit {} reads the teacher through the student's language-model "
                    "head, and student.model has none: set projector.kind = none",
                    settings.where("projector.kind")));
  }
  if (teacher->policy->device() != student.policy->device()) {
    throw UsageError(
        fmt::format("teacher.device = {} {} and student.device = {}: wanted one device, because both "
                    "read the same batch, in evaluation always",
                    teacher->policy->device().str(), settings.where("teacher.device"), student.policy->device().str()));
  }
  if (crosses || !has_language_head(student)) return;
  const std::string& difference = tokenizers->difference();
  if (difference.empty() || !needs_teacher) return;
  throw UsageError(
      fmt::format("{}, and objective.divergence = {} {} compares them id by id: set objective.divergence "
                  "= uld or dskd, or projector.kind = logit, and prepare data with both tokenizers",
                  difference, settings.text("objective.divergence"), settings.where("objective.divergence")));
}

void Distillation::State::make_groups() {
  const bool with_teacher = teacher.has_value() && needs_teacher;
  const ModelPair pair{&student, teacher ? &*teacher : nullptr};
  auto add = [&](std::unique_ptr<TermGroup> group) {
    if (group == nullptr) return;
    group->ask(request);
    groups.push_back(std::move(group));
  };
  std::unique_ptr<HeadTermGroup> head;
  if (has_language_head(student)) head = language_terms(settings, divergence, pair, vocabulary, divided, *projectors);
  if (is_classifier(student)) head = class_terms(settings, divergence, pair);
  heads = head.get();
  add(std::move(head));
  if (with_teacher) {
    add(feature_and_layer_terms(settings, weights, pair, *projectors));
    add(attention_terms(weights, pair, *projectors));
    add(pooled_terms(settings, weights, pair, *projectors));
    add(equivalence_terms(settings, weights, pair, adapter.has_value()));
  }
  add(routing_terms(weights, pair, *projectors));
  embeds = with_teacher && weights.full(TermKind::kEmbedding) > 0;
}

void Distillation::State::encode(ForwardPass& pass, bool with_teacher) const {
  const data::Batch& batch = *pass.batch;
  pass.has_teacher = with_teacher;
  pass.causal = student.model->architecture().kind == ModelKind::kDecoder;
  pass.wide = wide_type(student.policy->stream_dtype());
  if (with_teacher && batch.teacher)
    pass.align = TokenAlignment(batch, settings.text("objective.alignment") == "interpolate");
  pass.student_taps.keep_attention = pass.teacher_taps.keep_attention = request.attention;
  pass.student_taps.keep_router = pass.teacher_taps.keep_router = request.router;
  pass.student_taps.keep_adapted = request.adapted;
  const bool taps = request.attention || request.router || request.adapted;
  if (with_teacher) {
    const metrics::InPhase phase("teacher");
    const at::NoGradGuard no_gradient;
    if (average) average->refresh();
    pass.teacher = teacher->model->encode(
        model_input(batch.teacher ? *batch.teacher : batch.student, taps ? &pass.teacher_taps : nullptr),
        request.hidden);
  }
  const metrics::InPhase phase("student");
  models::ModelInput input = model_input(batch.student, taps ? &pass.student_taps : nullptr);
  if (pass.progress.training && dropout > 0) {
    const at::Tensor& ids = batch.student.ids;
    pass.draws =
        models::draws_of(static_cast<uint64_t>(settings.integer("seed")), batch.first_row, ids.sizes(), ids.device());
    input.draws = pass.draws;
  }
  if (request.guided && with_teacher) input.layer_inputs = &pass.teacher.hidden;
  pass.student = student.model->encode(input, request.hidden);
  count_tokens(pass);
}

Distillation::Distillation(const recipe::Settings& settings, const Registries& registries, Materialize how)
    : state_(std::make_unique<State>(settings, registries, how == Materialize::kMeta)) {}

Distillation::~Distillation() = default;

Terms Distillation::forward(const data::Batch& batch, const Progress& progress, Measures* measures) const {
  const bool with_teacher = state_->teacher && (state_->needs_teacher || measures != nullptr);
  ForwardPass pass;
  pass.batch = &batch;
  pass.progress = progress;
  state_->encode(pass, with_teacher);
  const metrics::InPhase phase("loss");
  TermSum sum;
  for (const auto& group : state_->groups) group->add_terms(pass, state_->weights, sum);
  if (measures != nullptr && !pass.meta) {
    if (state_->heads != nullptr) state_->heads->measure(pass, *measures);
    if (state_->embeds) measure_pooled(pass, state_->settings.text("model.pooling") == "cls", *measures);
  }
  const bool counts_targets = pass.causal || batch.student.masked;
  return std::move(sum).finish(counts_targets ? pass.batch_targets() : batch.student.ids.size(0), pass);
}

const std::optional<models::BuiltModel>& Distillation::teacher() const { return state_->teacher; }
const models::BuiltModel& Distillation::student() const { return state_->student; }
c10::Device Distillation::device() const {
  return state_->meta ? c10::Device(c10::kMeta) : state_->student.policy->device();
}

std::vector<std::shared_ptr<precision::ContractModule>> Distillation::contract_modules() const {
  std::vector<std::shared_ptr<precision::ContractModule>> found;
  auto collect = [&](const torch::nn::Module& root, bool include_self) {
    for (const auto& module : root.modules(include_self)) {
      if (auto owner = std::dynamic_pointer_cast<precision::ContractModule>(module)) found.push_back(owner);
    }
  };
  if (state_->teacher) collect(*state_->teacher->model, false);
  collect(*state_->student.model, false);
  for (const auto& [module, group] : state_->projectors->kept()) collect(*module, true);
  return found;
}

std::vector<TrainedParameter> Distillation::trained_parameters() const {
  std::vector<TrainedParameter> found;
  // The pooler of a bare encoder is part of its checkpoint, but no head reads it.
  const bool bare = state_->student.model->architecture().head == HeadKind::kNone;
  const auto is_unused = [&](const precision::ContractModule& module) {
    return bare && module.path() == state_->student.model->path() + ".pooler";
  };
  auto collect = [&](const torch::nn::Module& root, const std::string& group) {
    for (const auto& module : root.modules()) {
      const auto* owner = dynamic_cast<const precision::ContractModule*>(module.get());
      if (owner == nullptr || is_unused(*owner)) continue;
      for (const auto& entry : owner->named_parameters(/*recurse=*/false)) {
        if (!entry.value().requires_grad()) continue;
        const bool routes = owner->role() == precision::Role::kRouter;
        found.push_back({owner->path() + "." + entry.key(), entry.value(), routes ? "router" : group,
                         /*decays=*/entry.value().dim() >= 2});
      }
    }
  };
  collect(*state_->student.model, "student");
  for (const auto& [module, group] : state_->projectors->kept()) collect(*module, group);
  return found;
}

std::vector<std::pair<std::string, at::Tensor>> Distillation::projector_tensors() const {
  std::vector<std::pair<std::string, at::Tensor>> found;
  for (const auto& [root, group] : state_->projectors->kept()) {
    for (const auto& module : root->modules()) {
      const auto* owner = dynamic_cast<const precision::ContractModule*>(module.get());
      if (owner == nullptr) continue;
      for (const auto& entry : owner->named_parameters(/*recurse=*/false))
        found.emplace_back(owner->path() + "." + entry.key(), entry.value());
    }
  }
  if (state_->average) {
    for (auto& tensor : state_->average->tensors()) found.push_back(std::move(tensor));
  }
  return found;
}

std::vector<std::pair<std::string, at::Tensor>> Distillation::kept_tensors() const {
  std::vector<std::pair<std::string, at::Tensor>> found = projector_tensors();
  for (const auto& module : state_->student.model->modules()) {
    const auto* owner = dynamic_cast<const precision::ContractModule*>(module.get());
    if (owner == nullptr) continue;
    if (state_->adapter && owner->role() != precision::Role::kAdapter) continue;
    for (const auto& entry : owner->named_parameters(/*recurse=*/false))
      found.emplace_back(owner->path() + "." + entry.key(), entry.value());
  }
  return found;
}

const std::optional<adapters::AdapterConfig>& Distillation::adapter() const { return state_->adapter; }

const std::vector<std::string>& Distillation::notes() const { return state_->notes; }

bool Distillation::teacher_shares_weights() const { return state_->shares_weights; }

bool Distillation::follows_student() const { return state_->average.has_value(); }

void Distillation::after_update(const Progress&) {
  if (state_->average) state_->average->follow();
}

void Distillation::divide_vocabulary(parallel::Communicator& ranks) {
  if (ranks.size() == 1 || !state_->settings.enabled("objective.vocabulary_parallel")) return;
  state_->divided.order =
      state_->settings.text("parallel.reduce") == "tree" ? parallel::Order::kTree : parallel::Order::kFast;
  state_->divided.line = ranks.line("vocabulary");
}

bool Distillation::reads_two_streams() const {
  State& s = *state_;
  return s.teacher && s.needs_teacher && s.crosses && !s.tokenizers->difference().empty();
}

void Distillation::accept_data(const data::Manifest& manifest, const std::string& origin) {
  State& s = *state_;
  const bool compares = s.teacher && s.needs_teacher;
  const Vocabulary real = require_fitting_data(
      manifest, origin, {s.settings, *s.tokenizers, s.student, compares ? &*s.teacher : nullptr, s.crosses});
  s.vocabulary.student = real.student;
  if (compares) s.vocabulary.teacher = real.teacher;
}

}  // namespace limbeck::objective
