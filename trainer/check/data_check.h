// The data of a recipe, by the manifests alone: what `check` tells and refuses, and `train` refuses
// before a weight is read.
#pragma once
#include <string>
#include <vector>

#include "trainer/agreement/pair_agreement.h"
#include "trainer/data/data_plan.h"
#include "trainer/recipe/settings.h"

namespace limbeck::check {

struct DataRow {
  std::string key, folder, origin;
  data::DataPlan plan;
  std::string absent;  // why there is no plan: a folder that is yet to be made. `train` refuses it in these words
};

// data.train and data.validation, where the recipe names them. Whatever of a manifest does not fit the recipe is an
// error, as at the start of training.
std::vector<DataRow> check_data(const recipe::Settings& settings);

// Those that are there, for the agreement with the models; of rows that outlive them.
std::vector<agreement::DataInUse> in_use(const std::vector<DataRow>& rows);

// Of packed rows of data.train on the average, those that a row's ends cut among them; 1 where the data do not say.
int64_t documents_of_a_row(const std::vector<DataRow>& rows);

}  // namespace limbeck::check
