// What one forward consumes: the tokens of a few sequences, their targets, and which of them see each other.
// All tensors are int64 and contiguous: on the CPU as a loader makes them, on the models' device once place() has been
// there, which is where every batch of a Prefetcher has been.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

namespace limbeck::data {

// One tokenizer's view of the batch.
struct TokenStream {
  at::Tensor ids;       // [B, T]
  at::Tensor labels;    // [B, T]: the id of the token itself where it is a target, else -100.
                        // Position t predicts labels[t + 1]; the models shift, the loader does not.
  bool masked = false;  // tokens of `ids` are hidden: labels are set there alone, and position t predicts labels[t]
  std::optional<at::Tensor> attention_mask;  // [B, T], 0 = padding (padded batches)
  std::optional<at::Tensor> document_ids;    // [B, T], 1, 2, … within a row, 0 = padding (packed batches); the first
                                             // token of every document has label -100
  // Of the labels, counted before they left the CPU: what is asked once an update must not wait for a device.
  std::optional<int64_t> targets;
  std::optional<int64_t> runs;  // models::ModelInput::runs, counted by place()
};

struct Batch {
  TokenStream student;  // and of the teacher, unless it has a tokenizer of its own:
  std::optional<TokenStream> teacher;
  // [B, T of student] when `teacher` is set: the position of the teacher's stream that ends at the same character (or
  // is the last to end before it), -1 where there is none.
  at::Tensor teacher_position;
  at::Tensor classes;     // [B] for classifiers, undefined otherwise; -100 = unlabelled
  int64_t first_row = 0;  // its number among all rows since training began
};

// Targets that a language-model loss counts: labels[:, 1:] that are not -100, in a masked stream labels.
int64_t target_count(const TokenStream& stream);

// Runs, with room for those of other batches: a number of two for each padded row, of packed ones the next power of
// two. Empty runs cost next to nothing, and shapes that change with each batch cannot be recorded.
std::optional<int64_t> room_for_runs(const TokenStream& stream);

// The batch on `device`, its targets and runs counted on the way. To a GPU the copies go out of pinned memory and
// nobody waits for them: what is computed from the batch is queued behind them.
Batch place(Batch batch, c10::Device device);

}  // namespace limbeck::data
