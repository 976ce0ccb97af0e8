#include "modules/models/network/key_value_cache.h"

#include <ATen/ops/empty.h>
#include <fmt/format.h>

#include "modules/errors.h"

namespace limbeck::models {

KeyValueCache::KeyValueCache(int64_t layers, int64_t batch, int64_t capacity)
    : batch_(batch), capacity_(capacity), keys_(static_cast<size_t>(layers)), values_(static_cast<size_t>(layers)) {}

std::pair<at::Tensor, at::Tensor> KeyValueCache::append(int64_t layer, const at::Tensor& k, const at::Tensor& v) {
  const int64_t tokens = k.size(1);
  if (k.size(0) != batch_ || length_ + tokens > capacity_) {
    throw ContractError(fmt::format("[cache] {} rows of {} + {} tokens, wanted {} rows of at most {}", k.size(0),
                                    length_, tokens, batch_, capacity_));
  }
  auto& keys = keys_[static_cast<size_t>(layer)];
  auto& values = values_[static_cast<size_t>(layer)];
  if (!keys.defined()) {
    keys = at::empty({batch_, capacity_, k.size(2), k.size(3)}, k.options());
    values = at::empty({batch_, capacity_, v.size(2), v.size(3)}, v.options());
  }
  keys.narrow(1, length_, tokens).copy_(k);
  values.narrow(1, length_, tokens).copy_(v);
  return {keys.narrow(1, 0, length_ + tokens), values.narrow(1, 0, length_ + tokens)};
}

at::Tensor KeyValueCache::append_segments(const at::Tensor& segments) {
  if (!segments_.defined()) segments_ = at::empty({batch_, capacity_}, segments.options());
  segments_.narrow(1, length_, segments.size(1)).copy_(segments);
  return segments_.narrow(1, 0, length_ + segments.size(1));
}

}  // namespace limbeck::models
