// Forward and backward of a micro-batch as a CUDA graph: recorded at the second micro-batch of a kind, played from then
// on, with the same bits as without. Micro-batches are of one kind where all that the host decides is the same: shapes,
// the loss scale, the weights of terms. The batch and the numbers of the update are copied to where the graph reads
// them. The optimizer's update is none of its business.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "trainer/objective/distillation.h"
#include "trainer/recipe/settings.h"

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

  // As forward_and_backward(); the tensors of the result are the caller's.
  objective::Terms run(const data::Batch& batch, const objective::Progress& progress);
  int64_t recorded() const { return recorded_; }  // graphs, in all

 private:
  struct Kind;
  Kind& kind_of(const data::Batch& batch, const objective::Progress& progress);
  void record(Kind& kind, const data::Batch& batch, const objective::Progress& progress);

  const objective::Distillation& objective_;
  std::vector<at::Tensor> trained_;
  std::vector<std::unique_ptr<Kind>> kinds_;  // the one that was used last, last
  int64_t recorded_ = 0;
};

}  // namespace limbeck::session
