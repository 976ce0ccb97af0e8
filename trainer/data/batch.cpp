#include "trainer/data/batch.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <bit>
#include <set>

#include "modules/models/network/token_loss.h"
#include "modules/precision/casts.h"

namespace limbeck::data {
namespace {

void place(std::optional<at::Tensor>& tensor, c10::Device device) {
  if (tensor) tensor = precision::upload(*tensor, device);
}

// Runs of equal numbers in all rows; none where a number comes back after another one.
std::optional<int64_t> count_runs(const at::Tensor& numbers) {
  const at::Tensor dense = numbers.contiguous();
  const int64_t rows = dense.size(0), length = dense.size(1);
  const int64_t* at = dense.const_data_ptr<int64_t>();
  int64_t runs = 0;
  std::set<int64_t> before;
  for (int64_t row = 0; row < rows; ++row, at += length) {
    before.clear();
    for (int64_t t = 0; t < length; ++t) {
      if (t > 0 && at[t] == at[t - 1]) continue;
      if (!before.insert(at[t]).second) return std::nullopt;
      ++runs;
    }
  }
  return runs;
}

void place(TokenStream& stream, c10::Device device) {
  stream.targets = target_count(stream);
  const std::optional<at::Tensor>& numbers = stream.document_ids ? stream.document_ids : stream.attention_mask;
  if (numbers && numbers->is_cpu()) stream.runs = count_runs(*numbers);
  stream.ids = precision::upload(stream.ids, device);
  if (stream.labels.defined()) stream.labels = precision::upload(stream.labels, device);
  place(stream.attention_mask, device);
  place(stream.document_ids, device);
}

}  // namespace

int64_t target_count(const TokenStream& stream) {
  if (stream.targets) return *stream.targets;
  if (!stream.labels.defined() || stream.labels.size(1) < 2) return 0;
  return stream.labels.slice(1, stream.masked ? 0 : 1).ne(models::kIgnoredLabel).sum().item<int64_t>();
}

std::optional<int64_t> room_for_runs(const TokenStream& stream) {
  if (!stream.runs) return std::nullopt;
  if (stream.document_ids) return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(*stream.runs)));
  return std::max(*stream.runs, 2 * stream.ids.size(0));
}

Batch place(Batch batch, c10::Device device) {
  place(batch.student, device);
  if (batch.teacher) place(*batch.teacher, device);
  for (at::Tensor* tensor : {&batch.teacher_position, &batch.classes}) {
    if (tensor->defined()) *tensor = precision::upload(*tensor, device);
  }
  return batch;
}

}  // namespace limbeck::data
