#include "trainer/data/measured_rows.h"

#include <algorithm>

namespace limbeck::data {

namespace {

const char* name_of(MaskUnit unit) {
  if (unit == MaskUnit::kNone) return "none";
  return unit == MaskUnit::kToken ? "token" : "whole_word";
}

}  // namespace

nlohmann::ordered_json measured_rows(const DataSource& source, const DataRequest& request, BatchSpan batches) {
  const int64_t first = batches.first * request.batch_size;
  return {{"data", source.manifest().digest},
          {"packing", request.packing == Packing::kPacked ? "packed" : "padded"},
          {"sequence_length", request.sequence_length},
          {"masking", name_of(request.masking.unit)},
          {"of", source.samples()},
          {"first", first},
          {"rows", std::min(batches.end() * request.batch_size, source.samples()) - first}};
}

}  // namespace limbeck::data
