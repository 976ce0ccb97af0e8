// The options by which a command without a recipe names one model, and the request they amount to.
#pragma once
#include <optional>

#include "modules/adapters/folder/peft_folder.h"
#include "modules/models/weights/load_model.h"
#include "trainer/cli/console/console.h"
#include "trainer/data/data_request.h"
#include "trainer/recipe/option_table.h"
#include "trainer/recipe/settings.h"

namespace limbeck::cli {

void declare_single_model(recipe::OptionTable& table);
models::ModelRequest single_model(const recipe::Settings& settings);
// --rule, of a command that has it: each begins with "model".
std::vector<precision::Rule> rules_of_model(const recipe::Settings& settings);
// --adapter, put on the model; nothing where it was not given. `request`: all but the folder.
std::optional<adapters::LoadedAdapter> load_named_adapter(const recipe::Settings& settings, models::BuiltModel& built,
                                                          adapters::AdapterRequest request, Console& console);
// --output of a command that writes a model.
void declare_output_folder(recipe::OptionTable& table);
// A tensor of ids or a mask as int64; InputDataError names one that is none.
at::Tensor integer_input(const std::filesystem::path& file, const std::string& name, const at::Tensor& tensor);
// What loading had to convert or leave aside.
void report_load(const models::BuiltModel& built, Console& console);

// The data of --data, --sequence-length and --packing, all of them once and in the order in which they are stored.
data::DataRequest rows_in_order(const recipe::Settings& settings, const models::BuiltModel& built, int64_t batch_size);

}  // namespace limbeck::cli
