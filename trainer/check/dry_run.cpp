#include "trainer/check/dry_run.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <memory>

#include "kernels/operator/planned_device.h"
#include "modules/errors.h"
#include "modules/memory/meta_memory.h"
#include "modules/models/network/generator.h"
#include "modules/precision/casts.h"
#include "modules/precision/recorder.h"
#include "trainer/agreement/pair_agreement.h"
#include "trainer/build/model_sharing.h"
#include "trainer/build/recipe_pair.h"
#include "trainer/checkpoint/async_saver.h"
#include "trainer/data/data_request.h"
#include "trainer/parallel/parallel_options.h"
#include "trainer/session/micro_batch_division.h"
#include "trainer/session/run_state.h"
#include "trainer/session/session_options.h"
#include "trainer/session/step_graphs.h"
#include "trainer/session/update.h"

namespace limbeck::check {

namespace {

using memory::MetaMemory;
using models::HeadKind;
using models::Transformer;
using objective::Distillation;

// The first line of an ATen error says what happened; the rest is its stack.
std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

// Runs one phase; a failure becomes a violation that names the module whose code was running.
template <typename Phase>
void run_phase(const std::string& name, CheckReport& report, Phase&& phase) {
  precision::CastLog casts;
  precision::OperatorRecorder recorder;
  try {
    phase();
  } catch (const Error& error) {
    report.ran_wrongly.push_back(error.what());
  } catch (const c10::Error& error) {
    report.ran_wrongly.push_back(
        fmt::format("[{}] {} ({})", precision::failed_module(), first_line(error.what_without_backtrace()), name));
  }
  report.operators += recorder.operator_count();
  for (const std::string& violation : recorder.violations()) report.ran_wrongly.push_back(violation);
  for (const auto& [key, cost] : casts.casts()) {
    add_cast({without_layer(key.place), precision::dtype_name(key.from), precision::dtype_name(key.to), name,
              cost.count, cost.bytes},
             report.casts);
  }
}

// What `train` has before its first update, on meta.
struct Rehearsal {
  Distillation& objective;
  parallel::Communicator& ranks;
  bool two_streams;            // the models read tokens of their own
  int64_t documents_of_a_row;  // of packed rows
};

// A batch of the recipe's shape as a loader makes it, on the CPU, every token a target; what it holds besides ids
// follows data.packing and the student's head.
data::Batch loaded_batch(const data::DataRequest& shape, const Rehearsal& run) {
  const auto options = at::TensorOptions().dtype(at::kLong).device(at::kCPU);
  const int64_t rows = shape.batch_size, length = shape.sequence_length;
  auto stream = [&] {
    data::TokenStream tokens;
    tokens.ids = at::zeros({rows, length}, options);
    tokens.labels = at::zeros({rows, length}, options);
    tokens.masked = shape.masking.unit != data::MaskUnit::kNone;
    const bool packed = shape.packing == data::Packing::kPacked;
    if (packed) {
      const at::Tensor numbers = at::arange(length, options).mul(run.documents_of_a_row).floor_divide(length).add(1);
      tokens.document_ids = numbers.repeat({rows, 1});
    } else {
      tokens.attention_mask = at::ones({rows, length}, options);
    }
    return tokens;
  };
  data::Batch batch;
  batch.student = stream();
  if (objective::is_classifier(run.objective.student())) batch.classes = at::zeros({rows}, options);
  if (run.two_streams) {
    batch.teacher = stream();
    batch.teacher_position = at::zeros({rows, length}, options);
  }
  return batch;
}

// By the way on which training gets its own: who forgets to place a batch on the models' device is found here, as on a
// GPU, because meta is no less another device than the CPU.
std::vector<data::Batch> batches_of_update(const recipe::Settings& settings, const Rehearsal& run, int64_t count,
                                           const Tamper& tamper) {
  const data::DataRequest shape = data::data_shape(settings);
  data::Prefetcher prefetched([&](int64_t) { return loaded_batch(shape, run); }, 0, count,
                              /*depth=*/0, run.objective.device());
  std::vector<data::Batch> batches;
  for (int64_t i = 0; i < count; ++i) {
    batches.push_back(prefetched.next());
    if (tamper.batch) tamper.batch(batches.back());
  }
  return batches;
}

void plan_weights(const Distillation& objective, const build::KeptBytes& kept, CheckReport& report) {
  const bool shared = objective.pair().shares_weights;
  if (objective.teacher()) {
    report.memory.push_back({shared ? "teacher weights: the student's, shared" : "teacher weights", kept.teacher});
  }
  report.memory.push_back({"student weights", kept.student});
  int64_t projectors = 0;
  for (const auto& [name, tensor] : objective.projector_tensors()) projectors += static_cast<int64_t>(tensor.nbytes());
  if (projectors > 0) report.memory.push_back({"projector weights", projectors});
}

// Micro-batches that show what all of an update need: two, and in a tree of sums all, each level of which is kept.
int64_t telling_micro_batches(const recipe::Settings& settings, const parallel::Communicator& ranks) {
  const int64_t own = session::deal_of(settings, ranks.size(), ranks.rank()).own;
  return parallel::read_parallel_options(settings).order == parallel::Order::kTree ? own : std::min<int64_t>(2, own);
}

// Of all CUDA graphs together, whose memory is that of the largest one: of a micro-batch from its first operator to its
// gradients.
int64_t bytes_of_graphs(const Distillation& objective, const data::Batch& batch, const objective::Progress& progress) {
  const int64_t before = MetaMemory::live_bytes();
  MetaMemory::reset_peak();
  session::forward_and_backward(objective, batch, progress);
  for (const auto& parameter : objective.trained_parameters()) parameter.tensor.mutable_grad().reset();
  return MetaMemory::peak_bytes() - before;
}

// One update of the recipe as training runs it.
void run_training(const recipe::Settings& settings, const Rehearsal& run, const build::KeptBytes& kept,
                  const Tamper& tamper, CheckReport& report) {
  Distillation& objective = run.objective;
  parallel::Communicator& ranks = run.ranks;
  constexpr int64_t kSteps = 1000;  // the schedule's length changes no dtype and no size
  const int64_t own = telling_micro_batches(settings, ranks);
  const std::vector<data::Batch> batches = batches_of_update(settings, run, own, tamper);
  const int64_t before = MetaMemory::live_bytes();
  std::string unsaid;  // what failed outside the recorded run, which then says it better: where, and of which dtypes
  const auto rehearse = [&](const auto& part) {
    try {
      part();
    } catch (const Error& error) {
      unsaid = error.what();
    } catch (const c10::Error& error) {
      unsaid = fmt::format("[{}] {}", precision::failed_module(), first_line(error.what_without_backtrace()));
    }
  };
  rehearse([&] {
    const objective::Terms terms =
        objective.forward(batches.front(), session::update_progress(batches, 0, kSteps, 1.0));
    report.memory.push_back({"activations kept for backward", MetaMemory::live_bytes() - before});
  });
  const auto optimizer = build::make_optimizer(settings, objective, ranks, own, kSteps);
  const build::TeacherShards teacher(parallel::read_parallel_options(settings), objective, ranks);
  int64_t state = 0;
  for (const auto& part : optimizer->state_tensors()) state += static_cast<int64_t>(part.part.nbytes());
  report.memory.push_back({"masters, moments and EMA", state});
  report.memory.push_back({"gradients", kept.gradients});
  if (settings.integer("checkpoint.keep") > 0) {
    report.checkpoint_copy_bytes =
        checkpoint::staged_bytes(session::save_request({}, objective, *optimizer, ranks.rank() == 0));
  }
  const auto update = [&] {
    const auto progress = session::update_progress(batches, 0, kSteps, optimizer->loss_scale());
    session::run_update(objective, *optimizer, batches, progress, ranks);
  };
  int64_t graphs = 0;
  if (session::read_session_options(settings).records_graphs) {
    rehearse([&] {
      const auto progress = session::update_progress(batches, 0, kSteps, optimizer->loss_scale());
      graphs = bytes_of_graphs(objective, batches.front(), progress);
    });
    report.memory.push_back({"CUDA graphs, beside the peaks below", graphs});
  }
  if (ranks.size() > 1) rehearse(update);  // from the second one on, buffers of the one before wait beside activations
  MetaMemory::reset_peak();
  run_phase("train", report, update);
  if (!unsaid.empty() && report.ran_wrongly.empty()) report.ran_wrongly.push_back(unsaid);
  for (const auto& [name, updates] : optimizer->state_scalars()) {
    constexpr std::string_view kUpdates = "updates.";
    if (name.starts_with(kUpdates) && updates == 0) report.unreached.push_back(name.substr(kUpdates.size()));
  }
  report.peak_bytes = MetaMemory::peak_bytes();
  report.memory.push_back({"peak of an update, all of the above", MetaMemory::peak_bytes()});
  MetaMemory::reset_peak();
  run_phase("evaluate", report, [&] {
    const at::NoGradGuard no_gradient;
    objective.forward(batches.front(), {.total_steps = kSteps});
  });
  report.memory.push_back({"peak of an evaluation", MetaMemory::peak_bytes()});
  report.peak_bytes = std::max(report.peak_bytes, MetaMemory::peak_bytes()) + graphs;
  if (report.checkpoint_copy_bytes > 0) {
    report.memory.push_back({"a checkpoint's copy on the host, beside the peak", report.checkpoint_copy_bytes});
  }
}

// Else the device would say it, some hours later, at the first batch of full length.
void refuse_too_large(const recipe::Settings& settings, CheckReport& report) {
  constexpr const char* kLimit = "parallel.memory_limit";
  const double limit = settings.number(kLimit) * (1 << 30);
  if (limit == 0 || static_cast<double>(report.peak_bytes) <= limit) return;
  report.ran_wrongly.push_back(fmt::format(
      "[memory] {} needs {} bytes in tensors for a batch of {} x {} tokens, wanted at most {:.0f} ({} = {} {}): set a "
      "smaller data.batch_size and a larger train.accumulate, or train.checkpoint_activations=true, or {}",
      report.ranks > 1 ? fmt::format("each of {} ranks", report.ranks) : "one rank", report.peak_bytes,
      settings.integer("data.batch_size"), settings.integer("data.sequence_length"), limit, kLimit,
      settings.text(kLimit), settings.where(kLimit),
      session::read_session_options(settings).records_graphs ? "train.cuda_graphs = off"
                                                             : "divide more by parallel.zero"));
}

void run_generation(const Transformer& model, const recipe::Settings& settings, CheckReport& report) {
  const int64_t rows = settings.integer("data.batch_size"), prompt = settings.integer("data.sequence_length");
  const int64_t room = prompt + settings.integer("generation.max_new_tokens");
  const int64_t length = model.architecture().learned_positions > 0
                             ? std::min(prompt, model.architecture().learned_positions - 1)
                             : prompt;
  models::GenerateOptions sampling;
  sampling.temperature = settings.number("generation.temperature");
  sampling.top_k = settings.integer("generation.top_k");
  sampling.top_p = settings.number("generation.top_p");
  run_phase("generate", report, [&] {
    const c10::InferenceMode inference;
    models::TokenCache cache(model.architecture().layers, rows, room);
    const at::Tensor ids = at::empty({rows, length}, at::TensorOptions().dtype(at::kLong).device(at::kMeta));
    const models::TextRoom text(ids, at::empty_like(ids), room - length);
    for (int64_t step = 0; step < 2; ++step) {  // all of the prompt at once, and a token by the cache
      models::next_ids(model, text, length + step, &cache, sampling, step);
    }
  });
}

}  // namespace

void add_cast(const CastRow& cast, std::vector<CastRow>& rows) {
  for (CastRow& row : rows) {
    if (row.place != cast.place || row.from != cast.from || row.to != cast.to || row.phase != cast.phase) continue;
    row.count += cast.count;
    row.bytes += cast.bytes;
    return;
  }
  rows.push_back(cast);
}

CheckReport dry_run(const recipe::Settings& settings, const Registries& registries, int ranks, const Tamper& tamper) {
  const MetaMemory memory;
  const kernels::PlanFor device(settings.device_of("student").type());
  CheckReport report;
  report.ranks = ranks;
  const auto planned = ranks > 1 ? parallel::make_planned(ranks) : parallel::make_solo();
  auto pair = build::build_pair(settings, objective::Materialize::kMeta);
  const objective::ObjectiveOptions options = objective::read_options(settings, registries, *pair);
  objective::Vocabulary vocabulary;
  bool two_streams = false;
  {
    agreement::PairAgreement agreement(settings, options, *pair);
    report.data = check_data(settings);
    vocabulary = agreement.vocabulary(in_use(report.data));
    two_streams = agreement.reads_two_streams();
  }
  const auto make = [&] {
    auto made =
        std::make_unique<Distillation>(options, pair, vocabulary, objective::vocabulary_ranks(settings, *planned));
    if (tamper.models) tamper.models(*made);
    return made;
  };
  auto objective = make();
  if (session::read_session_options(settings).records_graphs) session::require_recordable(settings, *objective, ranks);
  for (const auto& module : objective->contract_modules()) {
    for (const std::string& line : module->violations()) report.stored_wrongly.push_back(line);
  }
  report.notes = pair->notes;
  report.modules = module_table(*objective);
  report.learning = count_learning(*objective);
  const build::KeptBytes kept = build::kept_bytes(parallel::read_parallel_options(settings), *objective, ranks);
  plan_weights(*objective, kept, report);
  pair->student.model->set_checkpointing(settings.enabled("train.checkpoint_activations"));
  run_training(settings, {*objective, *planned, two_streams, documents_of_a_row(report.data)}, kept, tamper, report);
  refuse_too_large(settings, report);
  const models::Architecture& student = pair->student.config.architecture;
  if (student.head != HeadKind::kLanguageModel || student.masked_language_model()) return report;
  if (ranks > 1) {  // whose weights went with their ranks; who generates has them all
    objective.reset();
    pair.reset();
    pair = build::build_pair(settings, objective::Materialize::kMeta);
    objective = make();
  }
  pair->student.model->set_weight_keeper(nullptr);
  MetaMemory::reset_peak();
  run_generation(*pair->student.model, settings, report);
  report.memory.push_back({"peak of generation with its cache", MetaMemory::peak_bytes()});
  return report;
}

}  // namespace limbeck::check
