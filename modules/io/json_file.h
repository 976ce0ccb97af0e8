// config.json and its like as data: bounded size and depth, no duplicate keys, UTF-8 checked, every value range-checked
// by the typed getters, whose errors name file and key.
#pragma once
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "modules/io/json_text.h"

namespace limbeck::io {

// All of a file that is to be parsed as JSON; WeightsError beyond the limit.
std::string read_json_text(const std::filesystem::path& path, const JsonLimits& limits = {});

class JsonFile {
 public:
  explicit JsonFile(const std::filesystem::path& path);
  JsonFile(nlohmann::json value, std::string where) : value_(std::move(value)), where_(std::move(where)) {}

  const nlohmann::json& value() const { return value_; }
  const std::string& where() const { return where_; }
  bool has(const std::string& key) const;        // present and not null
  JsonFile child(const std::string& key) const;  // an object member
  int64_t integer(const std::string& key, int64_t low, int64_t high) const;
  // The fallback, too, must be in the range.
  int64_t integer_or(const std::string& key, int64_t fallback, int64_t low, int64_t high) const;
  double number(const std::string& key, double low, double high) const;
  double number_or(const std::string& key, double fallback, double low, double high) const;
  bool boolean_or(const std::string& key, bool fallback) const;
  std::string string(const std::string& key) const;
  std::string string_or(const std::string& key, const std::string& fallback) const;

 private:
  nlohmann::json value_;
  std::string where_;
};

}  // namespace limbeck::io
