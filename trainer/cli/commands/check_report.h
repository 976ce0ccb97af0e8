// The report of a check for people and for machines; `check` prints it, `train` refuses by it.
#pragma once
#include <nlohmann/json.hpp>

#include "trainer/check/dry_run.h"
#include "trainer/cli/console/console.h"

namespace limbeck::cli {

void print_check(const check::CheckReport& report, const recipe::Settings& settings, Console& console, int width);
// {"modules": [...], "casts": [...], "memory": {...}, "peak_bytes", "operators", "violations"}
nlohmann::ordered_json check_json(const check::CheckReport& report);
// Throws ContractError with the last violation after warning of the others; returns when there is none.
void refuse_violations(const check::CheckReport& report, Console& console, bool speaks);

// A warning where nearly nothing trains: a quantized student without an adapter.
void warn_of_frozen_codes(const check::CheckReport& report, const recipe::Settings& settings, Console& console);

}  // namespace limbeck::cli
