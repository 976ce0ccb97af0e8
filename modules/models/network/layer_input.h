// What all layers of one forward share: who sees whom, positions, the cache of a generation, what is kept of the
// inside.
#pragma once
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "modules/models/network/draws.h"
#include "modules/models/network/token_cache.h"

namespace limbeck::models {

// What distillation terms ask a forward to keep beside its result; filled in the order of the layers. Differentiable.
struct Taps {
  struct Operands {
    at::Tensor query_bthd, key_bshd;  // as attention sees them: after their norms and rotary positions
  };
  // What a layer's adapter says of itself.
  struct Adapted {
    at::Tensor low_btr;                           // what its rank leaves of its input, in its compute dtype
    std::map<std::string, at::Tensor> penalties;  // by name: [B, T] in float32 or wider, for a mean over tokens
  };
  bool keep_attention = false, keep_router = false, keep_adapted = false, keep_mixed = false;
  std::vector<Operands> attention;        // one a layer
  std::vector<at::Tensor> mixed;          // [B, T, D], one a layer: what its token mixer gives
  std::vector<at::Tensor> router_logits;  // [B, T, E] in the model's dtype, one a sparse layer
  std::vector<Adapted> adapted;           // one a layer whose adapter works

  Taps asking_the_same() const;       // with nothing kept yet
  std::vector<at::Tensor*> kept();    // every tensor, in an order that the same layers always give
  void take_over(const Taps& later);  // what later layers kept, behind what is here
};

// What every layer of one forward shares.
struct LayerInput {
  std::optional<at::Tensor> segments_q, segments_k;        // int32 [B, T], [B, S]; 0 = padding
  std::optional<at::Tensor> runs;                          // int32: where the runs of equal segments begin and end
  std::pair<at::Tensor, at::Tensor> angles, local_angles;  // cos and sin; undefined without rotary positions
  TokenCache* cache = nullptr;
  Taps* taps = nullptr;
  Draws draws;  // of training
  // So many first tokens of each row are read of what the layer gives, and it gives no others; none: all.
  std::optional<int64_t> read_tokens = {};

  at::Tensor read_of(const at::Tensor& x_btd) const {
    return read_tokens && *read_tokens < x_btd.size(1) ? x_btd.narrow(1, 0, *read_tokens) : x_btd;
  }
};

}  // namespace limbeck::models
