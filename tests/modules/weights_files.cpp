#include "tests/modules/weights_files.h"

#include <fstream>
#include <iterator>

namespace limbeck::test {

namespace fs = std::filesystem;

void write_bytes(const fs::path& path, const std::string& bytes) {
  fs::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary) << bytes;
}

std::string read_bytes(const fs::path& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

std::string length_prefix(uint64_t length) {
  std::string prefix(8, '\0');
  for (int i = 0; i < 8; ++i) prefix[static_cast<size_t>(i)] = static_cast<char>(length >> (8 * i));
  return prefix;
}

std::string weights_file(const std::string& header, size_t payload_bytes) {
  return length_prefix(header.size()) + header + std::string(payload_bytes, '\0');
}

std::string weights_file_of(const std::vector<std::string>& names) {
  std::string header = "{";
  for (size_t i = 0; i < names.size(); ++i) {
    if (i > 0) header += ",";
    header += "\"" + names[i] + "\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[" + std::to_string(8 * i) + "," +
              std::to_string(8 * i + 8) + "]}";
  }
  return weights_file(header + "}", 8 * names.size());
}

std::string index_text(const std::vector<std::pair<std::string, std::string>>& weight_map, const std::string& more) {
  std::string text = "{" + more + "\"weight_map\":{";
  for (size_t i = 0; i < weight_map.size(); ++i) {
    if (i > 0) text += ",";
    text += "\"" + weight_map[i].first + "\":\"" + weight_map[i].second + "\"";
  }
  return text + "}}";
}

}  // namespace limbeck::test
