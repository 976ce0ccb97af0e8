#include "trainer/loop/run_options.h"

namespace limbeck::loop {

CheckpointOptions read_checkpoint_options(const recipe::Settings& settings) {
  constexpr double kSecondsPerHour = 3600;
  return {.keep = static_cast<int>(settings.integer("checkpoint.keep")),
          .every = settings.integer("checkpoint.every"),
          .mtbf_s = settings.number("checkpoint.mtbf") * kSecondsPerHour,
          .overhead = settings.number("checkpoint.overhead"),
          .async = settings.enabled("checkpoint.async"),
          .max_failures = settings.integer("checkpoint.max_failures")};
}

RunOptions read_run_options(const recipe::Settings& settings) {
  return {.log_every = settings.integer("train.log_every"),
          .shows_phases = settings.text("train.progress") == "phases",
          .evaluation = {.every = settings.integer("eval.every"),
                         .best = settings.text("eval.best"),
                         .patience = settings.integer("train.early_stopping_patience")},
          .checkpoint = read_checkpoint_options(settings),
          .parallel = parallel::read_parallel_options(settings)};
}

}  // namespace limbeck::loop
