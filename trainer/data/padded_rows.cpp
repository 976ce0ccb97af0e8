#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>

#include "modules/models/network/token_loss.h"
#include "trainer/data/data_plan.h"
#include "trainer/data/row_maker.h"

namespace limbeck::data {
namespace {

constexpr int64_t kWidthStep = 16;

// What one row shows of a document.
struct Piece {
  uint32_t shard = 0, document = 0;
  int32_t begin = 0;  // from the start of the document
  int32_t length = 0, teacher_length = 0;
};

struct Counts {
  int64_t truncated = 0, split = 0, lost = 0, empty = 0;
};

class PaddedRows : public RowMaker {
 public:
  PaddedRows(const Shards& shards, const ManifestFile& manifest, const DataRequest& request,
             std::vector<std::string>& notes)
      : shards_(shards),
        has_teacher_(manifest.has_teacher),
        has_classes_(manifest.summary.classes > 0),
        predicts_first_(request.masking.unit != MaskUnit::kNone),
        length_(request.sequence_length),
        teacher_length_(request.teacher_sequence_length > 0 ? request.teacher_sequence_length : length_),
        padding_(padding_id(manifest.summary.padding, manifest.summary.end_of_sequence)),
        teacher_padding_(padding_id(manifest.summary.teacher_padding, manifest.summary.teacher_end_of_sequence)) {
    // A part of a text has neither the text's class nor a place in the other tokenizer's row.
    const bool splits = request.long_documents == LongDocuments::kSplit && !has_teacher_ && !has_classes_;
    Counts counts;
    for (size_t shard = 0; shard < shards.size(); ++shard) {
      for (int64_t document = 0; document < shards[shard].documents(); ++document) {
        add_document(static_cast<uint32_t>(shard), static_cast<uint32_t>(document), splits, counts);
      }
    }
    report(counts, manifest, notes);
  }

  int64_t rows() const override { return static_cast<int64_t>(pieces_.size()); }

  Batch make(const std::vector<int64_t>& rows) const override {
    std::vector<Piece> pieces;
    for (const int64_t row : rows) pieces.push_back(pieces_.at(static_cast<size_t>(row)));
    Batch batch;
    batch.student = stream(pieces, Which::kStudent, &Piece::length, length_, padding_);
    if (has_teacher_) {
      batch.teacher = stream(pieces, Which::kTeacher, &Piece::teacher_length, teacher_length_, teacher_padding_);
      batch.teacher_position = positions(pieces, batch.student.ids.size(1));
    }
    if (has_classes_) {
      batch.classes = at::empty({static_cast<int64_t>(pieces.size())}, at::kLong);
      auto* classes = batch.classes.data_ptr<int64_t>();
      for (const Piece& piece : pieces) *classes++ = shards_[piece.shard].classes()[piece.document];
    }
    return batch;
  }

 private:
  void add_document(uint32_t shard, uint32_t document, bool splits, Counts& counts) {
    const int64_t length = length_of(shard, document, Which::kStudent);
    if (length == 0 || (has_teacher_ && length_of(shard, document, Which::kTeacher) == 0)) {
      ++counts.empty;
      return;
    }
    Piece piece{shard, document, 0, static_cast<int32_t>(std::min(length, length_)), 0};
    if (has_teacher_) fit_teacher(piece, length);
    if (piece.length == 0) {
      ++counts.empty;  // the teacher's row ends before the student's first token does
      return;
    }
    pieces_.push_back(piece);
    if (piece.length == length) return;
    if (!splits) {
      ++counts.truncated;
      counts.lost += length - piece.length;
      return;
    }
    ++counts.split;
    for (int64_t begin = length_; begin < length; begin += length_) {
      piece.begin = static_cast<int32_t>(begin);
      piece.length = static_cast<int32_t>(std::min(length - begin, length_));
      pieces_.push_back(piece);
    }
  }

