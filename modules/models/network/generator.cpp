#include "modules/models/network/generator.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <optional>

#include "kernels/sampling/sampling.h"
#include "modules/errors.h"
#include "modules/id_range.h"
#include "modules/precision/casts.h"

namespace limbeck::models {

namespace {

at::Tensor choose(const at::Tensor& logits_bv, const GenerateOptions& options, int64_t step) {
  if (options.temperature > 0) {
    precision::name_inner_cast("generate (sampling)", logits_bv.scalar_type(), at::kDouble);
  }
  return kernels::sample_ids(logits_bv, {.temperature = options.temperature,
                                         .top_k = options.top_k,
                                         .top_p = options.top_p,
                                         .seed = options.seed,
                                         .step = step,
                                         .allow_nonfinite = options.allow_nonfinite});
}

// Of the rows that still go on: one that has ended only carries padding, and no token is negative.
void check_chosen(const at::Tensor& next_on_cpu, at::ScalarType logits, int64_t step) {
  const at::Tensor broken = next_on_cpu.lt(0);
  if (!broken.any().item<bool>()) return;
  throw NumericError(fmt::format(
      "generate: the logits of row {} at new token {} are NaN or infinite: damaged weights, or values beyond "
      "{}: choose a wider --dtype; --allow-nonfinite goes on all the same",
      broken.nonzero()[0].item<int64_t>(), step + 1, precision::dtype_name(logits)));
}

at::Tensor ended(at::Tensor before, const at::Tensor& next, const std::vector<int64_t>& ends) {
  for (const int64_t end : ends) before = before.logical_or(next.eq(end));
  return before;
}

at::Tensor with_room(const at::Tensor& x, int64_t more, int64_t value) {
  return at::cat({x, at::full({x.size(0), more}, value, x.options())}, 1);
}

// Frequencies of dynamic and long rope change with the length, and then the cached keys are those of another model.
bool cache_stays_valid(const Architecture& a, int64_t length, int64_t prompt) {
  auto crosses = [&](const Rope& rope) {
    if (rope.type == RopeType::kDynamic) return length > a.max_positions;
    if (rope.type == RopeType::kLongRope) return prompt <= rope.original_positions && length > rope.original_positions;
    return false;
  };
  return !crosses(a.rope) && !crosses(a.local_rope);
}

void check_request(const Architecture& a, const at::Tensor& ids, const GenerateOptions& options) {
  if (a.masked_language_model()) {
    throw UsageError(
        fmt::format("generate: {} fills in masked tokens from both sides and writes no text from left to right: "
                    "wanted a decoder; its predictions are the logits of limbeck forward",
                    a.family));
  }
  if (a.head != HeadKind::kLanguageModel) throw ContractError("generate wants a language model, got " + a.family);
  if (options.temperature < 0 || !(options.top_p > 0 && options.top_p <= 1)) {
    throw UsageError(fmt::format("generate: temperature {} and top-p {}, wanted >= 0 and in (0, 1]",
                                 options.temperature, options.top_p));
  }
  const int64_t low = ids.min().item<int64_t>(), high = ids.max().item<int64_t>();
  if (low < 0 || high >= a.vocabulary) {
    throw InputDataError(
        fmt::format("generate: prompt ids from {} to {}, wanted {}", low, high, ids_below(a.vocabulary)));
  }
}

// A tokenizer from elsewhere can make a hundred thousand tokens of one word; attention to them takes hours. The dynamic
// rope is made to go beyond its length.
void require_room(const Architecture& a, const at::Tensor& mask) {
  if (a.rope.type == RopeType::kDynamic) return;
  const at::Tensor lengths = mask.sum(1);
  const int64_t longest = lengths.max().item<int64_t>();
  if (longest <= a.max_positions) return;
  throw InputDataError(
      fmt::format("generate: prompt {} has {} tokens, and the model reads at most {} (max_position_embeddings of its "
                  "config.json): shorten it",
                  lengths.argmax().item<int64_t>() + 1, longest, a.max_positions));
}

}  // namespace

TextRoom::TextRoom(const at::Tensor& prompt, const at::Tensor& attention_mask, int64_t new_tokens)
    : ids(with_room(prompt, new_tokens, 0)),
      mask(with_room(attention_mask, new_tokens, 1)),
      positions((mask.cumsum(1) - 1).clamp_min(0)) {}

NextIds next_ids(const Transformer& model, const TextRoom& text, int64_t length, TokenCache* cache,
                 const GenerateOptions& options, int64_t step) {
  const int64_t known = cache != nullptr ? cache->length() : 0, fresh = length - known;
  ModelInput input;
  input.ids = text.ids.narrow(1, known, fresh);
  input.attention_mask = text.mask.narrow(1, known, fresh);
  input.position_ids = text.positions.narrow(1, known, fresh);
  input.cache = cache;
  const at::Tensor last = model.encode(input).last.narrow(1, fresh - 1, 1);
  const at::Tensor logits = model.head(last).select(1, 0);
  return {choose(logits, options, step), logits.scalar_type()};
}

at::Tensor generate(const Transformer& model, const at::Tensor& prompt, const at::Tensor& attention_mask,
                    const GenerateOptions& options,
                    const std::function<void(int64_t step, const at::Tensor& next)>& progress) {
  const c10::InferenceMode inference;
  const Architecture& a = model.architecture();
  check_request(a, prompt, options);
  const int64_t batch = prompt.size(0), length = prompt.size(1);
  const at::Tensor mask =
      attention_mask.defined() ? precision::integers(attention_mask, at::kLong) : at::ones_like(prompt);
  require_room(a, mask);
  const TextRoom text(prompt, mask, options.max_new_tokens);
  int64_t written = length;
  at::Tensor finished = at::zeros({batch}, prompt.options().dtype(at::kBool));
  const int64_t pad = a.pad_with >= 0 ? a.pad_with : (a.end_of_sequence.empty() ? 0 : a.end_of_sequence[0]);

  std::optional<TokenCache> cache;
  if (options.cache) cache.emplace(a.layers, batch, length + options.max_new_tokens);
  for (int64_t step = 0; step < options.max_new_tokens; ++step) {
    if (cache && !cache_stays_valid(a, written, length)) cache.reset();
    const auto [chosen, logits] = next_ids(model, text, written, cache ? &*cache : nullptr, options, step);
    const at::Tensor next = chosen.masked_fill(finished, pad);
    text.ids.select(1, written++).copy_(next);
    if (!options.ignore_end) finished = ended(finished, next, a.end_of_sequence);
    // The one wait of a token: its ids, and behind them whether all rows have ended.
    const at::Tensor told = precision::move(at::cat({next, finished.all().unsqueeze(0)}), at::kCPU);
    const at::Tensor on_cpu = told.narrow(0, 0, batch);
    check_chosen(on_cpu, logits, step);
    if (progress) progress(step + 1, on_cpu);
    if (told[batch].item<int64_t>() != 0) break;
  }
  return text.ids.narrow(1, 0, written).contiguous();
}

}  // namespace limbeck::models
