#include "trainer/data/data_source.h"

#include <ATen/core/Tensor.h>
#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

#include "modules/errors.h"
#include "modules/id_range.h"
#include "trainer/data/data_plan.h"
#include "trainer/data/masking.h"
#include "trainer/data/permutation.h"
#include "trainer/data/row_maker.h"
#include "trainer/data/shard.h"

namespace limbeck::data {
namespace {

// The largest id of one stream against a model's vocabulary. This is no damage of a shard but a wrong pair of data and
// model, so skip_bad_shards does not apply.
void check_vocabulary(const Shards& shards, Which which, int64_t vocabulary, const char* model,
                      const std::string& origin) {
  if (vocabulary <= 0) return;
  for (const Shard& shard : shards) {
    if (shard.largest_id(which) < vocabulary) continue;
    throw InputDataError(
        fmt::format("{}: {}: {}, wanted {}, the vocabulary of the {}: prepare the data with the {}'s tokenizer", origin,
                    shard.name(), shard.place_of_stranger(which, vocabulary), ids_below(vocabulary), model, model));
  }
}

}  // namespace

struct DataSource::State {
  explicit State(const DataRequest& wanted) : request(wanted), manifest(requested_manifest(wanted)) {
    take_shards();
    check_shards();
    if (request.masking.unit != MaskUnit::kNone) masking.emplace(request, manifest.summary);
    rows = request.packing == Packing::kPacked ? make_packed_rows(shards, manifest, request, notes)
                                               : make_padded_rows(shards, manifest, request, notes);
    const int64_t count = rows->rows(), size = request.batch_size;
    batches = request.whole_epoch ? (count + size - 1) / size : count / size;
    require_rows(request, count, manifest.summary.documents);
  }

  [[noreturn]] void refuse(const std::string& fault) const {
    throw InputDataError(fmt::format("{}: {}: {}", request.origin, request.folder.string(), fault));
  }

  // What is left after skipping has a digest of its own: a resume must see the same samples.
  void take_shards() {
    std::vector<ShardRecord> used;
    auto opened = open_shards(request.folder, manifest);
    for (size_t i = 0; i < opened.size(); ++i) {
      if (opened[i].shard) {
        shards.push_back(std::move(*opened[i].shard));
        used.push_back(manifest.shards[i]);
        continue;
      }
      if (!request.skip_bad_shards) {
        throw InputDataError(
            fmt::format("{}: {}; prepare the data again, or set data.skip_bad_shards = true to go on "
                        "without this shard",
                        request.origin, opened[i].fault));
      }
      notes.push_back(fmt::format("skipped (data.skip_bad_shards): {}", opened[i].fault));
    }
    if (shards.empty() && !manifest.shards.empty()) {
      refuse(fmt::format("all {} shards are bad, the first: {}", manifest.shards.size(), opened.front().fault));
    }
    manifest.summary.digest = digest_of(manifest.summary, used);
  }

  void check_shards() {
    int64_t tokens = 0, targets = 0, documents = 0, unended = 0, without_targets = 0;
    for (const Shard& shard : shards) {
      tokens += shard.tokens(Which::kStudent);
      targets += shard.targets(Which::kStudent);
      documents += shard.documents();
      unended += shard.unended();
      without_targets += shard.without_targets();
    }
    if (tokens == 0) refuse("holds no tokens: prepare it again from a text that is not empty");
    const Which teacher = manifest.has_teacher ? Which::kTeacher : Which::kStudent;
    check_vocabulary(shards, Which::kStudent, request.student_vocabulary, "student", request.origin);
    check_vocabulary(shards, teacher, request.teacher_vocabulary, "teacher", request.origin);
    if (targets == 0 && manifest.summary.classes == 0) {
      refuse(fmt::format("none of its {} tokens is a target: prepare it again with turns of the assistant", tokens));
    }
    if (without_targets > 0 && manifest.summary.classes == 0) {
      notes.push_back(fmt::format("{} of {} documents have no target", without_targets, documents));
    }
    if (unended > 0) {
      notes.push_back(fmt::format("{} of {} documents do not end with the end-of-sequence token {}", unended, documents,
                                  manifest.summary.end_of_sequence));
    }
  }

  DataRequest request;
  ManifestFile manifest;
  std::vector<std::string> notes;
  Shards shards;
  std::unique_ptr<RowMaker> rows;
  std::optional<Masking> masking;
  int64_t batches = 0;
};

DataSource::DataSource(const DataRequest& request) : state_(std::make_unique<State>(request)) {}
DataSource::~DataSource() = default;

const Manifest& DataSource::manifest() const { return state_->manifest.summary; }
const std::vector<std::string>& DataSource::notes() const { return state_->notes; }
int64_t DataSource::samples() const { return state_->rows->rows(); }
int64_t DataSource::batches_per_epoch() const { return state_->batches; }

Batch DataSource::batch(int64_t index) const {
  if (index < 0) throw std::out_of_range(fmt::format("DataSource: batch {}", index));
  const int64_t count = samples(), size = state_->request.batch_size;
  const int64_t epoch = index / state_->batches, begin = index % state_->batches * size;
  const Permutation order(state_->request.seed, epoch, count);
  std::vector<int64_t> rows;
  for (int64_t i = begin; i < std::min(begin + size, count); ++i) {
    rows.push_back(state_->request.shuffle ? order(i) : i);
  }
  Batch made = state_->rows->make(rows);
  made.first_row = index * size;
  if (state_->masking) state_->masking->apply(made.student, rows, epoch);
  return made;
}

}  // namespace limbeck::data