  // Both rows end at the same character, or the teacher would be asked about a text it has not seen.
  void fit_teacher(Piece& piece, int64_t length) const {
    const int64_t teacher = length_of(piece.shard, piece.document, Which::kTeacher);
    if (piece.length == length && teacher <= teacher_length_) {
      piece.teacher_length = static_cast<int32_t>(teacher);
      return;
    }
    std::vector<int64_t> at(static_cast<size_t>(piece.length));
    const int64_t begin = shards_[piece.shard].offsets(Which::kStudent)[piece.document];
    shards_[piece.shard].read_teacher_position(begin, piece.length, at.data());
    const auto end = std::lower_bound(at.begin(), at.end(), teacher_length_);  // positions ascend
    piece.length = static_cast<int32_t>(end - at.begin());
    piece.teacher_length = piece.length == 0 ? 0 : static_cast<int32_t>(std::max<int64_t>(*(end - 1) + 1, 1));
  }

  int64_t length_of(uint32_t shard, uint32_t document, Which which) const {
    const auto& offsets = shards_[shard].offsets(which);
    return offsets[size_t{document} + 1] - offsets[document];
  }

  TokenStream stream(const std::vector<Piece>& pieces, Which which, int32_t Piece::*length, int64_t limit,
                     int64_t padding) const {
    int64_t longest = 1;
    for (const Piece& piece : pieces) longest = std::max<int64_t>(longest, piece.*length);
    const int64_t width = std::min((longest + kWidthStep - 1) / kWidthStep * kWidthStep, limit);
    const auto count = static_cast<int64_t>(pieces.size());
    TokenStream out;
    out.ids = at::full({count, width}, padding, at::kLong);
    out.labels = at::full({count, width}, models::kIgnoredLabel, at::kLong);
    out.attention_mask = at::zeros({count, width}, at::kLong);
    for (int64_t i = 0; i < count; ++i) {
      const Piece& piece = pieces[static_cast<size_t>(i)];
      const int64_t begin = shards_[piece.shard].offsets(which)[piece.document] + piece.begin, at = i * width;
      auto* labels = out.labels.data_ptr<int64_t>() + at;
      read_tokens(shards_[piece.shard], which, begin, piece.*length, out.ids.data_ptr<int64_t>() + at, labels);
      if (!predicts_first_) labels[0] = models::kIgnoredLabel;  // nothing before it predicts it
      std::fill_n(out.attention_mask->data_ptr<int64_t>() + at, piece.*length, int64_t{1});
    }
    return out;
  }

  at::Tensor positions(const std::vector<Piece>& pieces, int64_t width) const {
    at::Tensor out = at::full({static_cast<int64_t>(pieces.size()), width}, -1, at::kLong);
    auto* row = out.data_ptr<int64_t>();
    for (const Piece& piece : pieces) {
      const int64_t begin = shards_[piece.shard].offsets(Which::kStudent)[piece.document];
      shards_[piece.shard].read_teacher_position(begin, piece.length, row);
      row += width;
    }
    return out;
  }

  void report(const Counts& counts, const ManifestFile& manifest, std::vector<std::string>& notes) const {
    if (counts.truncated > 0) {
      notes.push_back(truncated_line(counts.truncated, length_, counts.lost, manifest));
    }
    if (counts.split > 0) notes.push_back(split_line(counts.split, length_));
    if (counts.empty > 0) notes.push_back(fmt::format("{} empty documents were skipped", counts.empty));
  }

  const Shards& shards_;
  bool has_teacher_, has_classes_, predicts_first_;  // the last: of a row, from what follows
  int64_t length_, teacher_length_, padding_, teacher_padding_;
  std::vector<Piece> pieces_;
};

}  // namespace

std::unique_ptr<RowMaker> make_padded_rows(const Shards& shards, const ManifestFile& manifest,
                                           const DataRequest& request, std::vector<std::string>& notes) {
  return std::make_unique<PaddedRows>(shards, manifest, request, notes);
}

}  // namespace limbeck::data
