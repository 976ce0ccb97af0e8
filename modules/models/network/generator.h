// Generation of tokens by a decoder, greedy or sampled, with or without the key-value cache.
// Sampling draws from counters (seed, row, step): a row's tokens do not depend on the rest of the batch.
#pragma once
#include <cstdint>
#include <functional>

#include "modules/models/network/transformer.h"

namespace limbeck::models {

struct GenerateOptions {
  int64_t max_new_tokens = 64;
  double temperature = 0.0;  // 0: greedy
  int64_t top_k = 0;         // 0: all
  double top_p = 1.0;
  uint64_t seed = 0;
  bool cache = true;
  bool allow_nonfinite = false;  // go on with the greatest of what is no NaN; else NumericError
  bool ignore_end = false;       // go on past the end-of-sequence id
};

// A prompt and room for what is written behind it, made once: a step then costs the same however long the text is.
// All [B, T + new], and what is written is no padding.
struct TextRoom {
  TextRoom(const at::Tensor& prompt, const at::Tensor& attention_mask, int64_t new_tokens);
  at::Tensor ids, mask, positions;  // positions of a row skip its left padding
};

// The ids after the first `length` of a text: what one step of a generation does, at once for all that the cache
// (nullptr: none) has not read yet. [B], -1 where the logits are broken; of which dtype these were is told beside it.
struct NextIds {
  at::Tensor ids;
  at::ScalarType logits;
};
NextIds next_ids(const Transformer& model, const TextRoom& text, int64_t length, TokenCache* cache,
                 const GenerateOptions& options, int64_t step);

// ids int64 [B, T] (padding on the left), attention_mask [B, T] or undefined -> [B, T + new]. Rows that ended are
// filled with the padding id; generation stops when all have. `progress` sees each step's ids [B].
at::Tensor generate(const Transformer& model, const at::Tensor& ids, const at::Tensor& attention_mask,
                    const GenerateOptions& options,
                    const std::function<void(int64_t step, const at::Tensor& next)>& progress = {});

}  // namespace limbeck::models
