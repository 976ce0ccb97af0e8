// What the recipe asks of a session itself, read once: the shape of an update, and of an evaluation.
#pragma once
#include <cstdint>

#include "trainer/data/data_request.h"
#include "trainer/parallel/parallel_options.h"
#include "trainer/recipe/settings.h"

namespace limbeck::session {

struct SessionOptions {
  int64_t sequences = 0, tokens_per_sequence = 0;  // of a micro-batch
  int prefetch = 0;                                // batches that are made ahead
  data::EvaluatedBatches evaluated;
  bool recomputes_activations = false;
  bool records_graphs = false;
  bool same_on_any_ranks = false;  // the number of ranks does not show in the sums
  parallel::ParallelOptions parallel;
};

SessionOptions read_session_options(const recipe::Settings& settings);

// train.steps in updates. UsageError where that is less than one.
int64_t updates_of(const recipe::Settings& settings, int64_t batches_per_epoch);

}  // namespace limbeck::session
