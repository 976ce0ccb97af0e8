// Two ways to the same result, timed in turn (ours, theirs, ours, theirs, ...) in one process, because a shared machine
// doubles any time measured alone. Every round is a Google Benchmark run of both; the figure is the median over the
// rounds of theirs / ours.
#pragma once
#include <functional>
#include <string>

namespace limbeck::bench {

using Body = std::function<void()>;

void add_pair(const std::string& name, Body ours, Body theirs);

// Runs all pairs whose name holds the first argument that is no flag, if any, and prints the table of ratios.
// --rounds=N,
// --threads=N, --json=FILE; everything else goes to Google Benchmark.
int run_pairs(int argc, char** argv);

}  // namespace limbeck::bench
