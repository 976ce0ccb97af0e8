// Forward and backward of a micro-batch as a CUDA graph: recorded at the second micro-batch of a kind, played from then
// on, with the same bits as without. Micro-batches are of one kind where all that the host decides is the same: shapes,
// the loss scale, the weights of terms. The batch and the numbers of the update are copied to where the graph reads
// them. The optimizer's update is none of its business. All graphs have one memory, since none is played before what
// the one before it has made is used up: it is as large as the largest of them needs.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "trainer/objective/distillation.h"
#include "trainer/recipe/settings.h"
#include "trainer/session/graph_places.h"

namespace limbeck::session {

// UsageError, in words, where something of the recipe cannot be recorded. Before the first step; `check` asks it too.
void require_recordable(const recipe::Settings& settings, const objective::Distillation& objective, int ranks);

// Seeds backward with the loss scale; gradients are in .grad.
objective::Terms forward_and_backward(const objective::Distillation& objective, const data::Batch& batch,
                                      const objective::Progress& progress);

class StepGraphs {
 public:
  // Graphs of this objective, which outlives them.
  explicit StepGraphs(const objective::Distillation& objective);
  ~StepGraphs();
  StepGraphs(const StepGraphs&) = delete;
  StepGraphs& operator=(const StepGraphs&) = delete;

  // As forward_and_backward(); the tensors of the result are the caller's, the gradients only until the next call.
  objective::Terms run(const data::Batch& batch, const objective::Progress& progress);
  // Micro-batches that ran without a graph because there were too many kinds of them.
  int64_t without_place() const { return places_.without_place(); }
  int64_t held_bytes() const { return held_bytes_; }  // of the device's memory, beside all tensors

 private:
  struct Kind;
  Kind* kind_of(const data::Batch& batch, const objective::Progress& progress);  // null: without a graph
  void record(Kind& kind, const data::Batch& batch, const objective::Progress& progress);

  const objective::Distillation& objective_;
  std::vector<at::Tensor> trained_;
  GraphPlaces places_;
  std::vector<std::unique_ptr<Kind>> kinds_;  // by place
  int64_t held_bytes_ = 0;
};

}  // namespace limbeck::session
