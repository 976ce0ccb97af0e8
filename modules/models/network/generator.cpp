#include "modules/models/network/generator.h"

#include <ATen/ATen.h>
#include <ATen/core/PhiloxRNGEngine.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>

#include "modules/errors.h"
#include "modules/id_range.h"
#include "modules/precision/casts.h"

namespace limbeck::models {

namespace {

// Draws one id from the softmax of `logits` [V] after temperature, top-k and top-p; ties keep the lower id.
int64_t sample(const at::Tensor& logits_v, const GenerateOptions& options, uint64_t row, uint64_t step) {
  const at::Tensor wide = precision::cast(logits_v, logits_v.scalar_type(), at::kDouble, "generate (sampling)");
  // From the greatest, and then divided: beside a temperature near zero any other is infinitely far below it.
  const at::Tensor scaled = ((wide - wide.max()) / options.temperature).contiguous();
  const double* score = scaled.const_data_ptr<double>();
  std::vector<int64_t> order(static_cast<size_t>(scaled.numel()));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return score[a] > score[b]; });
  if (options.top_k > 0 && options.top_k < scaled.numel()) order.resize(static_cast<size_t>(options.top_k));
  std::vector<double> cumulative;
  double total = 0.0;
  for (const int64_t id : order) cumulative.push_back(total += std::exp(score[id] - score[order[0]]));
  // top-p keeps the smallest set whose mass reaches p, at least one.
  const auto last = std::lower_bound(cumulative.begin(), cumulative.end(), options.top_p * total);
  const auto kept = std::min<size_t>(static_cast<size_t>(last - cumulative.begin()) + 1, cumulative.size());
  at::Philox4_32 random(options.seed, row, step);
  const double uniform = (static_cast<double>(random()) + 0.5) / 4294967296.0;
  const double target = uniform * cumulative[kept - 1];
  const auto chosen = std::upper_bound(cumulative.begin(), cumulative.begin() + static_cast<int64_t>(kept), target);
  return order[std::min<size_t>(static_cast<size_t>(chosen - cumulative.begin()), kept - 1)];
}

// Of the rows that still go on: one that has ended only carries padding.
void check_logits(const at::Tensor& logits_bv, const at::Tensor& finished, int64_t step) {
  const at::Tensor broken = logits_bv.isfinite().all(-1).logical_or(finished).logical_not();
  if (!broken.any().item<bool>()) return;
  throw NumericError(fmt::format(
      "generate: the logits of row {} at new token {} are NaN or infinite: damaged weights, or values beyond "
      "{}: choose a wider --dtype; --allow-nonfinite goes on all the same",
      broken.nonzero()[0].item<int64_t>(), step + 1, precision::dtype_name(logits_bv.scalar_type())));
}

at::Tensor choose(const at::Tensor& given_bv, const GenerateOptions& options, int64_t step) {
  // First NaN to the least, then infinities to what is finite: a sample is drawn from differences.
  const at::Tensor logits_bv =
      options.allow_nonfinite ? given_bv.nan_to_num(-std::numeric_limits<double>::infinity()).nan_to_num() : given_bv;
  if (options.temperature == 0.0) return logits_bv.argmax(-1);
  const at::Tensor next = at::empty({logits_bv.size(0)}, at::TensorOptions().dtype(at::kLong));
  const at::Tensor on_cpu = precision::move(logits_bv, at::kCPU);
  for (int64_t row = 0; row < next.numel(); ++row) {
    next.data_ptr<int64_t>()[row] =
        sample(on_cpu[row], options, static_cast<uint64_t>(row), static_cast<uint64_t>(step));
  }
  return precision::move(next, logits_bv.device());
}

// Positions of a row skip its left padding.
at::Tensor positions_of(const at::Tensor& mask) { return (mask.cumsum(1) - 1).clamp_min(0); }

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

at::Tensor generate(const Transformer& model, const at::Tensor& prompt, const at::Tensor& attention_mask,
                    const GenerateOptions& options,
                    const std::function<void(int64_t step, const at::Tensor& next)>& progress) {
  const c10::InferenceMode inference;
  const Architecture& a = model.architecture();
  check_request(a, prompt, options);
  const int64_t batch = prompt.size(0), length = prompt.size(1);
  at::Tensor ids = prompt;
  at::Tensor mask = attention_mask.defined() ? precision::integers(attention_mask, at::kLong) : at::ones_like(prompt);
  require_room(a, mask);
  at::Tensor finished = at::zeros({batch}, prompt.options().dtype(at::kBool));
  const int64_t pad = a.pad_with >= 0 ? a.pad_with : (a.end_of_sequence.empty() ? 0 : a.end_of_sequence[0]);

  std::optional<TokenCache> cache;
  if (options.cache) cache.emplace(a.layers, batch, length + options.max_new_tokens);
  for (int64_t step = 0; step < options.max_new_tokens; ++step) {
    if (cache && !cache_stays_valid(a, ids.size(1), length)) cache.reset();
    const int64_t known = cache ? cache->length() : 0;
    const int64_t fresh = ids.size(1) - known;
    ModelInput input;
    input.ids = ids.narrow(1, known, fresh);
    input.attention_mask = mask.narrow(1, known, fresh);
    input.position_ids = positions_of(mask).narrow(1, known, fresh);
    input.cache = cache ? &*cache : nullptr;
    const at::Tensor last = model.encode(input).last.narrow(1, fresh - 1, 1);
    const at::Tensor logits = model.head(last).select(1, 0);
    if (!options.allow_nonfinite) check_logits(logits, finished, step);
    at::Tensor next = choose(logits, options, step);
    next = next.masked_fill(finished, pad);
    ids = at::cat({ids, next.unsqueeze(1)}, 1);
    mask = at::cat({mask, at::ones({batch, 1}, mask.options())}, 1);
    if (progress) progress(step + 1, next);
    if (options.ignore_end) continue;
    for (const int64_t end : a.end_of_sequence) finished = finished.logical_or(next.eq(end));
    if (finished.all().item<bool>()) break;
  }
  return ids;
}

}  // namespace limbeck::models
