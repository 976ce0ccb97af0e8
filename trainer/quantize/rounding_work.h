// What rounding a model has finished, stage by stage, in a folder beside the one that is to be written: whoever is
// killed goes on behind the last of them, to the same bits. A stage's file is there whole or not at all. It is removed
// when the model is written.
#pragma once
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "trainer/quantize/compensated_experts.h"
#include "trainer/quantize/compensated_layer.h"
#include "trainer/quantize/learned_layer.h"

namespace limbeck::quantize {

// Without the codes, which are in the modules.
struct FinishedStage {
  std::vector<RoundedModule> modules;
  std::optional<LearnedLayer> layer;
  std::optional<RoundedExperts> experts = {};
};

// What a stage rounds; `experts`: null where none are.
struct StageModules {
  PackedLinears linears;
  std::shared_ptr<models::ExpertWeights> experts;
};

class RoundingWork {
 public:
  // `identity`: whatever the codes depend on. UsageError where stages of something else are finished there, or where it
  // holds what is none of ours.
  RoundingWork(std::filesystem::path folder, const nlohmann::ordered_json& identity);

  int64_t finished() const;  // stages, from the first one on
  // Takes the codes of a finished stage into its modules; nothing where it is not finished. InputDataError where its
  // file is damaged.
  std::optional<FinishedStage> take(size_t stage, const StageModules& modules) const;
  void keep(size_t stage, const StageModules& modules, const FinishedStage& finished) const;
  void remove() const;

 private:
  std::filesystem::path file_of(size_t stage) const;

  std::filesystem::path folder_;
};

}  // namespace limbeck::quantize
