#include "trainer/profile/subject.h"

#include <c10/core/InferenceMode.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <fmt/format.h>

#include <utility>

#include "modules/errors.h"
#include "modules/models/network/generator.h"
#include "trainer/build/model_sharing.h"
#include "trainer/build/recipe_pair.h"
#include "trainer/check/dry_run.h"
#include "trainer/objective/forward_pass.h"
#include "trainer/profile/placement.h"
#include "trainer/session/update.h"

namespace limbeck::profile {
namespace {

constexpr int64_t kScheduleSteps = 1'000'000;  // of which none comes to its end

// What check says of the recipe is why it cannot be trained.
void require_trainable(const recipe::Settings& placed, const Registries& registries) {
  const check::CheckReport report = check::dry_run(placed, registries);
  for (const auto& lines : {report.stored_wrongly, report.ran_wrongly}) {
    if (!lines.empty()) throw ContractError(lines.front());
  }
}

}  // namespace

std::unique_ptr<objective::Distillation> objective_of(const recipe::Settings& settings, const Registries& registries,
                                                      const std::shared_ptr<objective::ModelPair>& pair,
                                                      const std::vector<agreement::DataInUse>& sets) {
  const auto options = objective::read_options(settings, registries, *pair);
  agreement::PairAgreement agreement(settings, options, *pair);
  if (sets.empty() && agreement.reads_two_streams()) {
    throw UsageError(
        "training of a teacher with a tokenizer of its own is timed by its data: `limbeck train` says "
        "seconds and tokens a second; --work=forward,generation profiles the student");
  }
  return std::make_unique<objective::Distillation>(options, pair, agreement.vocabulary(sets));
}

void finish_device(c10::Device device) {
  if (!device.is_cuda()) return;
  c10::impl::VirtualGuardImpl(device.type()).synchronizeDevice(device.has_index() ? device.index() : 0);
}

struct Subject::State {
  State(const recipe::Settings& placed, const Registries& registries_of_all, const ProfileOptions& asked, Work of)
      : settings(of == Work::kTraining ? placed : placed.with("teacher.kind", "none")),
        registries(registries_of_all),
        options(asked),
        work(of) {
    if (work == Work::kTraining) require_trainable(settings, registries);
    pair = build::build_pair(settings, objective::Materialize::kWeights);
    rows = profiled_rows(settings, *pair, options, work);
    tokens = objective::valid_tokens(rows.batch.student).sum().item<int64_t>();
    batch = data::place(rows.batch, pair->device());
    require_one_device(*pair->student.model, batch);
    if (work == Work::kTraining) {
      ranks = parallel::make_solo();
      std::vector<agreement::DataInUse> sets;
      if (rows.source) sets.push_back({rows.source->manifest(), rows.origin});
      objective = objective_of(settings, registries, pair, sets);
      pair->student.model->set_checkpointing(settings.enabled("train.checkpoint_activations"));
      optimizer = build::make_optimizer(settings, *objective, *ranks, 1, kScheduleSteps);
    } else {
      pair->student.model->eval();
    }
  }

  void forward() const {
    const c10::InferenceMode inference;
    const at::Tensor last = pair->student.model->encode(objective::model_input(batch.student, nullptr)).last;
    if (pair->student.model->has_head()) pair->student.model->head(last);
  }

  void generate() const {
    const c10::InferenceMode inference;
    models::GenerateOptions greedy;
    greedy.max_new_tokens = options.new_tokens;
    greedy.ignore_end = true;
    models::generate(*pair->student.model, batch.student.ids, *batch.student.attention_mask, greedy);
  }

  void update() {
    const std::vector<data::Batch> batches{batch};
    const auto progress = session::update_progress(batches, step, kScheduleSteps, optimizer->loss_scale());
    session::run_update(*objective, *optimizer, batches, progress, *ranks);
    ++step;
  }

  const recipe::Settings settings;  // without a teacher where none works
  const Registries& registries;
  const ProfileOptions& options;
  const Work work;
  std::shared_ptr<objective::ModelPair> pair;
  ProfiledRows rows;
  int64_t tokens = 0;  // of them, without padding
  data::Batch batch;
  std::unique_ptr<parallel::Communicator> ranks;
  std::unique_ptr<objective::Distillation> objective;
  std::unique_ptr<optim::Optimizer> optimizer;
  int64_t step = 0;
};

Subject::Subject(const recipe::Settings& placed, const Registries& registries, const ProfileOptions& options, Work work)
    : state_(std::make_unique<State>(placed, registries, options, work)) {}
Subject::~Subject() = default;

const models::BuiltModel& Subject::student() const { return state_->pair->student; }
c10::Device Subject::device() const { return state_->pair->device(); }
const ProfiledRows& Subject::rows() const { return state_->rows; }
int64_t Subject::rows_of_a_pass() const { return state_->batch.student.ids.size(0); }

int64_t Subject::tokens_of_a_pass() const {
  return state_->work == Work::kGeneration ? rows_of_a_pass() * state_->options.new_tokens : state_->tokens;
}

void Subject::pass() {
  switch (state_->work) {
    case Work::kForward:
      state_->forward();
      break;
    case Work::kTraining:
      state_->update();
      break;
    case Work::kGeneration:
      state_->generate();
      break;
  }
  finish_device(device());
}

}  // namespace limbeck::profile
