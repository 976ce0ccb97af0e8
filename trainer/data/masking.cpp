#include "trainer/data/masking.h"

#include <ATen/core/PhiloxRNGEngine.h>
#include <ATen/core/Tensor.h>
#include <fmt/format.h>

#include <algorithm>

#include "modules/errors.h"
#include "modules/models/network/token_loss.h"

namespace limbeck::data {
namespace {

constexpr int kPositionBits = 24;  // data.sequence_length is below

[[noreturn]] void refuse_masking(const DataRequest& request, const std::string& fault) {
  throw InputDataError(fmt::format("{}: {}: {}", request.origin, request.folder.string(), fault));
}

// [0, 1)
double uniform(uint32_t bits) { return static_cast<double>(bits) / 4294967296.0; }

}  // namespace

// One row of a batch, in place.
struct Masking::Row {
  int64_t* ids;
  int64_t* labels;
  const int64_t* documents;  // what tells padding (0) from tokens, and where there are documents these from each other
  int64_t length, number, epoch;
};

Masking::Masking(const DataRequest& request, const Manifest& manifest)
    : options_(request.masking), seed_(request.mask_seed), mask_(manifest.mask), continues_(manifest.continues) {
  if (!manifest.teacher_tokenizer_digest.empty()) {
    refuse_masking(request,
                   "data.masking hides tokens of one tokenizer, and this was prepared with two: prepare it with one");
  }
  if (mask_ < 0) {
    refuse_masking(request,
                   "data.masking needs a mask token, and the manifest names none: prepare the data with a tokenizer "
                   "that has one (mask_token in its tokenizer_config.json), with this version's tools/prepare_data.py");
  }
  if (options_.unit == MaskUnit::kWord && !manifest.knows_words) {
    refuse_masking(
        request,
        "data.masking = whole_word, and the manifest does not say which tokens go on with a word (WordPiece's "
        "##, byte-level and SentencePiece tokenizers do): set data.masking = token");
  }
  special_.assign(static_cast<size_t>(manifest.vocabulary), false);
  for (const int64_t id : manifest.special) special_[static_cast<size_t>(id)] = true;
  special_[static_cast<size_t>(mask_)] = true;
  for (int64_t id = 0; id < manifest.vocabulary; ++id) {
    if (!special_[static_cast<size_t>(id)]) ordinary_.push_back(id);
  }
  if (ordinary_.empty()) refuse_masking(request, "all tokens of its vocabulary are special ones");
}

bool Masking::begins_word(const Row& row, int64_t at) const {
  if (options_.unit == MaskUnit::kToken || at == 0 || row.documents[at - 1] != row.documents[at]) return true;
  return special_[static_cast<size_t>(row.ids[at - 1])] || !continues_[static_cast<size_t>(row.ids[at])];
}

// Its tokens become the mask token, another one, or stay; each for itself.
void Masking::hide(Row& row, int64_t begin, int64_t end) const {
  for (int64_t at = begin; at < end; ++at) {
    at::Philox4_32 random(static_cast<uint64_t>(seed_), static_cast<uint64_t>(row.number),
                          static_cast<uint64_t>((row.epoch << kPositionBits) + at));
    random();  // the word's own decision
    const double share = uniform(random());
    const uint64_t which = random();
    if (share < options_.replaced) {
      row.ids[at] = mask_;
    } else if (share < options_.replaced + options_.random) {
      row.ids[at] = ordinary_[static_cast<size_t>(which % ordinary_.size())];
    }
  }
}

void Masking::apply_to(Row& row) const {
  std::vector<int64_t> begins;
  for (int64_t at = 0; at < row.length; ++at) {
    if (begins_word(row, at)) begins.push_back(at);
  }
  begins.push_back(row.length);
  for (size_t word = 0; word + 1 < begins.size(); ++word) {
    const int64_t begin = begins[word], end = begins[word + 1];
    bool takes_part = true;
    for (int64_t at = begin; at < end; ++at) {
      takes_part = takes_part && row.documents[at] != 0 && row.labels[at] != models::kIgnoredLabel &&
                   !special_[static_cast<size_t>(row.ids[at])];
    }
    at::Philox4_32 random(static_cast<uint64_t>(seed_), static_cast<uint64_t>(row.number),
                          static_cast<uint64_t>((row.epoch << kPositionBits) + begin));
    if (takes_part && uniform(random()) < options_.fraction) {
      hide(row, begin, end);
    } else {
      std::fill(row.labels + begin, row.labels + end, models::kIgnoredLabel);
    }
  }
}

void Masking::apply(TokenStream& stream, const std::vector<int64_t>& rows, int64_t epoch) const {
  const int64_t length = stream.ids.size(1);
  const at::Tensor& documents = stream.document_ids ? *stream.document_ids : stream.attention_mask.value();
  for (size_t i = 0; i < rows.size(); ++i) {
    const int64_t at = static_cast<int64_t>(i) * length;
    Row row{stream.ids.mutable_data_ptr<int64_t>() + at,
            stream.labels.mutable_data_ptr<int64_t>() + at,
            documents.const_data_ptr<int64_t>() + at,
            length,
            rows[i],
            epoch};
    apply_to(row);
  }
  stream.masked = true;
}

}  // namespace limbeck::data
