// What the recipe asks of the loop itself, read once: when to evaluate, to save and to say something.
#pragma once
#include <cstdint>
#include <string>

#include "trainer/parallel/parallel_options.h"
#include "trainer/recipe/settings.h"

namespace limbeck::loop {

struct EvaluationOptions {
  int64_t every = 0;     // updates between evaluations, 0: at the end alone
  std::string best;      // the metric by which a model is better
  int64_t patience = 0;  // evaluations without a better one that end the run; 0: never
};

struct CheckpointOptions {
  int keep = 0;                     // committed checkpoints; 0: none is made
  int64_t every = 0;                // updates; 0: by what one costs
  double mtbf_s = 0, overhead = 1;  // then: seconds between failures, and the largest share of the time
  bool async = true;                // written beside training
  int64_t max_failures = 0;         // in a row, that end the run
};

struct RunOptions {
  int64_t log_every = 1;
  bool shows_phases = false;
  EvaluationOptions evaluation;
  CheckpointOptions checkpoint;
  parallel::ParallelOptions parallel;
};

CheckpointOptions read_checkpoint_options(const recipe::Settings& settings);
RunOptions read_run_options(const recipe::Settings& settings);

}  // namespace limbeck::loop
