// Scores of rows as they are measured, one whole line of JSON each: whoever is killed goes on behind the last whole
// line, with the same bits. Its first line says of which model, data and formats they are; those of others are refused.
#pragma once
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "trainer/metrics/append_file.h"
#include "trainer/quantize/joint_measure.h"
#include "trainer/quantize/score_meter.h"

namespace limbeck::quantize {

// Of all its parameters.
std::string digest_of(const models::BuiltModel& model);

class ScoreFile {
 public:
  // What may not differ: the model, the data and how rows are cut from them, the formats, the modules.
  static nlohmann::ordered_json identity(const models::BuiltModel& model, const FormatTable& table,
                                         at::ScalarType floats, const nlohmann::ordered_json& data);

  // Made when it is not there. UsageError where it is of something else, InputDataError for a line that is none of
  // ours.
  ScoreFile(const std::filesystem::path& path, const nlohmann::ordered_json& identity);
  // Of the scores that a file begins with; empty where there are none, or none that can be read.
  static std::string formats_in(const std::filesystem::path& path);

  // Null: not measured yet.
  const RowScore* find(int64_t row) const;
  void add(int64_t row, RowScore score);
  // Of a module by its place, alone in each format, on a row; null: not measured yet.
  const std::vector<double>* alone(size_t module, int64_t row) const;
  void add_alone(size_t module, int64_t row, std::vector<double> kl);
  // Of a whole mix, by the format of each module, on a row; null: not measured yet.
  const RowDivergence* divergence(const std::string& mix, int64_t row) const;
  void add_divergence(const std::string& mix, int64_t row, const RowDivergence& found);

 private:
  void read(const std::filesystem::path& path, const nlohmann::ordered_json& identity);
  void write(const nlohmann::ordered_json& line);

  std::map<int64_t, RowScore> rows_;
  std::map<std::pair<size_t, int64_t>, std::vector<double>> alone_;
  std::map<std::pair<std::string, int64_t>, RowDivergence> divergences_;
  bool has_identity_ = false;
  std::unique_ptr<metrics::AppendFile> file_;
};

}  // namespace limbeck::quantize
