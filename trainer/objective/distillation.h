// The one forward to a loss. Training, evaluation, check, sweep and profile all call forward(); there is no other path.
// Owns teacher, student and projectors; on meta it is what `limbeck check` runs.
#pragma once
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "modules/adapters/adapter_config.h"
#include "modules/models/weights/load_model.h"
#include "trainer/data/batch.h"
#include "trainer/data/data_source.h"
#include "trainer/objective/measures.h"
#include "trainer/objective/terms.h"
#include "trainer/parallel/communicator.h"
#include "trainer/recipe/settings.h"
#include "trainer/registry.h"

namespace limbeck::objective {

// A trainable tensor with the group whose learning rate it takes: student, projector, router.
struct TrainedParameter {
  std::string name;  // unique path, "student.layers.0.mlp.up_proj.weight"
  at::Tensor tensor;
  std::string group;
  bool decays = true;  // weight decay: not for norms, biases
};

enum class Materialize { kMeta, kWeights };  // structure alone on meta, or with weights read

class Distillation {
 public:
  // Reads teacher.*, student.*, projector.*, objective.* and precision.* of the recipe.
  Distillation(const recipe::Settings& settings, const Registries& registries, Materialize how);
  ~Distillation();
  Distillation(const Distillation&) = delete;
  Distillation& operator=(const Distillation&) = delete;

  // Differentiable where gradients are enabled. The curriculum's weights follow progress, in evaluation too.
  // `measures`: what evaluation reports beside the terms, added up over batches.
  Terms forward(const data::Batch& batch, const Progress& progress, Measures* measures = nullptr) const;

  const std::optional<models::BuiltModel>& teacher() const;
  const models::BuiltModel& student() const;
  c10::Device device() const;  // where its batches belong
  std::vector<std::shared_ptr<precision::ContractModule>> contract_modules() const;
  std::vector<TrainedParameter> trained_parameters() const;
  // Projectors and the like: tensors beside the student that a checkpoint or export keeps, by name.
  std::vector<std::pair<std::string, at::Tensor>> projector_tensors() const;
  // What of the student trains, where that is an adapter alone.
  const std::optional<adapters::AdapterConfig>& adapter() const;
  // What the recipe's user should know of it: one line each.
  const std::vector<std::string>& notes() const;
  // The teacher is the student without its adapter, and has its weights.
  bool teacher_shares_weights() const;
  // Every tensor that a checkpoint keeps, by unique name: those of the student by their paths (of an adapted student
  // the adapter's alone: the others are in its folder, whose digest the run keeps), and the above.
  std::vector<std::pair<std::string, at::Tensor>> kept_tensors() const;
  bool follows_student() const;  // the teacher is an average of the student, and reads its whole weights
  // Called once after each update (EMA teachers follow the student here).
  void after_update(const Progress& progress);
  // With objective.vocabulary_parallel, forward() is from here on an operation of all ranks together.
  void divide_vocabulary(parallel::Communicator& ranks);
  // Whether teacher and student read tokens of their own: data prepared with two tokenizers.
  bool reads_two_streams() const;
  // Refuses data whose tokenizers or vocabularies do not fit the pair; UsageError says what to set.
  void accept_data(const data::Manifest& manifest, const std::string& origin);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace limbeck::objective
