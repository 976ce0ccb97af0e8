#include "trainer/cli/commands/check_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "modules/errors.h"
#include "trainer/build/adapter_options.h"
#include "trainer/cli/commands/evaluation_table.h"
#include "trainer/cli/console/text_table.h"

namespace limbeck::cli {
namespace {

using check::CheckReport;

// No line is wider: on a terminal, in a letter, in a README.
constexpr int kWidest = 100;
int table_width(int terminal) { return terminal > 0 ? std::min(terminal, kWidest) : kWidest; }

// What is stored, and below it what differs from it: "in, out float32".
std::string dtypes_text(const check::ModuleRow& row) {
  if (row.input == row.compute && row.compute == row.output) {
    return row.input == row.storage ? row.storage : fmt::format("{}\nruns in {}", row.storage, row.compute);
  }
  std::vector<std::pair<std::string, std::string>> others;  // dtype, who has it
  for (const auto& [name, dtype] :
       {std::pair{"in", &row.input}, std::pair{"compute", &row.compute}, std::pair{"out", &row.output}}) {
    if (*dtype == row.storage || *dtype == "ids") continue;
    const auto same = std::find_if(others.begin(), others.end(), [&](const auto& one) { return one.first == *dtype; });
    if (same == others.end()) {
      others.emplace_back(*dtype, name);
    } else {
      same->second += fmt::format(", {}", name);
    }
  }
  std::string text = row.storage;
  for (const auto& [dtype, who] : others) text += fmt::format("\n{} {}", who, dtype);
  return text;
}

// Numbers for what came from somewhere, in the order of their coming; each place is said once, below the table.
class Sources {
 public:
  std::string number_of(const std::string& source) {
    const auto found = std::find(sources_.begin(), sources_.end(), source);
    const auto number = found - sources_.begin() + 1;
    if (found == sources_.end()) sources_.push_back(source);
    return std::to_string(number);
  }
  std::string text(int width) const {
    TextTable table({{"from", Align::kRight}, {"which is"}});
    for (size_t i = 0; i < sources_.size(); ++i) table.add_row({std::to_string(i + 1), sources_[i]});
    return table.render(width);
  }

