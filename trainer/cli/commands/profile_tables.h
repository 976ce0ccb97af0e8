// A profile for a person to read: a line a row, what was refused and why, and where the time of a forward went.
#pragma once
#include <nlohmann/json.hpp>
#include <string>

namespace limbeck::cli {

// `report`: as profile::Profile has it; `width` of the terminal, 0: none.
std::string profile_table(const nlohmann::ordered_json& report, int width);
// Which rows a pass reads, and that time was up before all passes were made; "" where nothing was measured.
std::string passes_lines(const nlohmann::ordered_json& report);
// "" where nothing was.
std::string refused_table(const nlohmann::ordered_json& report, int width);
// The `most` modules that took longest, layers of one kind together, of the first forward that was measured.
std::string module_times_table(const nlohmann::ordered_json& report, int width, size_t most);
// The machine: processor, threads, ceilings, and why a meter lacks.
std::string machine_text(const nlohmann::ordered_json& report);

}  // namespace limbeck::cli
