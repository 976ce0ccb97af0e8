#include "trainer/check/data_check.h"

#include "modules/errors.h"
#include "trainer/data/data_request.h"

namespace limbeck::check {

namespace {

DataRow checked_row(const std::string& key, const data::DataRequest& request) {
  DataRow row;
  row.key = key;
  row.folder = request.folder.string();
  row.origin = request.origin;
  std::error_code unknown;
  const bool there = std::filesystem::exists(request.folder, unknown);
  try {
    row.plan = data::plan_data(request);
  } catch (const InputDataError& error) {
    if (there || unknown) throw;
    row.absent = error.what();
    return row;
  }
  return row;
}

}  // namespace

std::vector<DataRow> check_data(const recipe::Settings& settings) {
  std::vector<DataRow> rows;
  if (settings.given("data.train")) {
    rows.push_back(checked_row("data.train", data::training_data(settings)));
  }
  if (settings.given("data.validation")) {
    rows.push_back(checked_row("data.validation", data::validation_data(settings)));
  }
  return rows;
}

int64_t documents_of_a_row(const std::vector<DataRow>& rows) {
  for (const DataRow& row : rows) {
    const int64_t count = row.plan.rows;
    if (row.key == "data.train" && count > 0) return (row.plan.summary.documents + 2 * count - 1) / count;
  }
  return 1;
}

std::vector<agreement::DataInUse> in_use(const std::vector<DataRow>& rows) {
  std::vector<agreement::DataInUse> sets;
  for (const DataRow& row : rows) {
    if (row.absent.empty()) sets.push_back({row.plan.summary, row.origin});
  }
  return sets;
}

}  // namespace limbeck::check
