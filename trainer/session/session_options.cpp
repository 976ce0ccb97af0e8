#include "trainer/session/session_options.h"

#include <fmt/format.h>

#include "modules/errors.h"

namespace limbeck::session {

SessionOptions read_session_options(const recipe::Settings& settings) {
  SessionOptions options{.sequences = settings.integer("data.batch_size"),
                         .tokens_per_sequence = settings.integer("data.sequence_length"),
                         .prefetch = static_cast<int>(settings.integer("data.prefetch")),
                         .evaluated = data::evaluated_batches(settings),
                         .recomputes_activations = settings.enabled("train.checkpoint_activations"),
                         .records_graphs = settings.text("train.cuda_graphs") == "on",
                         .parallel = parallel::read_parallel_options(settings)};
  options.same_on_any_ranks =
      options.parallel.order == parallel::Order::kTree && !settings.enabled("objective.vocabulary_parallel");
  return options;
}

int64_t updates_of(const recipe::Settings& settings, int64_t batches_per_epoch) {
  const recipe::Count count = settings.count("train.steps");
  const int64_t accumulate = settings.integer("train.accumulate");
  const int64_t samples = settings.integer("data.batch_size") * accumulate;
  int64_t steps = count.amount;
  if (count.unit == recipe::CountUnit::kTokens) {
    const int64_t tokens = samples * settings.integer("data.sequence_length");
    steps = (count.amount + tokens - 1) / tokens;
  } else if (count.unit == recipe::CountUnit::kSamples) {
    steps = (count.amount + samples - 1) / samples;
  } else if (count.unit == recipe::CountUnit::kEpochs) {
    steps = (count.amount * batches_per_epoch + accumulate - 1) / accumulate;
  }
  if (steps < 1) {
    throw UsageError(fmt::format("train.steps = {} is less than one update {}: write more", count.to_string(),
                                 settings.where("train.steps")));
  }
  return steps;
}

}  // namespace limbeck::session
