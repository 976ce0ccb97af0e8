// What a model keeps of the tokens already seen, for generation: each layer's mixer has a memory of a type of its own,
// and the segments of all tokens (0 = padding) are kept beside them, so that left-padded prompts stay masked.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <typeinfo>
#include <utility>
#include <vector>

namespace limbeck::models {

// Of one layer's mixer, in the model's dtype: derive from it, and ask for it by TokenCache::memory<…>(layer).
class MixerMemory {
 public:
  virtual ~MixerMemory() = default;
};

class TokenCache {
 public:
  // Room for `capacity` tokens of `batch` rows.
  TokenCache(int64_t layers, int64_t batch, int64_t capacity);

  int64_t length() const { return length_; }
  int64_t capacity() const { return capacity_; }
  int64_t batch() const { return batch_; }
  // That of the mixer of this layer, made by its first forward: nothing is in it then.
  template <class Memory>
  Memory& memory(int64_t layer) {
    std::unique_ptr<MixerMemory>& kept = memories_.at(static_cast<size_t>(layer));
    if (kept == nullptr) kept = std::make_unique<Memory>();
    auto* own = dynamic_cast<Memory*>(kept.get());
    if (own == nullptr) throw std::bad_cast();
    return *own;
  }
  // ContractError where x [B, T, ...] is of other rows, or of more tokens than there is room for.
  void require_room(const at::Tensor& x) const;
  // Appends the segments [B, T] int32 of the new tokens; returns those of all tokens so far.
  at::Tensor append_segments(const at::Tensor& segments);
  // After all layers of one forward: the new tokens count from now on.
  void advance(int64_t tokens) { length_ += tokens; }

 private:
  int64_t batch_, capacity_, length_ = 0;
  std::vector<std::unique_ptr<MixerMemory>> memories_;
  at::Tensor segments_;
};

}  // namespace limbeck::models
