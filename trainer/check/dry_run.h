// `limbeck check`: builds the models, projectors, objective and optimizer of a recipe on meta, runs the real update,
// the evaluation forward and generation there, and reports the contract, the casts, the memory plan and every
// violation. No weights are read: a 70B recipe takes seconds on a laptop.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "trainer/check/data_check.h"
#include "trainer/check/module_table.h"
#include "trainer/objective/distillation.h"
#include "trainer/recipe/settings.h"
#include "trainer/registry.h"

namespace limbeck::check {

struct CastRow {
  std::string place, from, to, phase;
  int64_t count = 0, bytes = 0;
};

// To the row of the same place, dtypes and phase, or as a new one.
void add_cast(const CastRow& cast, std::vector<CastRow>& rows);

struct MemoryRow {
  std::string what;
  int64_t bytes = 0;
};

struct CheckReport {
  std::vector<DataRow> data;
  std::vector<ModuleRow> modules;
  std::vector<CastRow> casts;
  Learning learning;
  int ranks = 1;
  std::vector<std::string> notes;     // what the objective has to say of the recipe
  std::vector<MemoryRow> memory;      // of each rank
  int64_t peak_bytes = 0;             // of training with its evaluations: what a rank must hold in tensors and graphs
  int64_t checkpoint_copy_bytes = 0;  // on the host beside that, from the first checkpoint on
  int64_t operators = 0;              // that the recorder saw
  std::vector<std::string> stored_wrongly;  // parameters outside their contract
  std::vector<std::string> ran_wrongly;     // what running it on meta showed
  std::vector<std::string> unreached;       // trained parameters that no loss has a path to
  bool passed() const { return stored_wrongly.empty() && ran_wrongly.empty(); }
};

// What the mutation tests break: the models between building and checking, a batch between its placing and its use.
struct Tamper {
  std::function<void(objective::Distillation&)> models;
  std::function<void(data::Batch&)> batch;
};

// The plan is that of one of so many ranks.
CheckReport dry_run(const recipe::Settings& settings, const Registries& registries, int ranks = 1,
                    const Tamper& tamper = {});

}  // namespace limbeck::check
