#include "trainer/cli/commands/profile_tables.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <set>
#include <vector>

#include "trainer/check/module_table.h"
#include "trainer/cli/commands/evaluation_table.h"
#include "trainer/cli/console/text_table.h"

namespace limbeck::cli {
namespace {

using nlohmann::ordered_json;

std::string said(const ordered_json& value) { return value.is_null() ? "" : value.get<std::string>(); }

std::string figure(const ordered_json& value, const char* format) {
  return value.is_null() ? "-" : fmt::format(fmt::runtime(format), value.get<double>());
}

std::string bytes_text(const ordered_json& value) { return value.is_null() ? "-" : human_bytes(value.get<int64_t>()); }

std::string quality_text(const ordered_json& quality) {
  if (quality.is_null()) return "-";
  std::string text = fmt::format("{} {:.4g}", quality.at("name").get<std::string>(), quality.at("value").get<double>());
  if (!quality.at("f1").is_null()) text += fmt::format("\nF1 {:.4g}", quality.at("f1").get<double>());
  return text;
}

// How many there are, and of how many, where time was up before.
std::string passes_text(const ordered_json& row) {
  const auto passes = row.at("passes").get<int64_t>();
  return row.at("cut").get<bool>() ? fmt::format("{} of {}", passes, row.at("passes_asked").get<int64_t>())
                                   : std::to_string(passes);
}

bool measured(const ordered_json& row) { return row.at("refused").is_null(); }

// Modules of layers under one name.
struct SumOfModules {
  double ms = 0, share = 0, flops = 0, bytes = 0, roofline = 0;
  std::string bound;
};

}  // namespace

std::string profile_table(const ordered_json& report, int width) {
  TextTable table({{"precision"},
                   {"device"},
                   {"work"},
                   {"mean ms", Align::kRight},
                   {"p50", Align::kRight},
                   {"p95", Align::kRight},
                   {"std", Align::kRight},
                   {"passes", Align::kRight},
                   {"tokens/s", Align::kRight},
                   {"on disk", Align::kRight},
                   {"peak", Align::kRight},
                   {"resident", Align::kRight},
                   {"quality"},
                   {"J", Align::kRight}});
  for (const auto& row : report.at("rows")) {
    if (!measured(row)) continue;
    const auto& latency = row.at("latency_ms");
    table.add_row({said(row.at("precision")), said(row.at("device")), said(row.at("work")),
                   figure(latency.at("mean"), "{:.2f}"), figure(latency.at("p50"), "{:.2f}"),
                   figure(latency.at("p95"), "{:.2f}"), figure(latency.at("std"), "{:.2f}"), passes_text(row),
                   figure(row.at("tokens_per_second"), "{:.0f}"), bytes_text(row.at("bytes_on_disk")),
                   bytes_text(row.at("peak_bytes")), bytes_text(row.at("peak_rss_bytes")),
                   quality_text(row.at("quality")), figure(row.at("energy").at("joules"), "{:.3g}")});
  }
  return table.render(width);
}

std::string passes_lines(const ordered_json& report) {
  std::map<std::string, std::set<std::string>> works;  // by what they read
  bool cut = false;
  for (const auto& row : report.at("rows")) {
    if (!measured(row)) continue;
    cut = cut || row.at("cut").get<bool>();
    const auto& read = row.at("read");
    const std::string why = read.at("reason").is_null() ? "" : fmt::format(" ({})", said(read.at("reason")));
    works[fmt::format("{} rows of {}, {} tokens without padding{}", read.at("rows").get<int64_t>(),
                      said(read.at("from")), read.at("tokens").get<int64_t>(), why)]
        .insert(said(row.at("work")));
  }
  std::string text;
  for (const auto& [rows, names] : works)
    text += fmt::format("{}a pass of {}: {}", text.empty() ? "" : "\n", fmt::join(names, " and "), rows);
  if (cut) text += "\npasses N of M: the row was cut when its time was up (profile.most_seconds; 0: it never is)";
  return text;
}

std::string refused_table(const ordered_json& report, int width) {
  TextTable table({{"not possible"}, {"device"}, {"work"}, {"because"}});
  for (const auto& row : report.at("rows")) {
    if (measured(row)) continue;
    table.add_row({said(row.at("precision")), said(row.at("device")), said(row.at("work")), said(row.at("refused"))});
  }
  return table.render(width);
}

std::string module_times_table(const ordered_json& report, int width, size_t most) {
  const auto& rows = report.at("rows");
  const auto first = std::find_if(rows.begin(), rows.end(), [](const auto& row) {
    return measured(row) && row.at("work").template get<std::string>() == "forward";
  });
  if (first == rows.end()) return "";
  std::map<std::string, SumOfModules> sums;
  for (const auto& module : first->at("modules")) {
    SumOfModules& sum = sums[check::without_layer(said(module.at("module")))];
    const auto more = [&](const char* key) { return module.at(key).is_null() ? 0 : module.at(key).get<double>(); };
    sum.ms += more("ms"), sum.share += more("share"), sum.flops += more("flops"), sum.bytes += more("bytes");
    sum.roofline += more("roofline_share") * more("ms");
    sum.bound = said(module.at("bound"));
  }
  std::vector<std::pair<std::string, SumOfModules>> sorted(sums.begin(), sums.end());
  std::stable_sort(sorted.begin(), sorted.end(),
                   [](const auto& a, const auto& b) { return a.second.ms > b.second.ms; });
  TextTable table({{fmt::format("{} on {}, forward", said(first->at("precision")), said(first->at("device")))},
                   {"ms", Align::kRight},
                   {"share", Align::kRight},
                   {"GFLOP", Align::kRight},
                   {"GFLOP/s", Align::kRight},
                   {"of the roofline", Align::kRight},
                   {"bound by"}});
  for (size_t i = 0; i < std::min(most, sorted.size()); ++i) {
    const auto& [name, sum] = sorted[i];
    table.add_row({name, fmt::format("{:.3f}", sum.ms), fmt::format("{:.1f} %", 100 * sum.share),
                   sum.flops > 0 ? fmt::format("{:.3f}", sum.flops / 1e9) : "-",
                   sum.flops > 0 && sum.ms > 0 ? fmt::format("{:.0f}", sum.flops / sum.ms / 1e6) : "-",
                   sum.roofline > 0 ? fmt::format("{:.0f} %", 100 * sum.roofline / sum.ms) : "-", sum.bound});
  }
  return table.render(width);
}

std::string machine_text(const ordered_json& report) {
  const auto& machine = report.at("machine");
  std::string text = said(machine.at("processor"));
  if (machine.contains("ceilings")) {
    text += fmt::format(", {}, {} threads; at most", said(machine.at("vector")), machine.at("threads").get<int>());
    for (const auto& [name, gflops] : machine.at("ceilings").at("gflops").items())
      text += fmt::format(" {} {:.0f} GFLOP/s,", name, gflops.get<double>());
    text += fmt::format(" {:.1f} GB/s read", machine.at("ceilings").at("gb_per_second").get<double>());
  }
  for (const auto& meter : report.at("meters")) {
    if (!meter.at("available").get<bool>())
      text += fmt::format("\nno energy of {}: {}", said(meter.at("device")), said(meter.at("reason")));
  }
  return text;
}

}  // namespace limbeck::cli
