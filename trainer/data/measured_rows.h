// On which rows of which data a figure was measured, said alike by every command: two figures compare where these are
// equal.
#pragma once
#include <nlohmann/json.hpp>

#include "trainer/data/data_request.h"

namespace limbeck::data {

// {"data": digest, "packing", "sequence_length", "masking", "of": rows of all the data, "first", "rows"}; `source` is
// of this request. Long documents that are cut or divided make other data only where there are some, which "of" shows.
nlohmann::ordered_json measured_rows(const DataSource& source, const DataRequest& request, BatchSpan batches);

}  // namespace limbeck::data
