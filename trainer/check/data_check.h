// The data of a recipe against its models, by the manifests alone: what `check` tells and refuses, and `train` refuses
// before a weight is read.
#pragma once
#include <string>
#include <vector>

#include "trainer/data/data_plan.h"
#include "trainer/objective/distillation.h"
#include "trainer/recipe/settings.h"

namespace limbeck::check {

struct DataRow {
  std::string key, folder;
  data::DataPlan plan;
  std::string absent;  // why there is no plan: a folder that is yet to be made. `train` refuses it in these words
};

// data.train and data.validation, where the recipe names them. Whatever of a manifest does not fit the models or the
// recipe is an error, as at the start of training; the objective then knows the real ids, as there.
std::vector<DataRow> check_data(const recipe::Settings& settings, objective::Distillation& objective);

}  // namespace limbeck::check
