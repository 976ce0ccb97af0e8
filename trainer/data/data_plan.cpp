#include "trainer/data/data_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

#include "modules/errors.h"

namespace limbeck::data {

namespace {

// Labelled documents are one a row, and two tokenizers' rows end at the same character.
bool can_split(const ManifestFile& manifest) { return !manifest.has_teacher && manifest.summary.classes == 0; }

void require_packable(const ManifestFile& manifest, const DataRequest& request) {
  if (request.packing != Packing::kPacked) return;
  if (manifest.has_teacher) {
    throw UsageError(
        fmt::format("{}: the data holds the tokens of two tokenizers, whose rows cannot be cut at the "
                    "same place: set data.packing = padded",
                    request.origin));
  }
  if (manifest.summary.classes > 0) {
    throw UsageError(fmt::format("{}: the documents are labelled with classes, one a row: set data.packing = padded",
                                 request.origin));
  }
}

struct Longer {
  int64_t documents = 0, tokens = 0;  // tokens beyond the row
};

Longer longer_than(int64_t row, const LengthCounts& lengths) {
  Longer found;
  for (const auto& [length, count] : lengths) {
    if (length <= row) continue;
    found.documents += count;
    found.tokens += (length - row) * count;
  }
  return found;
}

int64_t rows_of(const LengthCounts& lengths, int64_t row, bool splits) {
  int64_t rows = 0;
  for (const auto& [length, count] : lengths) {
    if (length > 0) rows += count * (splits ? (length + row - 1) / row : 1);
  }
  return rows;
}

void plan_packed(const DataRequest& request, DataPlan& plan) {
  const int64_t length = request.sequence_length;
  plan.rows = packed_rows_of(plan.summary.tokens, length);
  plan.truncated = plan.cut_tokens = 0;
  if (plan.summary.tokens % length == 1) plan.notes.push_back(kOneTokenLeft);
}

// Where both rows of a pair end depends on the document: known is how many are longer than either row.
void plan_pairs(const DataRequest& request, const ManifestFile& manifest, DataPlan& plan) {
  const int64_t row = request.sequence_length;
  const int64_t teacher_row = request.teacher_sequence_length > 0 ? request.teacher_sequence_length : row;
  const Longer own = longer_than(row, manifest.lengths), theirs = longer_than(teacher_row, manifest.teacher_lengths);
  plan.truncated = std::max(own.documents, theirs.documents);
  if (plan.truncated == 0) return;
  plan.notes.push_back(
      fmt::format("{} documents are longer than a row of {} tokens and {} than the teacher's of {}: each is truncated "
                  "where the shorter row ends (prepare_data.py --split-blank or --split-lines makes shorter ones)",
                  own.documents, row, theirs.documents, teacher_row));
}

void plan_padded(const DataRequest& request, const ManifestFile& manifest, DataPlan& plan) {
  if (manifest.lengths.empty()) {
    if (plan.summary.documents > 0) {
      plan.notes.emplace_back(
          "how long its documents are is not in the manifest, which an older tools/prepare_data.py wrote: what is "
          "truncated is said when training begins");
    }
    return;
  }
  if (manifest.has_teacher) return plan_pairs(request, manifest, plan);
  const int64_t row = request.sequence_length;
  const bool splits = request.long_documents == LongDocuments::kSplit && can_split(manifest);
  const Longer longer = longer_than(row, manifest.lengths);
  plan.rows = rows_of(manifest.lengths, row, splits);
  plan.truncated = splits ? 0 : longer.documents;
  plan.cut_tokens = splits ? 0 : longer.tokens;
  if (longer.documents == 0) return;
  plan.notes.push_back(splits ? split_line(longer.documents, row)
                              : truncated_line(longer.documents, row, longer.tokens, manifest));
}

}  // namespace

ManifestFile requested_manifest(const DataRequest& request) {
  if (request.batch_size < 1 || request.sequence_length < 1 || request.teacher_sequence_length < 0) {
    throw std::logic_error(
        fmt::format("DataRequest: batch_size {}, sequence_length {}", request.batch_size, request.sequence_length));
  }
  ManifestFile manifest;
  try {
    manifest = read_manifest(request.folder);
  } catch (const InputDataError& error) {
    throw InputDataError(fmt::format("{}: {}", request.origin, error.what()));
  }
  require_packable(manifest, request);
  return manifest;
}

void require_rows(const DataRequest& request, int64_t rows, int64_t documents) {
  const std::string where = fmt::format("{}: {}", request.origin, request.folder.string());
  if (rows == 0) throw InputDataError(fmt::format("{}: no sample in {} documents", where, documents));
  if (request.whole_epoch || rows >= request.batch_size) return;
  throw InputDataError(
      fmt::format("{}: {} samples of {} tokens, wanted at least data.batch_size = {}: lower data.batch_size or "
                  "data.sequence_length, or prepare more data",
                  where, rows, request.sequence_length, request.batch_size));
}

DataPlan plan_data(const DataRequest& request) {
  const ManifestFile manifest = requested_manifest(request);
  DataPlan plan;
  plan.summary = manifest.summary;
  if (request.packing == Packing::kPacked) {
    plan_packed(request, plan);
  } else {
    plan_padded(request, manifest, plan);
  }
  if (plan.rows < 0) return plan;
  require_rows(request, plan.rows, plan.summary.documents);
  const int64_t size = request.batch_size, left = plan.rows % size;
  plan.batches = plan.rows / size + (request.whole_epoch && left > 0 ? 1 : 0);
  if (left > 0 && !request.whole_epoch) {
    plan.notes.push_back(
        fmt::format("{} of {} rows are left out of each epoch, which has whole batches of {}", left, plan.rows, size));
  }
  return plan;
}

int64_t packed_rows_of(int64_t tokens, int64_t sequence_length) {
  return tokens / sequence_length + (tokens % sequence_length > 1 ? 1 : 0);
}

std::string truncated_line(int64_t documents, int64_t row, int64_t tokens, const ManifestFile& manifest) {
  std::string remedy = " (data.long_documents = split keeps them)";
  if (!can_split(manifest)) {
    remedy = manifest.has_teacher ? " (prepare_data.py --split-blank or --split-lines makes shorter documents)" : "";
  }
  return fmt::format("{} documents are longer than a row of {} tokens and are truncated: {} tokens are not used{}",
                     documents, row, tokens, remedy);
}

std::string split_line(int64_t documents, int64_t row) {
  return fmt::format("{} documents are longer than a row of {} tokens and are split into rows", documents, row);
}

}  // namespace limbeck::data
