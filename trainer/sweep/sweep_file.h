// What a sweep has measured, one whole line of JSON for each candidate and batch of rows: whoever is killed goes on
// behind the last whole line, to the same bits. Its first line says of which model and rows it is; those of others are
// refused. Formats may be added later.
#pragma once
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>

#include "trainer/metrics/append_file.h"
#include "trainer/sweep/paired_rows.h"

namespace limbeck::sweep {

// What became of a candidate on a batch: rows, or why there are none.
enum class Status { kMeasured, kOverflowed, kFailed };
const char* status_name(Status status);  // "measured", …

struct BatchOutcome {
  Status status = Status::kMeasured;
  std::string reason = {};
  Rows rows = {};
};

// Of a candidate, found once: the bytes of its modules, and the seconds that they take for one batch; none where they
// were not run alone.
struct Cost {
  int64_t bytes = 0, bytes_before = 0;
  std::optional<double> seconds = {}, seconds_before = {};
};

class SweepFile {
 public:
  // Made when it is not there. UsageError where it is of something else, InputDataError for a line that is none of
  // ours.
  SweepFile(const std::filesystem::path& path, const nlohmann::ordered_json& identity);

  // `key`: of a candidate, or the name of a whole model. Null: not measured yet.
  const BatchOutcome* find(const std::string& key, int64_t batch) const;
  const BatchOutcome& add(const std::string& key, int64_t batch, BatchOutcome outcome);
  const Cost* cost(const std::string& key) const;
  void add_cost(const std::string& key, const Cost& cost);
  int64_t lines_before() const { return lines_before_; }  // of measures, when it was opened

 private:
  void take(const nlohmann::ordered_json& line);
  void write(const nlohmann::ordered_json& line);

  std::map<std::pair<std::string, int64_t>, BatchOutcome> outcomes_;
  std::map<std::string, Cost> costs_;
  int64_t lines_before_ = 0;
  std::unique_ptr<metrics::AppendFile> file_;
};

}  // namespace limbeck::sweep
