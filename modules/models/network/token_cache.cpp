#include "modules/models/network/token_cache.h"

#include <ATen/ops/empty.h>
#include <fmt/format.h>

#include "modules/errors.h"

namespace limbeck::models {

TokenCache::TokenCache(int64_t layers, int64_t batch, int64_t capacity)
    : batch_(batch), capacity_(capacity), memories_(static_cast<size_t>(layers)) {}

void TokenCache::require_room(const at::Tensor& x) const {
  const int64_t tokens = x.size(1);
  if (x.size(0) == batch_ && length_ + tokens <= capacity_) return;
  throw ContractError(fmt::format("[cache] {} rows of {} + {} tokens, wanted {} rows of at most {}", x.size(0), length_,
                                  tokens, batch_, capacity_));
}

at::Tensor TokenCache::append_segments(const at::Tensor& segments) {
  if (!segments_.defined()) segments_ = at::empty({batch_, capacity_}, segments.options());
  segments_.narrow(1, length_, segments.size(1)).copy_(segments);
  return segments_.narrow(1, 0, length_ + segments.size(1));
}

}  // namespace limbeck::models
