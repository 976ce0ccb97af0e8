// The options by which a command without a recipe names one model, and the request they amount to.
#pragma once
#include "modules/models/load_model.h"
#include "trainer/cli/console.h"
#include "trainer/recipe/option_table.h"
#include "trainer/recipe/settings.h"

namespace limbeck::cli {

void declare_single_model(recipe::OptionTable& table);
models::ModelRequest single_model(const recipe::Settings& settings);
// What loading had to convert or leave aside.
void report_load(const models::BuiltModel& built, Console& console);

}  // namespace limbeck::cli
