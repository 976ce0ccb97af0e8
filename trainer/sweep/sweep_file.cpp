#include "trainer/sweep/sweep_file.h"

#include <fmt/format.h>

#include <array>

#include "modules/errors.h"
#include "trainer/metrics/whole_lines.h"

namespace limbeck::sweep {

namespace {

using SweepJson = nlohmann::ordered_json;

constexpr std::array kStatuses = {Status::kMeasured, Status::kOverflowed, Status::kFailed};

SweepJson json_of(const BatchOutcome& outcome) {
  if (outcome.status != Status::kMeasured) return {{"status", status_name(outcome.status)}, {"reason", outcome.reason}};
  SweepJson rows = SweepJson::array();
  for (const RowMeasure& row : outcome.rows)
    rows.push_back({row.targets, row.right, row.loss, row.kl, row.squares, row.values});
  return {{"status", status_name(outcome.status)}, {"rows", rows}};
}

BatchOutcome outcome_of(const SweepJson& line) {
  BatchOutcome outcome;
  const auto name = line.at("status").get<std::string>();
  for (const Status status : kStatuses) {
    if (name == status_name(status)) outcome.status = status;
  }
  if (outcome.status != Status::kMeasured) {
    outcome.reason = line.at("reason");
    return outcome;
  }
  for (const SweepJson& row : line.at("rows"))
    outcome.rows.push_back({row.at(0), row.at(1), row.at(2), row.at(3), row.at(4), row.at(5)});
  return outcome;
}

std::optional<double> seconds_of(const SweepJson& line, const char* name) {
  return line.at(name).is_null() ? std::nullopt : std::optional(line.at(name).get<double>());
}

void require_same_sweep(const std::filesystem::path& path, const SweepJson& found, const SweepJson& wanted) {
  for (const auto& [key, value] : wanted.items()) {
    const SweepJson other = found.is_object() && found.contains(key) ? found[key] : SweepJson();
    if (other == value) continue;
    throw UsageError(fmt::format(
        "{}: holds a sweep of another {} ({}), wanted that of this one ({}): name another folder with --run=DIR, or "
        "remove the file",
        path.string(), key, other.dump(), value.dump()));
  }
}

}  // namespace

const char* status_name(Status status) {
  if (status == Status::kMeasured) return "measured";
  return status == Status::kOverflowed ? "overflowed" : "failed";
}

SweepFile::SweepFile(const std::filesystem::path& path, const SweepJson& identity) {
  int64_t number = 0;
  for (const std::string& text : metrics::whole_lines(path)) {
    ++number;
    try {
      const SweepJson line = SweepJson::parse(text);
      number == 1 ? require_same_sweep(path, line, identity) : take(line);
    } catch (const nlohmann::json::exception&) {
      throw InputDataError(
          fmt::format("{}:{}: is no line of a sweep: remove the file to measure anew", path.string(), number));
    }
  }
  lines_before_ = static_cast<int64_t>(outcomes_.size());
  file_ = std::make_unique<metrics::AppendFile>(path);
  if (number == 0) write(identity);
}

void SweepFile::take(const SweepJson& line) {
  const auto key = line.at("candidate").get<std::string>();
  if (line.contains("batch")) {
    outcomes_[{key, line.at("batch").get<int64_t>()}] = outcome_of(line);
    return;
  }
  costs_[key] = {line.at("bytes"), line.at("bytes_before"), seconds_of(line, "seconds"),
                 seconds_of(line, "seconds_before")};
}

const BatchOutcome* SweepFile::find(const std::string& key, int64_t batch) const {
  const auto found = outcomes_.find({key, batch});
  return found == outcomes_.end() ? nullptr : &found->second;
}

const BatchOutcome& SweepFile::add(const std::string& key, int64_t batch, BatchOutcome outcome) {
  SweepJson line = {{"candidate", key}, {"batch", batch}};
  line.update(json_of(outcome));
  write(line);
  return outcomes_[{key, batch}] = std::move(outcome);
}

const Cost* SweepFile::cost(const std::string& key) const {
  const auto found = costs_.find(key);
  return found == costs_.end() ? nullptr : &found->second;
}

void SweepFile::add_cost(const std::string& key, const Cost& cost) {
  const auto spelled = [](const std::optional<double>& seconds) { return seconds ? SweepJson(*seconds) : SweepJson(); };
  write({{"candidate", key},
         {"bytes", cost.bytes},
         {"bytes_before", cost.bytes_before},
         {"seconds", spelled(cost.seconds)},
         {"seconds_before", spelled(cost.seconds_before)}});
  costs_[key] = cost;
}

void SweepFile::write(const SweepJson& line) {
  file_->write(line.dump() + "\n");
  if (!file_->fault().empty()) throw IoError(file_->fault());
}

}  // namespace limbeck::sweep
