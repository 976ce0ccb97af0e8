// limbeck sweep: each module of a recipe's student alone in fewer bits, what that costs, and the model that the best of
// them make together.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <chrono>
#include <optional>

#include "modules/errors.h"
#include "modules/precision/contract_modules.h"
#include "trainer/agreement/data_guard.h"
#include "trainer/build/recipe_models.h"
#include "trainer/cli/commands/command.h"
#include "trainer/cli/commands/quantize_measured.h"
#include "trainer/cli/commands/sweep_report.h"
#include "trainer/cli/console/progress.h"
#include "trainer/data/measured_rows.h"
#include "trainer/loop/run_folder.h"
#include "trainer/quantize/score_file.h"

namespace limbeck::cli {
namespace {

namespace fs = std::filesystem;

constexpr const char *kRowsFile = "rows.jsonl", *kResultFile = "sweep.json", *kRulesFile = "rules.ini",
                     *kRecipeFile = "recipe.ini";

void declare_sweep(recipe::OptionTable& table) {
  table.group("Sweep");
  const auto add = [&table](recipe::Option option) {
    option.flag_only = true;
    table.add(std::move(option));
  };
  add({.name = "formats",
       .kind = recipe::OptionKind::kText,
       .fallback = "float16",
       .help = "What each module is tried in, alone: float16, bfloat16, and for linear modules and experts int8, int4, "
               "nf4 and the other packed formats.",
       .value_name = "FORMAT,..."});
  add({.name = "max-drop",
       .kind = recipe::OptionKind::kNumber,
       .fallback = "1",
       .help = "What a module of the combined model may lose: points of accuracy, % of perplexity, points of cosine.",
       .interval = {.low = 0, .high = 100}});
  add({.name = "top",
       .kind = recipe::OptionKind::kInteger,
       .fallback = "20",
       .help = "How many modules the combined model converts, at most.",
       .range = {1, 1 << 20}});
  add({.name = "saved-by",
       .kind = recipe::OptionKind::kChoice,
       .fallback = "bytes",
       .help = "What a module is ranked by, over 1 + |drop|: the bytes that it saves, which are the same on every run, "
               "or the time, which is not.",
       .words = {"bytes", "time"}});
  add({.name = "cache-bytes",
       .kind = recipe::OptionKind::kInteger,
       .fallback = "2147483648",
       .help = "How much of the states that enter each layer is kept; what is more is computed again.",
       .range = {0, int64_t{1} << 50}});
}

// Converted modules are held against float32, and adapters and codes are none of it.
recipe::Settings settings_in_floats(const recipe::Settings& settings) {
  const auto dtype = settings.dtype("student.dtype");
  if (dtype && *dtype != at::kFloat) {
    throw UsageError(
        fmt::format("student.dtype = {} {}: limbeck sweep measures against float32: set float32, or leave "
                    "it out",
                    settings.text("student.dtype"), settings.where("student.dtype")));
  }
  if (settings.text("adapter.kind") != "none" || settings.given("adapter.from")) {
    throw UsageError(
        fmt::format("adapter {}: limbeck sweep converts a whole student: merge the adapter first (limbeck "
                    "merge), and set adapter.kind = none",
                    settings.where(settings.given("adapter.from") ? "adapter.from" : "adapter.kind")));
  }
  return settings.with("student.dtype", "float32").with("teacher.kind", "none");
}

void require_floats(const models::BuiltModel& student) {
  for (const auto& module : precision::contract_modules(*student.model)) {
    const precision::Precision& own = module->precision();
    if (!own.quantized && own.storage == at::kFloat && own.compute == at::kFloat) continue;
    throw UsageError(
        fmt::format("[{}] is {} (from {}), and limbeck sweep begins with a student that is float32 "
                    "throughout: leave that out",
                    module->path(), precision::storage_name(own), own.source));
  }
}

class SweepRun {
 public:
  explicit SweepRun(Invocation& call)
      : call_(call),
        settings_(settings_in_floats(call.settings)),
        formats_(sweep::parse_sweep_formats(call.settings.text("formats"), "--formats")),
        folder_(call.settings, /*owner=*/true) {
    warn_of_untrained_head(call, settings_);
    pair_.student = build::build_student(settings_, /*meta=*/false);
    require_floats(pair_.student);
    pair_.student.model->eval();
    source_ = std::make_unique<data::DataSource>(agreement::fitted(data::validation_data(settings_), pair_));
    for (const std::string& note : source_->notes()) call.console.note(note);
    share_batches();
    result_.kind = sweep::kind_of(pair_.student);
    result_.max_drop = settings_.number("max-drop");
    file_ = std::make_unique<sweep::SweepFile>(folder_.path() / kRowsFile, identity());
  }

  void run() {
    const models::BuiltModel& floats = pair_.student;
    sweep::BatchStates states(floats, {[this](int64_t index) { return source_->batch(index); }, measuring_.end()},
                              settings_.integer("cache-bytes"));
    sweep::CandidateMeter meter(floats, states, *file_, choosing_);
    measure_floats(meter);
    measure_candidates(meter);
    for (const char* format : {"float16", "bfloat16"}) {
      result_.whole_models.push_back(
          measured_model(meter, format, [&] { return built_with(settings_.with("student.dtype", format)); }));
    }
    measure_combined(meter);
    report();
  }

