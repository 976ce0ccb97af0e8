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

}  // namespace limbeck::data
