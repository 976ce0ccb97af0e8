#include "trainer/metrics/whole_lines.h"

#include <fmt/format.h>

#include <fstream>
#include <sstream>

#include "modules/errors.h"

namespace limbeck::metrics {

std::vector<std::string> whole_lines(const std::filesystem::path& path) {
  std::error_code fault;
  if (!std::filesystem::is_regular_file(path, fault)) return {};
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  std::string all = text.str();
  const size_t whole = all.rfind('\n') == std::string::npos ? 0 : all.rfind('\n') + 1;
  if (whole < all.size()) std::filesystem::resize_file(path, whole, fault);
  if (fault) throw IoError(fmt::format("{}: cannot be written: {}", path.string(), fault.message()));
  all.resize(whole);
  std::istringstream in(all);
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

}  // namespace limbeck::metrics
