#include "trainer/profile/assessment.h"

#include <algorithm>

#include "kernels/operator/cuda_library.h"
#include "modules/errors.h"
#include "modules/memory/allocator.h"
#include "modules/models/weights/save_model.h"
#include "modules/precision/contract_modules.h"
#include "trainer/agreement/data_guard.h"
#include "trainer/build/recipe_pair.h"
#include "trainer/data/measured_rows.h"
#include "trainer/evaluate/evaluator.h"
#include "trainer/profile/subject.h"

namespace limbeck::profile {
namespace {

using nlohmann::ordered_json;

constexpr int64_t kEndOfSchedule = 1'000'000;

// Of the weights' files in a folder of such a model.
uint64_t bytes_of_files(const models::BuiltModel& student) {
  const auto modules = precision::contract_modules(*student.model);
  models::SaveOptions options;
  options.packed = std::any_of(modules.begin(), modules.end(),
                               [](const auto& module) { return module->precision().quantized.has_value(); });
  return models::bytes_of_saved(student, options);
}

ordered_json quality_of(const RowRequest& request, const recipe::Settings& placed,
                        const std::shared_ptr<objective::ModelPair>& pair) {
  const data::DataRequest request_of_rows = data::validation_data(placed);
  const data::DataSource source(agreement::fitted(request_of_rows, *pair));
  const auto objective = objective_of(placed, request.registries, pair,
                                      {{source.manifest(), "data.validation " + placed.where("data.validation")}});
  objective::Progress at_end;
  at_end.step = at_end.total_steps = kEndOfSchedule;
  const auto solo = parallel::make_solo();
  const data::BatchSpan span = data::evaluated_batches(placed).of(source.batches_per_epoch());
  const evaluate::Evaluation found = evaluate::evaluate(*objective, source, span, at_end, *solo);
  const auto [name, value] = evaluate::judged_by(found, "auto");
  const double* f1 = found.find("macro_f1");
  return {{"name", name},
          {"value", value},
          {"f1", f1 == nullptr ? ordered_json() : ordered_json(*f1)},
          {"measured_on", data::measured_rows(source, request_of_rows, span)}};
}

// A number that cannot be had leaves the others.
template <class Measure>
void put_or_reason(const std::string& name, ordered_json& found, const Measure& measure) {
  found[name] = found[name + "_reason"] = nullptr;
  try {
    found[name] = measure();
  } catch (const Error& error) {
    found[name + "_reason"] = error.what();
  }
}

}  // namespace

ordered_json assessment(const RowRequest& request) {
  memory::tune_allocator();
  if (request.device.is_cuda()) kernels::cuda_available();
  const recipe::Settings placed = placed_settings(request.settings, request.precision, request.device);
  ordered_json found = ordered_json::object();
  std::shared_ptr<objective::ModelPair> pair;
  put_or_reason("quality", found, [&] {
    if (!placed.given("data.validation")) throw UsageError("the recipe names no data.validation");
    // With the teacher, where terms compare with one.
    pair = build::build_pair(placed, objective::Materialize::kWeights);
    return quality_of(request, placed, pair);
  });
  put_or_reason("bytes_on_disk", found, [&]() -> ordered_json {
    if (!pair) pair = build::build_pair(placed.with("teacher.kind", "none"), objective::Materialize::kWeights);
    return bytes_of_files(pair->student);
  });
  return found;
}

}  // namespace limbeck::profile
