#include <ATen/ATen.h>

#include <algorithm>

#include "modules/models/network/token_loss.h"
#include "trainer/data/data_plan.h"
#include "trainer/data/row_maker.h"

namespace limbeck::data {
namespace {

class PackedRows : public RowMaker {
 public:
  PackedRows(const Shards& shards, const ManifestFile& manifest, const DataRequest& request,
             std::vector<std::string>& notes)
      : shards_(shards),
        length_(request.sequence_length),
        predicts_first_(request.masking.unit != MaskUnit::kNone),
        padding_(padding_id(manifest.summary.padding, manifest.summary.end_of_sequence)) {
    begins_.push_back(0);
    for (const Shard& shard : shards) begins_.push_back(begins_.back() + shard.tokens(Which::kStudent));
    rows_ = packed_rows_of(begins_.back(), length_);
    if (begins_.back() % length_ == 1) notes.push_back(kOneTokenLeft);
  }

  int64_t rows() const override { return rows_; }

  Batch make(const std::vector<int64_t>& rows) const override {
    const auto count = static_cast<int64_t>(rows.size());
    Batch batch;
    batch.student.ids = at::full({count, length_}, padding_, at::kLong);
    batch.student.labels = at::full({count, length_}, models::kIgnoredLabel, at::kLong);
    batch.student.document_ids = at::zeros({count, length_}, at::kLong);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t at = i * length_;
      fill(rows[static_cast<size_t>(i)], batch.student.ids.data_ptr<int64_t>() + at,
           batch.student.labels.data_ptr<int64_t>() + at, batch.student.document_ids->data_ptr<int64_t>() + at);
    }
    return batch;
  }

 private:
  void fill(int64_t row, int64_t* ids, int64_t* labels, int64_t* document_ids) const {
    int64_t at = row * length_, document = 0;
    const int64_t end = std::min(at + length_, begins_.back());
    while (at < end) {
      // The last shard that begins at or before `at`; those without tokens are passed over.
      const auto after = std::upper_bound(begins_.begin(), begins_.end(), at);
      const auto index = static_cast<size_t>(after - begins_.begin()) - 1;
      const int64_t begin = at - begins_[index], count = std::min(end, begins_[index + 1]) - at;
      read_tokens(shards_[index], Which::kStudent, begin, count, ids, labels);
      number_documents(shards_[index].offsets(Which::kStudent), begin, count, labels, document_ids, document);
      at += count;
      ids += count;
      labels += count;
      document_ids += count;
    }
  }

  // Every document, and what a row begins with, opens with a token that nothing before it predicts.
  void number_documents(const std::vector<int64_t>& offsets, int64_t begin, int64_t count, int64_t* labels,
                        int64_t* document_ids, int64_t& document) const {
    auto next = std::upper_bound(offsets.begin(), offsets.end(), begin);
    for (int64_t at = begin; at < begin + count;) {
      const int64_t end = std::min(*next, begin + count);
      ++document;
      if (!predicts_first_) labels[at - begin] = models::kIgnoredLabel;
      std::fill(document_ids + (at - begin), document_ids + (end - begin), document);
      at = end;
      while (next != offsets.end() && *next <= at) ++next;  // documents without tokens
    }
  }

  const Shards& shards_;
  std::vector<int64_t> begins_;  // of each shard in the whole stream, and the end
  int64_t length_;
  bool predicts_first_;  // of a document: from what follows
  int64_t padding_, rows_ = 0;
};

}  // namespace

void read_tokens(const Shard& shard, Which which, int64_t begin, int64_t count, int64_t* ids, int64_t* labels) {
  shard.read_ids(which, begin, count, ids);
  std::vector<uint8_t> mask(static_cast<size_t>(count));
  shard.read_mask(which, begin, count, mask.data());
  for (int64_t i = 0; i < count; ++i) labels[i] = mask[static_cast<size_t>(i)] ? ids[i] : models::kIgnoredLabel;
}

int64_t padding_id(int64_t padding, int64_t end_of_sequence) {
  if (padding >= 0) return padding;
  return std::max<int64_t>(end_of_sequence, 0);
}

std::unique_ptr<RowMaker> make_packed_rows(const Shards& shards, const ManifestFile& manifest,
                                           const DataRequest& request, std::vector<std::string>& notes) {
  return std::make_unique<PackedRows>(shards, manifest, request, notes);
}

}  // namespace limbeck::data
