#include "trainer/quantize/sweep_scores.h"

#include <fmt/format.h>

#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>

#include "modules/errors.h"
#include "modules/io/json_file.h"
#include "modules/io/json_text.h"
#include "modules/precision/precision.h"

namespace limbeck::quantize {

namespace {

struct Found {
  std::optional<double> kl;
  std::string reason;  // where there is none
};
using Measured = std::map<std::pair<std::string, std::string>, Found>;  // by module and format

Measured measured_by(const std::filesystem::path& file) {
  const auto json = io::parse_json(io::read_json_text(file), file.string());
  Measured found;
  try {
    for (const auto& one : json.at("candidates")) {
      Found& of_one = found[{one.at("module"), one.at("format")}];
      if (one.at("kl").is_number()) of_one.kl = one.at("kl").get<double>();
      of_one.reason = one.at("status").get<std::string>() + ": " + one.at("reason").get<std::string>();
    }
  } catch (const nlohmann::json::exception& fault) {
    throw InputDataError(
        fmt::format("sweep {}: {}; wanted the sweep.json of a run of `limbeck sweep`", file.string(), fault.what()));
  }
  return found;
}

}  // namespace

RowScore scores_of_sweep(const FormatTable& table, const std::filesystem::path& sweep, at::ScalarType floats) {
  const Measured measured = measured_by(sweep);
  RowScore scores;
  scores.targets = 1;  // they are means
  for (const Candidate& module : table.modules()) {
    ModuleScore& score = scores.modules.emplace_back();
    for (size_t i = 0; i < table.formats().size(); ++i) {
      const StoredFormat& format = table.formats()[i];
      const std::string name = format.packed ? format.name : precision::dtype_name(floats);
      const auto found = measured.find({module.path, name});
      const bool same = !format.packed && floats == at::kFloat;
      const bool known = found != measured.end() && found->second.kl.has_value();
      if (!known && !same && module.bytes[i]) {
        throw UsageError(fmt::format(
            "sweep {}: has no KL of {} in {} ({}): sweep with --formats that have it, leave it out of "
            "--formats here, or the module to a --rule",
            sweep.string(), module.path, name, found == measured.end() ? "not tried" : found->second.reason));
      }
      score.losses.push_back(known ? *found->second.kl : 0.0);
    }
  }
  return scores;
}

}  // namespace limbeck::quantize
