#include "trainer/quantize/score_file.h"

#include <fmt/format.h>

#include <fstream>

#include "modules/errors.h"
#include "modules/io/crc32c.h"
#include "modules/memory/allocator.h"
#include "modules/precision/casts.h"
#include "modules/precision/contract_modules.h"
#include "trainer/metrics/whole_lines.h"

namespace limbeck::quantize {

namespace {

using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

Json json_of(int64_t row, const RowScore& score) {
  Json modules = Json::array();
  for (const ModuleScore& module : score.modules)
    modules.push_back({module.gradient, module.outputs, module.squares, module.count, module.losses});
  return {
      {"row", row}, {"targets", score.targets}, {"loss", score.loss}, {"modules", modules}, {"experts", score.experts}};
}

RowScore score_of(const Json& line) {
  RowScore score;
  score.rows = 1;
  score.targets = line.at("targets");
  score.loss = line.at("loss");
  for (const Json& module : line.at("modules")) {
    score.modules.push_back(
        {module.at(0), module.at(1), module.at(2), module.at(3), module.at(4).get<std::vector<double>>()});
  }
  score.experts = line.at("experts").get<std::map<std::string, std::vector<int64_t>>>();
  return score;
}

void require_same(const fs::path& path, const Json& found, const Json& wanted) {
  if (found == wanted) return;
  for (const auto& [key, value] : wanted.items()) {
    const Json other = found.contains(key) ? found[key] : Json();
    if (other == value) continue;
    const auto shown = [](const Json& json) { return json.is_array() ? std::string() : " (" + json.dump() + ")"; };
    throw UsageError(
        fmt::format("{}: holds scores of other {}{}, wanted those of this run{}: name another file by "
                    "--scores, or remove it",
                    path.string(), key, shown(other), shown(value)));
  }
  throw UsageError(path.string() + ": is no file of scores that this version reads: name another one by --scores");
}

}  // namespace

std::string digest_of(const models::BuiltModel& model) {
  uint32_t sum = 0;
  for (const auto& [path, parameter] : precision::path_parameters(*model.model)) {
    const at::Tensor values = precision::move(parameter.detach(), c10::kCPU).contiguous();
    sum = io::crc32c(path.data(), path.size(), sum);
    sum = io::crc32c(values.const_data_ptr(), values.nbytes(), sum);
  }
  return fmt::format("{:08x}", sum);
}

Json ScoreFile::identity(const models::BuiltModel& model, const FormatTable& table, at::ScalarType floats,
                         const Json& data) {
  Json formats = Json::array(), modules = Json::array();
  for (const StoredFormat& format : table.formats()) formats.push_back(format.name);
  for (const Candidate& module : table.modules()) modules.push_back(module.path);
  return {{"limbeck_scores", 2},
          {"model", digest_of(model)},
          {"data", data},
          {"formats", formats},
          {"floats", precision::dtype_name(floats)},
          {"modules", modules}};
}

ScoreFile::ScoreFile(const fs::path& path, const Json& identity) {
  read(path, identity);
  std::error_code there;
  if (path.has_parent_path()) fs::create_directories(path.parent_path(), there);
  file_ = std::make_unique<metrics::AppendFile>(path);
  if (!has_identity_) write(identity);
}

std::string ScoreFile::formats_in(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::string line;
  std::getline(in, line);
  const Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("formats") || !json["formats"].is_array()) return "";
  std::string names;
  for (const Json& name : json["formats"])
    names += fmt::format("{}{}", names.empty() ? "" : ",", name.is_string() ? name.get<std::string>() : "");
  return names;
}

void ScoreFile::read(const fs::path& path, const Json& identity) {
  int64_t number = 0;
  for (const std::string& line : metrics::whole_lines(path)) {
    ++number;
    try {
      const Json json = Json::parse(line);
      if (number == 1) {
        require_same(path, json, identity);
        has_identity_ = true;
        continue;
      }
      if (json.contains("mix")) {
        divergences_[{json.at("mix").get<std::string>(), json.at("row").get<int64_t>()}] = {
            json.at("targets"), json.at("kl"), json.at("float_loss"), json.at("loss")};
        continue;
      }
      if (json.contains("alone")) {
        const size_t module = json.at("alone").get<size_t>();
        auto kl = json.at("kl").get<std::vector<double>>();
        if (module >= identity["modules"].size() || kl.size() != identity["formats"].size())
          throw std::out_of_range("alone");
        alone_[{module, json.at("row").get<int64_t>()}] = std::move(kl);
        continue;
      }
      RowScore score = score_of(json);
      if (score.modules.size() != identity["modules"].size()) throw std::out_of_range("modules");
      for (const ModuleScore& module : score.modules) {
        if (module.losses.size() != identity["formats"].size()) throw std::out_of_range("formats");
      }
      rows_[json.at("row").get<int64_t>()] = std::move(score);
    } catch (const nlohmann::json::exception&) {
      throw InputDataError(
          fmt::format("{}:{}: is no line of scores: remove the file to measure anew", path.string(), number));
    } catch (const std::out_of_range&) {
      throw InputDataError(fmt::format(
          "{}:{}: has not a score for each module and format: remove the file to measure anew", path.string(), number));
    }
  }
}

const RowScore* ScoreFile::find(int64_t row) const {
  const auto found = rows_.find(row);
  return found == rows_.end() ? nullptr : &found->second;
}

const std::vector<double>* ScoreFile::alone(size_t module, int64_t row) const {
  const auto found = alone_.find({module, row});
  return found == alone_.end() ? nullptr : &found->second;
}

void ScoreFile::add_alone(size_t module, int64_t row, std::vector<double> kl) {
  write({{"alone", module}, {"row", row}, {"kl", kl}});
  alone_[{module, row}] = std::move(kl);
}

const RowDivergence* ScoreFile::divergence(const std::string& mix, int64_t row) const {
  const auto found = divergences_.find({mix, row});
  return found == divergences_.end() ? nullptr : &found->second;
}

void ScoreFile::add_divergence(const std::string& mix, int64_t row, const RowDivergence& found) {
  write({{"mix", mix},
         {"row", row},
         {"targets", found.targets},
         {"kl", found.kl},
         {"float_loss", found.float_loss},
         {"loss", found.loss}});
  divergences_[{mix, row}] = found;
}

void ScoreFile::write(const Json& line) {
  file_->write(line.dump() + "\n");
  if (!file_->fault().empty()) throw IoError(file_->fault());
  memory::give_back_holes();
}

void ScoreFile::add(int64_t row, RowScore score) {
  write(json_of(row, score));
  rows_[row] = std::move(score);
}

}  // namespace limbeck::quantize
