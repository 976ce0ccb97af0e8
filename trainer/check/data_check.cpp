#include "trainer/check/data_check.h"

#include "modules/errors.h"
#include "trainer/data/data_request.h"

namespace limbeck::check {

namespace {

DataRow checked_row(const std::string& key, const data::DataRequest& request, objective::Distillation& objective) {
  DataRow row;
  row.key = key;
  row.folder = request.folder.string();
  std::error_code unknown;
  const bool there = std::filesystem::exists(request.folder, unknown);
  try {
    row.plan = data::plan_data(request);
  } catch (const InputDataError& error) {
    if (there || unknown) throw;
    row.absent = error.what();
    return row;
  }
  objective.accept_data(row.plan.summary, request.origin);
  return row;
}

}  // namespace

std::vector<DataRow> check_data(const recipe::Settings& settings, objective::Distillation& objective) {
  std::vector<DataRow> rows;
  if (settings.given("data.train")) {
    rows.push_back(checked_row("data.train", data::training_data(settings), objective));
  }
  if (settings.given("data.validation")) {
    rows.push_back(checked_row("data.validation", data::validation_data(settings), objective));
  }
  return rows;
}

}  // namespace limbeck::check
