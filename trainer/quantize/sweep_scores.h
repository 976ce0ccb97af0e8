// What `limbeck sweep` measured, as scores that budgets go by: the KL divergence of the whole model from its floats
// with one module alone in a format.
#pragma once
#include <c10/core/ScalarType.h>

#include <filesystem>

#include "trainer/quantize/score_meter.h"

namespace limbeck::quantize {

// Of the sweep.json of the same model; floats are stored in `floats`. InputDataError for a file that is none,
// UsageError for a module and format that it has no KL of.
RowScore scores_of_sweep(const FormatTable& table, const std::filesystem::path& sweep, at::ScalarType floats);

}  // namespace limbeck::quantize
