// From the keys of a recipe's [data] section to what a DataSource is asked for.
#pragma once
#include "trainer/data/data_source.h"
#include "trainer/recipe/settings.h"

namespace limbeck::data {

// What all data of a recipe have in common: the shape of a batch and how it is filled; no folder yet.
DataRequest data_shape(const recipe::Settings& settings);
// data.train: shuffled by `seed`, full batches. UsageError when the key is not set.
DataRequest training_data(const recipe::Settings& settings);
// data.validation: every sample once, in stored order.
DataRequest validation_data(const recipe::Settings& settings);

struct BatchSpan {
  int64_t first = 0, count = 0;
  int64_t end() const { return first + count; }
};
// Which batches of data.validation an evaluation reads, for every command that has one.
struct EvaluatedBatches {
  int64_t skipped = 0;  // eval.skip: those before it
  int64_t most = 0;     // eval.batches; 0: all that are left
  // Of so many; UsageError where none is left.
  BatchSpan of(int64_t all) const;
};
EvaluatedBatches evaluated_batches(const recipe::Settings& settings);

}  // namespace limbeck::data
