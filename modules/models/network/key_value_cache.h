// Keys and values of the tokens already seen, for generation: one preallocated buffer a layer, in the model's dtype.
// The cache also keeps each token's segment (0 = padding), so that left-padded prompts stay masked.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace limbeck::models {

class KeyValueCache {
 public:
  // Room for `capacity` tokens of `batch` rows.
  KeyValueCache(int64_t layers, int64_t batch, int64_t capacity);

  int64_t length() const { return length_; }
  int64_t capacity() const { return capacity_; }
  // Appends k, v [B, T, H, D] of one layer at the current length; returns views of all keys and values so far.
  std::pair<at::Tensor, at::Tensor> append(int64_t layer, const at::Tensor& k, const at::Tensor& v);
  // Appends the segments [B, T] int32 of the new tokens; returns those of all tokens so far.
  at::Tensor append_segments(const at::Tensor& segments);
  // After all layers of one forward: the new tokens count from now on.
  void advance(int64_t tokens) { length_ += tokens; }

 private:
  int64_t batch_, capacity_, length_ = 0;
  std::vector<at::Tensor> keys_, values_;
  at::Tensor segments_;
};

}  // namespace limbeck::models
