#include "trainer/data/batch.h"

#include <ATen/ATen.h>

#include "modules/models/token_loss.h"

namespace limbeck::data {

int64_t target_count(const TokenStream& stream) {
  if (!stream.labels.defined() || stream.labels.size(1) < 2) return 0;
  return stream.labels.slice(1, stream.masked ? 0 : 1).ne(models::kIgnoredLabel).sum().item<int64_t>();
}

}  // namespace limbeck::data
