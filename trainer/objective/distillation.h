// The one forward to a loss. Training, evaluation, check, sweep and profile all call forward(); there is no other path.
// Made over a pair of models that exists already, which it shares with whoever holds it, and over what must be known
// before: the recipe's options, the real ids of both heads, and the ranks that divide them. On meta it is what `limbeck
// check` runs.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "modules/precision/contract_modules.h"
#include "trainer/data/batch.h"
#include "trainer/objective/head/vocabulary_parallel.h"
#include "trainer/objective/measures.h"
#include "trainer/objective/options.h"
#include "trainer/objective/terms.h"
#include "trainer/objective/vocabulary.h"

namespace limbeck::objective {

// A trainable tensor with the group whose learning rate it takes: student, projector, router.
struct TrainedParameter {
  std::string name;  // unique path, "student.layers.0.mlp.up_proj.weight"
  at::Tensor tensor;
  std::string group;
  bool decays = true;  // weight decay: not for norms, biases
};

class Distillation {
 public:
  // `options` were read for this pair. With a line in `divided`, forward() is an operation of all ranks together.
  Distillation(const ObjectiveOptions& options, std::shared_ptr<ModelPair> pair, const Vocabulary& vocabulary,
               VocabularyRanks divided = {});
  ~Distillation();
  Distillation(const Distillation&) = delete;
  Distillation& operator=(const Distillation&) = delete;

  // Differentiable where gradients are enabled. The curriculum's weights follow progress, in evaluation too.
  // `measures`: what evaluation reports beside the terms, added up over batches. No tensor of the models changes.
  Terms forward(const data::Batch& batch, const Progress& progress, Measures* measures = nullptr) const;

  // Of a batch: Terms::targets.
  int64_t counted(const data::Batch& batch) const;
  // What forward() takes from the progress beside the numbers of the update (step_numbers.h): weights, temperature.
  std::vector<double> constants(const Progress& progress) const;
  const ObjectiveOptions& options() const;

  const ModelPair& pair() const;
  const models::BuiltModel& student() const { return pair().student; }
  const std::optional<models::BuiltModel>& teacher() const { return pair().teacher; }
  c10::Device device() const { return pair().device(); }
  // Of both models and of what the objective has beside them.
  std::vector<std::shared_ptr<precision::ContractModule>> contract_modules() const;
  std::vector<TrainedParameter> trained_parameters() const;
  // Projectors and the like: tensors beside the student that a checkpoint or export keeps, by name.
  std::vector<std::pair<std::string, at::Tensor>> projector_tensors() const;
  // Every tensor that a checkpoint keeps, by unique name: those of the student by their paths (of an adapted student
  // the adapter's alone: the others are in its folder, whose digest the run keeps), and the above.
  std::vector<std::pair<std::string, at::Tensor>> kept_tensors() const;
  // Who fills tensors that these functions gave out does it in here: what is made from them is made anew afterwards.
  void fill(const std::function<void()>& write);

  bool follows_student() const;  // the teacher is an average of the student, and reads its whole weights
  // Called once after each update (EMA teachers follow the student here).
  void after_update(const Progress& progress);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace limbeck::objective
