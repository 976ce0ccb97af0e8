// limbeck consolidate: what an outer NPT adapter writes on average over data, made part of the gates' weights.
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <algorithm>

#include "modules/adapters/folder/npt_folder.h"
#include "modules/adapters/npt/consolidate.h"
#include "modules/errors.h"
#include "modules/models/weights/save_model.h"
#include "modules/precision/casts.h"
#include "trainer/cli/commands/command.h"
#include "trainer/cli/commands/model_options.h"
#include "trainer/cli/console/progress.h"
#include "trainer/data/data_source.h"
#include "trainer/objective/forward_pass.h"

namespace limbeck::cli {
namespace {

using recipe::OptionKind;

constexpr int kPrefetchedBatches = 2;

// Of the first `batches`, in the order in which they are stored.
adapters::NptMeans means_over(const models::BuiltModel& built, const data::DataSource& source, int64_t batches,
                              Console& console) {
  const at::NoGradGuard no_gradient;
  adapters::NptMeans means;
  data::Prefetcher prefetched([&](int64_t i) { return source.batch(i); }, 0, batches, kPrefetchedBatches,
                              built.policy->device());
  Progress progress(console.err(), "consolidate", "batches", batches,
                    ProgressStyle{.width = terminal_width(2), .quiet = console.quiet()});
  for (int64_t i = 0; i < batches; ++i) {
    const data::TokenStream stream = prefetched.next().student;
    models::Taps taps;
    taps.keep_adapted = true;
    built.model->encode(objective::model_input(stream, &taps));
    means.add(taps, objective::valid_tokens(stream));
    progress.update(i + 1);
  }
  progress.finish();
  return means;
}

void run_consolidate(Invocation& call) {
  const auto& settings = call.settings;
  const auto folder = settings.required_path("output"), adapter = settings.required_path("adapter");
  settings.required_path("data");
  if (!adapters::is_npt_folder(adapter)) {
    throw UsageError(
        fmt::format("{}: is no NPT adapter: only one of kind outer is consolidated; of another kind, limbeck merge "
                    "makes the weights",
                    adapter.string()));
  }
  models::BuiltModel built = models::load_model(single_model(settings));
  report_load(built, call.console);
  const adapters::AdapterRequest request;
  load_named_adapter(settings, built, request, call.console);
  adapters::require_consolidable(built, request.name);
  const data::DataSource source(rows_in_order(settings, built, settings.integer("batch-size")));
  for (const std::string& note : source.notes()) call.console.note(note);

  const int64_t asked = settings.integer("batches"), all = source.batches_per_epoch();
  const int64_t batches = asked > 0 ? std::min(asked, all) : all;
  if (asked > all) call.console.note(fmt::format("the data are {} batches, fewer than --batches={}", all, asked));
  const adapters::NptMeans means = means_over(built, source, batches, call.console);
  const double alpha = settings.number("alpha");
  const adapters::ConsolidationReport report = adapters::consolidate_npt(built, request.name, means, alpha);
  models::save_model(built, folder);

  call.result["batches"] = batches;
  call.result["tokens"] = means.tokens();
  call.result["alpha"] = alpha;
  call.result["dtype"] = precision::dtype_name(built.policy->stream_dtype());
  for (const adapters::ConsolidatedGate& gate : report.gates) {
    call.result["changed"][gate.module] = {{"change", gate.change}, {"lost", gate.loss}};
  }
  call.result["worst_loss"] = report.worst_loss;
  call.result["worst_layer"] = report.worst_layer;
  call.result["output"] = folder.string();
  const auto most = std::max_element(report.gates.begin(), report.gates.end(),
                                     [](const auto& one, const auto& other) { return one.change < other.change; });
  call.console.result(
      fmt::format("the means over {} tokens in {} batches, times {:g}, added to the gates of {} layers: {}; {} changed "
                  "the most, by "
                  "{:.1e} of its size; rounding to {} took {:.1e} of the change of {}, the most",
                  means.tokens(), batches, alpha, report.layers, folder.string(), most->module, most->change,
                  precision::dtype_name(built.policy->stream_dtype()), report.worst_loss, report.worst_layer));
}

void declare_consolidate(recipe::OptionTable& table) {
  declare_single_model(table);
  table.group("Data");
  table.add({.name = "data",
             .kind = OptionKind::kPath,
             .help = "Folder of token shards to take the means over, written by tools/prepare_data.py.",
             .value_name = "DIR",
             .flag_only = true});
  table.add({.name = "batches",
             .kind = OptionKind::kInteger,
             .fallback = "0",
             .help = "Batches to take them over, from the first one on; 0: all.",
             .range = {0, 1 << 30},
             .flag_only = true});
  table.add({.name = "batch-size",
             .kind = OptionKind::kInteger,
             .fallback = "8",
             .help = "Sequences in one forward.",
             .range = {1, 1 << 20},
             .flag_only = true});
  table.add({.name = "sequence-length",
             .kind = OptionKind::kInteger,
             .fallback = "512",
             .help = "Tokens a sequence.",
             .range = {1, 1 << 24},
             .flag_only = true});
  table.add({.name = "packing",
             .kind = OptionKind::kChoice,
             .fallback = "packed",
             .help = "packed: documents end to end, no attention across them; padded: one document a sequence.",
             .words = {"packed", "padded"},
             .flag_only = true});
  table.group("Consolidation");
  table.add({.name = "alpha",
             .kind = OptionKind::kNumber,
             .fallback = "0.1",
             .help = "What the product of the means is multiplied by before it is added.",
             .interval = {.low = 0, .high = 1000, .above_low = true},
             .flag_only = true});
  declare_output_folder(table);
}

}  // namespace

Command consolidate_command() {
  return {.name = "consolidate",
          .summary = "What an outer NPT adapter writes on average over data, made part of the weights.",
          .example =
              "limbeck consolidate --model models/base --adapter runs/npt/best --data data/mine/train --output "
              "models/whole",
          .computes = true,
          .declare = declare_consolidate,
          .run = run_consolidate};
}

}  // namespace limbeck::cli
