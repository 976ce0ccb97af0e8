// What a manifest alone says of the rows that a recipe makes of a data set: no shard is opened. DataSource refuses by
// the same functions, so `check` and training cannot differ.
#pragma once
#include <string>
#include <vector>

#include "trainer/data/data_source.h"
#include "trainer/data/manifest_file.h"

namespace limbeck::data {

// The manifest of a request. InputDataError and UsageError name the recipe's key: what is damaged, and what cannot be
// cut into rows as the recipe asks.
ManifestFile requested_manifest(const DataRequest& request);

// Fewer rows than a batch has is an InputDataError.
void require_rows(const DataRequest& request, int64_t rows, int64_t documents);

struct DataPlan {
  Manifest summary;
  int64_t rows = -1, batches = -1;          // of an epoch; -1: the manifest does not say
  int64_t truncated = -1, cut_tokens = -1;  // documents longer than a row, and what is not used of them
  std::vector<std::string> notes;           // what is left out, a line each, as DataSource says it
};

DataPlan plan_data(const DataRequest& request);

// The rows of documents packed end to end: the last may be short, and a single token is none.
int64_t packed_rows_of(int64_t tokens, int64_t sequence_length);

// The lines of both.
std::string truncated_line(int64_t documents, int64_t row, int64_t tokens, const ManifestFile& manifest);
std::string split_line(int64_t documents, int64_t row);
inline constexpr const char* kOneTokenLeft = "the last token was left over after packing and is not used";

}  // namespace limbeck::data