 private:
  std::vector<std::string> sources_;
};

std::string modules_text(const CheckReport& report, int width) {
  TextTable table({{"module"},
                   {"dtype"},
                   {"count", Align::kRight},
                   {"parameters", Align::kRight},
                   {"bytes", Align::kRight},
                   {"from", Align::kRight}});
  Sources sources;
  std::set<std::string> devices;
  for (const check::ModuleRow& row : report.modules) devices.insert(row.device);
  for (const check::ModuleRow& row : report.modules) {
    table.add_row({row.path, dtypes_text(row) + (devices.size() > 1 ? "\non " + row.device : ""),
                   std::to_string(row.modules), row.tied ? "tied" : std::to_string(row.parameters),
                   human_bytes(row.bytes), sources.number_of(row.source)});
  }
  return fmt::format("Contract (accumulation, softmax and norms in float32 inside the operators){}\n",
                     devices.size() == 1 ? ", all on " + *devices.begin() : "") +
         table.render(width) + "\n" + sources.text(width);
}

std::string known(int64_t number) { return number < 0 ? "?" : std::to_string(number); }

std::string data_text(const CheckReport& report, int width) {
  if (report.data.empty()) return "";
  TextTable table({{"data"},
                   {"documents", Align::kRight},
                   {"tokens", Align::kRight},
                   {"greatest id", Align::kRight},
                   {"tokenizer's ids", Align::kRight},
                   {"rows", Align::kRight},
                   {"batches", Align::kRight}});
  TextTable notes({{"data"}, {"what of it is not used as it is"}});
  for (const check::DataRow& row : report.data) {
    if (!row.absent.empty()) {
      notes.add_row({row.key, fmt::format("not checked: there is no {}", row.folder)});
      continue;
    }
    const data::Manifest& m = row.plan.summary;
    const auto both = [](const std::string& own, const std::string& teacher, bool two) {
      return two ? own + "\nteacher " + teacher : own;
    };
    const bool two = m.teacher_vocabulary > 0;
    table.add_row({row.key, std::to_string(m.documents), std::to_string(m.tokens),
                   both(known(m.largest_id), known(m.teacher_largest_id), two),
                   both(std::to_string(m.vocabulary), std::to_string(m.teacher_vocabulary), two), known(row.plan.rows),
                   known(row.plan.batches)});
    for (const std::string& note : row.plan.notes) notes.add_row({row.key, note});
  }
  const std::string read = table.render(width), left = notes.render(width);
  return "Data\n" + read + (read.empty() || left.empty() ? "" : "\n") + left;
}

std::string trained_text(const CheckReport& report) {
  const double share = report.learning.of == 0 ? 0.0
                                               : 100.0 * static_cast<double>(report.learning.trained) /
                                                     static_cast<double>(report.learning.of);
  return fmt::format("Trained: {} of {} parameters of the student and its projectors ({:.3g} %)\n",
                     report.learning.trained, report.learning.of, share);
}

// A change inside an operator moves nothing.
std::string moved_text(int64_t bytes) { return bytes == 0 ? "inside" : human_bytes(bytes); }

std::string casts_text(const CheckReport& report, int width) {
  if (report.casts.empty()) return "Named casts: none\n";
  TextTable table({{"cast"}, {"from"}, {"to"}, {"in"}, {"count", Align::kRight}, {"bytes moved", Align::kRight}});
  std::vector<check::CastRow> rows;
  for (check::CastRow row : report.casts) {
    row.place = check::without_number(row.place, ".hidden.");  // as layers are, which they stand for
    check::add_cast(row, rows);
  }
  for (const check::CastRow& row : rows) {
    table.add_row({row.place, row.from, row.to, row.phase, std::to_string(row.count), moved_text(row.bytes)});
  }
  return "Named casts\n" + table.render(width);
}

std::string memory_text(const CheckReport& report, const recipe::Settings& settings, int width) {
  const std::string whose = report.ranks > 1 ? fmt::format("each of {} ranks", report.ranks) : "one rank";
  TextTable table({{"memory, " + whose}, {"bytes", Align::kRight}, {"", Align::kRight}});
  for (const check::MemoryRow& row : report.memory) {
    table.add_row({row.what, std::to_string(row.bytes), human_bytes(row.bytes)});
  }
  return fmt::format("Memory plan for a batch of {} x {} tokens\n", settings.integer("data.batch_size"),
                     settings.integer("data.sequence_length")) +
         table.render(width);
}

std::vector<std::string> violations_of(const CheckReport& report) {
  std::vector<std::string> violations = report.stored_wrongly;
  violations.insert(violations.end(), report.ran_wrongly.begin(), report.ran_wrongly.end());
  return violations;
}

// What is not known is null.
nlohmann::ordered_json data_json(const check::DataRow& row) {
  nlohmann::ordered_json json = {{"data", row.key}, {"folder", row.folder}, {"there", row.absent.empty()}};
  if (!row.absent.empty()) return json;
  const auto put = [&](const char* key, int64_t number) {
    json[key] = number < 0 ? nlohmann::ordered_json() : nlohmann::ordered_json(number);
  };
  const data::Manifest& m = row.plan.summary;
  put("documents", m.documents);
  put("tokens", m.tokens);
  put("vocabulary", m.vocabulary);
  put("greatest_id", m.largest_id);
  if (m.teacher_vocabulary > 0) {
    put("teacher_vocabulary", m.teacher_vocabulary);
    put("teacher_greatest_id", m.teacher_largest_id);
  }
  put("rows", row.plan.rows);
  put("batches", row.plan.batches);
  put("truncated_documents", row.plan.truncated);
  put("tokens_not_used", row.plan.cut_tokens);
  json["notes"] = row.plan.notes;
  return json;
}

}  // namespace

void print_check(const CheckReport& report, const recipe::Settings& settings, Console& console, int terminal) {
  const int width = table_width(terminal);
  console.result(modules_text(report, width));
  if (!report.data.empty()) console.result(data_text(report, width));
  console.result(trained_text(report));
  console.result(casts_text(report, width));
  console.result(memory_text(report, settings, width));
}

nlohmann::ordered_json check_json(const CheckReport& report) {
  nlohmann::ordered_json json;
  json["modules"] = nlohmann::ordered_json::array();
  for (const check::ModuleRow& row : report.modules) {
    json["modules"].push_back({{"module", row.path},
                               {"role", row.role},
                               {"storage", row.storage},
                               {"in", row.input},
                               {"compute", row.compute},
                               {"out", row.output},
                               {"device", row.device},
                               {"modules", row.modules},
                               {"parameters", row.parameters},
                               {"tied", row.tied},
                               {"bytes", row.bytes},
                               {"from", row.source}});
  }
  json["casts"] = nlohmann::ordered_json::array();
  for (const check::CastRow& row : report.casts) {
    json["casts"].push_back({{"place", row.place},
                             {"from", row.from},
                             {"to", row.to},
                             {"phase", row.phase},
                             {"count", row.count},
                             {"bytes", row.bytes}});
  }
  json["data"] = nlohmann::ordered_json::array();
  for (const check::DataRow& row : report.data) json["data"].push_back(data_json(row));
  json["trained_parameters"] = report.learning.trained;
  json["ranks"] = report.ranks;
  for (const check::MemoryRow& row : report.memory) json["memory"][row.what] = row.bytes;
  json["peak_bytes"] = report.peak_bytes;
  json["checkpoint_copy_bytes"] = report.checkpoint_copy_bytes;
  json["operators"] = report.operators;
  json["violations"] = violations_of(report);
  return json;
}

void warn_of_frozen_codes(const CheckReport& report, const recipe::Settings& settings, Console& console) {
  const auto packed = std::find_if(report.modules.begin(), report.modules.end(), [](const check::ModuleRow& row) {
    return row.path.starts_with("student.") && row.bytes > 0 && kernels::find_format(row.storage).has_value();
  });
  if (packed == report.modules.end() || build::trains_adapter(settings)) return;
  console.warning(
      fmt::format("[{}] is stored in {} ({}) without an adapter: quantized weights are frozen, and only {} of {} "
                  "parameters train; add --adapter.kind=lora to train beside them",
                  packed->path, packed->storage, packed->source, report.learning.trained, report.learning.of));
}

void refuse_violations(const CheckReport& report, Console& console, bool speaks) {
  const std::vector<std::string> violations = violations_of(report);
  if (violations.empty()) return;
  for (size_t i = 0; speaks && i + 1 < violations.size(); ++i) console.warning(violations[i]);
  throw ContractError(violations.back() + fmt::format(" ({} violations in all)", violations.size()));
}

}  // namespace limbeck::cli
