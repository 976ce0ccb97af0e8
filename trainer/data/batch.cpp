#include "trainer/data/batch.h"

#include <ATen/ATen.h>

#include "modules/models/network/token_loss.h"
#include "modules/precision/casts.h"

namespace limbeck::data {
namespace {

void place(std::optional<at::Tensor>& tensor, c10::Device device) {
  if (tensor) tensor = precision::upload(*tensor, device);
}

void place(TokenStream& stream, c10::Device device) {
  stream.targets = target_count(stream);
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

Batch place(Batch batch, c10::Device device) {
  place(batch.student, device);
  if (batch.teacher) place(*batch.teacher, device);
  for (at::Tensor* tensor : {&batch.teacher_position, &batch.classes}) {
    if (tensor->defined()) *tensor = precision::upload(*tensor, device);
  }
  return batch;
}

}  // namespace limbeck::data
