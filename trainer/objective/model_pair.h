// The models of a distillation: the student, what it learns from, and what joins the two. Built from a recipe by
// trainer/build/recipe_pair.h; any number of objectives may be given to one pair, one after the other.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "modules/adapters/adapter_config.h"
#include "modules/models/weights/load_model.h"
#include "trainer/objective/moving_average.h"

namespace limbeck::objective {

enum class Materialize { kMeta, kWeights };  // structure alone on meta, or with weights

struct ModelPair {
  Materialize how = Materialize::kWeights;
  models::BuiltModel student;
  std::optional<adapters::AdapterConfig> adapter;  // what of the student trains, where that is an adapter alone
  std::optional<models::BuiltModel> teacher;
  bool shares_weights = false;           // the teacher is the student without its adapter, and has its weights
  std::optional<MovingAverage> average;  // of the student, where the teacher is that
  std::vector<std::string> notes;        // what the recipe's user should know of it: one line each

  bool on_meta() const { return how == Materialize::kMeta; }
  c10::Device device() const;  // where its batches belong
};

bool is_classifier(const models::BuiltModel& model);
bool has_language_head(const models::BuiltModel& model);

}  // namespace limbeck::objective
