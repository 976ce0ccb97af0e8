// A file of lines that is gone on with: what a killed process was writing when it died is cut off, and is written again
// by whoever knows it.
#pragma once
#include <filesystem>
#include <string>
#include <vector>

namespace limbeck::metrics {

// Its whole lines; none where there is no file. IoError where the rest of a line cannot be cut off.
std::vector<std::string> whole_lines(const std::filesystem::path& path);

}  // namespace limbeck::metrics