 private:
  // First those that decide, then those that measure what was decided. Where eval.skip says nothing of the first, they
  // are as many as the second, and no more than half of all.
  void share_batches() {
    const int64_t all = source_->batches_per_epoch();
    data::EvaluatedBatches asked = data::evaluated_batches(settings_);
    if (!settings_.given("eval.skip")) asked.skipped = asked.most > 0 ? std::min(asked.most, all / 2) : all / 2;
    measuring_ = asked.of(all);
    choosing_ = measuring_.first > 0 ? data::BatchSpan{0, measuring_.first} : measuring_;
    result_.measured_on = data::measured_rows(*source_, data::validation_data(settings_), measuring_);
    result_.choosing.are_others = measuring_.first > 0;
    if (!result_.choosing.are_others) {
      call_.console.warning(
          fmt::format("the rows that choose the modules measure the combined model too ({}), and flatter it",
                      all == 1 ? "data.validation is one batch: set a smaller data.batch_size" : "eval.skip = 0"));
    }
  }

  nlohmann::ordered_json identity() const {
    const data::DataRequest asked = data::validation_data(settings_);
    return {{"limbeck_sweep", 1},
            {"model", quantize::digest_of(pair_.student)},
            {"kind", sweep::kind_name(result_.kind)},
            {"data", source_->manifest().digest},
            {"batch_size", asked.batch_size},
            {"sequence_length", asked.sequence_length},
            {"packing", settings_.text("data.packing")},
            {"masking", settings_.text("data.masking")},
            {"mask_seed", asked.mask_seed}};
  }

  models::BuiltModel built_with(const recipe::Settings& settings) const {
    models::BuiltModel built = build::build_student(settings, /*meta=*/false);
    built.model->eval();
    return built;
  }

  sweep::Rows rows_of_floats(data::BatchSpan batches) const {
    return sweep::whole_outcome(*file_, sweep::CandidateMeter::kFloats, batches).rows;
  }

  static int64_t targets_of(const sweep::Rows& rows) {
    int64_t targets = 0;
    for (const sweep::RowMeasure& row : rows) targets += row.targets;
    return targets;
  }

  void measure_floats(sweep::CandidateMeter& meter) {
    meter.measure_floats();
    const sweep::Rows rows = rows_of_floats(measuring_), deciding = rows_of_floats(choosing_);
    result_.rows = static_cast<int64_t>(rows.size());
    result_.targets = targets_of(rows);
    result_.choosing.rows = static_cast<int64_t>(deciding.size());
    result_.choosing.targets = targets_of(deciding);
    if (result_.targets == 0 || result_.choosing.targets == 0) {
      throw InputDataError(fmt::format(
          "data.validation {}: its {} that {} hold no target", settings_.where("data.validation"),
          result_.targets == 0 ? fmt::format("{} rows", rows.size()) : fmt::format("{} rows", deciding.size()),
          result_.targets == 0 ? "measure" : "choose (eval.skip)"));
    }
    pairs_.emplace(result_.kind, rows);
    choosing_pairs_.emplace(result_.kind, deciding);
    result_.test = pairs_->test();
    result_.baseline.quality = sweep::quality_of(result_.kind, rows);
    result_.choosing.quality = sweep::quality_of(result_.kind, deciding);
    result_.baseline.bytes = precision::total_footprint(*pair_.student.model).bytes;
  }

  void measure_candidates(sweep::CandidateMeter& meter) {
    candidates_ = sweep::candidates_of(pair_.student, formats_);
    const auto count = static_cast<int64_t>(candidates_.size());
    const auto progress = progress_of(call_, "sweep", "batches", count * choosing_.count);
    int64_t done = 0, number = 0;
    sweep::CandidateMeter::Listener listener;
    listener.batch = [&] { progress->update(++done); };
    listener.done = [&](const sweep::Candidate& candidate) {
      progress->clear();
      const auto one = sweep::judged(candidate, *file_, choosing_, *choosing_pairs_, result_.kind);
      call_.console.note(candidate_line(one, result_.kind, ++number, count));
    };
    const int64_t before = file_->lines_before();
    meter.measure(candidates_, listener);
    result_.seconds = meter.measuring().seconds;
    result_.baseline.seconds = meter.full_evaluation(measuring_).seconds;
    result_.choosing.seconds = meter.full_evaluation(choosing_).seconds;
    progress->finish();
    if (before > 0) call_.console.note(fmt::format("{} batches of candidates were measured before", before));
    if (before == 0) {
      const sweep::WorkTime chosen = meter.full_evaluation(choosing_),
                            all = meter.full_evaluation({0, measuring_.end()});
      const auto share = [&](double sweep::WorkTime::*time) {
        const double of_one = meter.measuring().*time / static_cast<double>(count);
        return sweep::SweepResult::Share{of_one / (chosen.*time), of_one / (all.*time)};
      };
      result_.share = share(&sweep::WorkTime::seconds);
      if (pair_.student.policy->device().is_cpu()) result_.processor_share = share(&sweep::WorkTime::processor);
    }
    result_.candidates = sweep::judged(candidates_, *file_, choosing_, *choosing_pairs_, result_.kind);
    const auto by = settings_.text("saved-by") == "time" ? sweep::SavedBy::kTime : sweep::SavedBy::kBytes;
    sweep::select(result_.candidates, {by, result_.max_drop, static_cast<size_t>(settings_.integer("top"))});
  }

