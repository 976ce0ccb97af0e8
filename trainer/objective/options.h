// What a recipe says of its objective, read once: the terms and their projectors see these structs and no key, word or
// line of the recipe, but for the words by which a refusal names it.
#pragma once
#include <cstdint>
#include <string>

#include "trainer/objective/head/divergence.h"
#include "trainer/objective/layer_map.h"
#include "trainer/objective/model_pair.h"
#include "trainer/objective/weights.h"
#include "trainer/recipe/settings.h"
#include "trainer/registry.h"

namespace limbeck::objective {

struct HeadOptions {
  double clamp = 0.0, label_smoothing = 0.0;
  bool logit_projector = false;         // the teacher's states are read by the student's head
  bool projector_learns_labels = true;  // else from the divergence
  bool only_right = false;              // of dskd: tokens that the projected teacher predicts rightly
};

struct HiddenOptions {
  enum class Projector { kNone, kLinear, kMlp };
  bool cosine = false;
  Projector projector = Projector::kLinear;
  std::string projector_where = {};
  LayerMap layers = {};  // where the layer term takes part
};

struct PooledOptions {
  bool first_token = false;
  double temperature = 1.0;  // of InfoNCE
};

struct EquivalenceOptions {
  enum class Distance { kDirect, kNormalised, kRelative };
  Distance distance = Distance::kDirect;
  bool guided = false;
  double regularization = 0.0;
  std::string weight_where = {};
};

struct ProjectorOptions {
  bool float32 = false;  // else in the dtype of the model it attaches to
  std::string float32_source = {};
  double init_std = 0.0;
  int64_t seed = 0;
};

struct ObjectiveOptions {
  TermWeights weights;
  Divergence divergence;
  HeadOptions head = {};
  HiddenOptions hidden = {};
  PooledOptions pooled = {};
  EquivalenceOptions equivalence = {};
  ProjectorOptions projectors = {};
  bool interpolates = false;  // two tokenizers: over time, instead of by offsets
  uint64_t seed = 0;          // of what the student's adapter draws in training
  std::string divergence_where = {}, teacher_where = {};

  bool needs_teacher() const { return weights.needs_teacher(); }
  // Compares models of different tokenizers.
  bool crosses() const { return divergence.crosses_vocabularies || head.logit_projector; }
};

// What any divergence may ask of the recipe.
DivergenceOptions read_divergence_options(const recipe::Settings& settings);
// Of objective.*, projector.* and precision.rule, for these models.
ObjectiveOptions read_options(const recipe::Settings& settings, const Registries& registries, const ModelPair& pair);

// UsageError where these options ask of the pair what no such models can do.
void require_fitting_pair(const recipe::Settings& settings, const ObjectiveOptions& options, const ModelPair& pair);

}  // namespace limbeck::objective
