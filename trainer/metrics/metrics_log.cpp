#include "trainer/metrics/metrics_log.h"

#include <fmt/format.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <system_error>

#include "modules/errors.h"
#include "modules/io/atomic_file.h"

namespace limbeck::metrics {
namespace {

namespace fs = std::filesystem;

constexpr double kExactIntegers = 9007199254740992.0;  // 2^53: below it a whole double is an exact integer

bool belongs_before(const std::string& line, int64_t resume_step) {
  const auto value = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!value.is_object()) return false;  // half a line, or a flipped bit
  const auto step = value.find("step");
  return step != value.end() && step->is_number_integer() && step->get<int64_t>() <= resume_step;
}

// Keeps the lines up to resume_step; the number of those dropped.
int64_t drop_lines_after(const fs::path& path, int64_t resume_step) {
  if (!fs::exists(path)) return 0;
  std::ifstream file(path, std::ios::binary);
  if (!file) throw IoError(path.string() + ": cannot be read, wanted the lines of the run that is continued");
  std::string kept, line;
  int64_t dropped = 0;
  while (std::getline(file, line)) {
    // The last line has no end when the process died while writing it.
    if (!file.eof() && resume_step > 0 && belongs_before(line, resume_step)) {
      kept += line + '\n';
    } else {
      ++dropped;
    }
  }
  if (file.bad()) throw IoError(path.string() + ": cannot be read to its end");
  if (dropped == 0) return 0;
  io::write_atomically(path, kept);
  return dropped;
}

fs::path prepared(const fs::path& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) throw IoError(folder.string() + ": cannot be created: " + error.message() + "; set --run=DIR");
  // A stranger's folder may hold a FIFO that nobody writes to, or a link to a file of yours.
  const fs::path path = folder / "metrics.jsonl";
  const fs::file_type type = fs::symlink_status(path, error).type();
  if (type == fs::file_type::not_found || type == fs::file_type::regular) return path;
  const char* kind = type == fs::file_type::symlink     ? "a link"
                     : type == fs::file_type::directory ? "a folder"
                     : type == fs::file_type::fifo      ? "a FIFO"
                                                        : "no file";
  throw IoError(fmt::format("{}: is {}, wanted a regular file or none: choose another folder with --run=DIR",
                            path.string(), kind));
}

nlohmann::ordered_json as_json(double value) {
  if (!std::isfinite(value)) return nullptr;
  // Counts read as counts: 1024 and not 1024.0.
  if (std::trunc(value) == value && std::abs(value) < kExactIntegers) return static_cast<int64_t>(value);
  return value;
}

}  // namespace

MetricsLog::MetricsLog(const fs::path& run_folder, int64_t resume_step)
    : dropped_(drop_lines_after(prepared(run_folder), resume_step)),
      lines_(run_folder / "metrics.jsonl"),
      events_(run_folder, resume_step) {}

void MetricsLog::write(int64_t step, const std::vector<std::pair<std::string, double>>& values,
                       const std::string& phase) {
  nlohmann::ordered_json object = {{"step", step}, {"phase", phase}};
  std::vector<std::pair<std::string, double>> scalars;
  for (const auto& [name, value] : values) {
    if (object.contains(name)) {
      throw ContractError("metrics of step " + std::to_string(step) + ": '" + name +
                          "' came twice, wanted one value a name: rename the term");
    }
    object[name] = as_json(value);
    const bool prefixed = name.starts_with(phase + ".");
    scalars.emplace_back(phase + "/" + (prefixed ? name.substr(phase.size() + 1) : name), value);
  }
  lines_.write(object.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
  events_.write(step, scalars);
}

}  // namespace limbeck::metrics