  // Built as `limbeck eval` builds it. `name` is its key in the file too.
  sweep::WholeModel measured_model(sweep::CandidateMeter& meter, const std::string& name,
                                   const std::function<models::BuiltModel()>& build, const std::string& key = "",
                                   std::optional<sweep::Drop>* also_on_choosing = nullptr) {
    sweep::WholeModel model{name};
    const std::string of_file = "model " + (key.empty() ? name : key);
    models::BuiltModel built;
    try {
      built = build();
    } catch (const IoError&) {
      throw;
    } catch (const Error& error) {  // such as a weight that the dtype does not hold
      model.status = sweep::Status::kFailed;
      model.reason = error.what();
      return model;
    }
    model.bytes = precision::total_footprint(*built.model).bytes;
    const bool known = file_->find(of_file, measuring_.first) != nullptr;
    const auto begin = std::chrono::steady_clock::now();
    meter.measure_model(of_file, built, measuring_);
    if (!known) model.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    sweep::judge(model, sweep::whole_outcome(*file_, of_file, measuring_), *pairs_, result_.kind);
    if (also_on_choosing == nullptr) return model;
    meter.measure_model(of_file, built, choosing_);
    const sweep::BatchOutcome outcome = sweep::whole_outcome(*file_, of_file, choosing_);
    if (outcome.status == sweep::Status::kMeasured) *also_on_choosing = choosing_pairs_->drop(outcome.rows);
    return model;
  }

  void measure_combined(sweep::CandidateMeter& meter) {
    const auto rules = sweep::rules_of_selected(result_.candidates, candidates_);
    if (rules.empty()) return;
    recipe::Settings with_rules = settings_;
    for (const std::string& rule : rules) with_rules = with_rules.with("precision.rule", rule);
    sweep::Combined& combined = result_.combined.emplace();
    combined.rules = rules;
    combined.model = measured_model(
        meter, "combined", [&] { return built_with(with_rules); }, fmt::format("{}", fmt::join(rules, "; ")),
        &combined.on_choosing_rows);
    std::vector<const sweep::Rows*> selected;
    for (const sweep::MeasuredCandidate& one : result_.candidates) {
      if (one.selected) selected.push_back(&one.rows);
    }
    combined.predicted = choosing_pairs_->sum_of_drops(selected);
    // What evaluates it does so on the rows that decided nothing.
    recipe::Settings recipe = call_.settings.with("student.dtype", "float32")
                                  .with("run", "")
                                  .with("eval.skip", std::to_string(measuring_.first))
                                  .with("eval.batches", std::to_string(measuring_.count));
    for (const std::string& rule : rules) recipe = recipe.with("precision.rule", rule);
    folder_.write_text(kRecipeFile, recipe.to_ini(/*with_origins=*/false));
    folder_.write_text(kRulesFile, rules_ini(rules));
  }

  void report() {
    call_.result = sweep_json(result_);
    folder_.write_text(kResultFile, call_.result.dump(2) + "\n");
    call_.console.result(candidates_table(result_, call_.width));
    call_.console.result(models_table(result_, call_.width));
    call_.console.result(combined_lines(result_));
    call_.console.result(time_line(result_));
    if (result_.choosing.are_others) {
      call_.console.result(
          fmt::format("the same rows: --eval.skip={} --eval.batches={} in eval and profile, --calibration-rows={} "
                      "--held-out-rows={} in quantize",
                      measuring_.first, measuring_.count, result_.choosing.rows, result_.rows));
    }
    if (result_.combined) {
      call_.console.result(fmt::format("rules: {}; as a whole recipe: {}", (folder_.path() / kRulesFile).string(),
                                       (folder_.path() / kRecipeFile).string()));
    }
  }

  Invocation& call_;
  const recipe::Settings settings_;
  const std::vector<std::string> formats_;
  loop::RunFolder folder_;
  objective::ModelPair pair_;
  std::unique_ptr<data::DataSource> source_;
  data::BatchSpan choosing_, measuring_;
  std::unique_ptr<sweep::SweepFile> file_;
  std::vector<sweep::Candidate> candidates_;
  std::optional<sweep::PairedRows> pairs_, choosing_pairs_;
  sweep::SweepResult result_;
};

void run_sweep(Invocation& call) { SweepRun(call).run(); }

}  // namespace

Command sweep_command() {
  return {.name = "sweep",
          .summary = "Each module alone in fewer bits: what it costs, and the model that the best of them make.",
          .example = "limbeck sweep my.ini --run=runs/sweep --formats=float16,int8",
          .takes_recipe = true,
          .computes = true,
          .declare = declare_sweep,
          .run = run_sweep};
}

}  // namespace limbeck::cli
