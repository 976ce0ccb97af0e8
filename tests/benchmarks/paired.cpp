#include "benchmarks/paired.h"
#include "benchmarks/timing.h"

#include <ATen/Parallel.h>
#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <vector>

namespace limbeck::bench {
namespace {

std::vector<std::string>& pair_names() {
  static std::vector<std::string> names;
  return names;
}

// Keeps the seconds of the last run of each side instead of printing them.
class SideReporter : public benchmark::BenchmarkReporter {
 public:
  bool ReportContext(const Context&) override { return true; }
  void ReportRuns(const std::vector<Run>& runs) override {
    for (const auto& run : runs) {
      const double seconds = run.real_accumulated_time / static_cast<double>(run.iterations);
      (run.run_name.function_name.ends_with("/ours") ? ours : theirs) = seconds;
    }
  }
  double ours = 0.0;
  double theirs = 0.0;
};

void add_side(const std::string& name, Body body) {
  benchmark::RegisterBenchmark(name.c_str(),
                               [body = std::move(body)](benchmark::State& state) {
                                 for (auto _ : state) body();
                               })
      ->UseRealTime()
      ->MinTime(0.05)
      ->Unit(benchmark::kMillisecond);
}

std::string escaped(const std::string& name) {
  std::string out;
  for (const char c : name) {
    if (std::string("[](){}.*+?^$|\\").find(c) != std::string::npos) out += '\\';
    out += c;
  }
  return out;
}

}  // namespace

void add_pair(const std::string& name, Body ours, Body theirs) {
  pair_names().push_back(name);
  add_side(name + "/ours", std::move(ours));
  add_side(name + "/theirs", std::move(theirs));
}

int run_pairs(int argc, char** argv) {
  int rounds = 9;
  std::string wanted, json_path;
  std::vector<char*> rest{argv[0]};
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument.rfind("--rounds=", 0) == 0) {
      rounds = std::max(1, std::stoi(argument.substr(9)));
    } else if (argument.rfind("--threads=", 0) == 0) {
      at::set_num_threads(std::stoi(argument.substr(10)));
    } else if (argument.rfind("--json=", 0) == 0) {
      json_path = argument.substr(7);
    } else if (argument.rfind("--", 0) == 0) {
      rest.push_back(argv[i]);
    } else {
      wanted = argument;
    }
  }
  int rest_count = static_cast<int>(rest.size());
  benchmark::Initialize(&rest_count, rest.data());
  if (benchmark::ReportUnrecognizedArguments(rest_count, rest.data())) return 2;

  nlohmann::json results = nlohmann::json::array();
  fmt::print("{} threads, {} rounds, times in ms (median; [least, greatest] ratio)\n", at::get_num_threads(), rounds);
  fmt::print("{:<44} {:>9} {:>9} {:>7}\n", "", "ours", "theirs", "ratio");
  for (const auto& name : pair_names()) {
    if (name.find(wanted) == std::string::npos) continue;
    std::vector<double> ours, theirs, ratios;
    for (int round = 0; round <= rounds; ++round) {
      SideReporter reporter;
      benchmark::RunSpecifiedBenchmarks(&reporter, fmt::format("^{}/(ours|theirs)/", escaped(name)));
      if (round == 0) continue;  // caches and thread pools warm up
      ours.push_back(reporter.ours * 1e3);
      theirs.push_back(reporter.theirs * 1e3);
      ratios.push_back(reporter.theirs / reporter.ours);
    }
    const auto [least, greatest] = std::minmax_element(ratios.begin(), ratios.end());
    fmt::print("{:<44} {:>9.3f} {:>9.3f} {:>6.2f}x  [{:.2f}, {:.2f}]\n", name, median(ours), median(theirs),
               median(ratios), *least, *greatest);
    std::fflush(stdout);
    results.push_back(
        {{"name", name}, {"ours_ms", median(ours)}, {"theirs_ms", median(theirs)}, {"ratio", median(ratios)}});
  }
  if (!json_path.empty()) std::ofstream(json_path) << results.dump(1) << '\n';
  return 0;
}

}  // namespace limbeck::bench
