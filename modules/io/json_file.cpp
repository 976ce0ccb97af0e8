#include "modules/io/json_file.h"

#include <cmath>

#include "modules/errors.h"
#include "modules/io/input_file.h"
#include "modules/io/json_text.h"
#include "modules/io/tensor_name.h"

namespace limbeck::io {
namespace {

using nlohmann::json;

json load(const std::filesystem::path& path) {
  json value = parse_json(read_json_text(path), path.string());
  if (!value.is_object()) throw WeightsError(path.string() + ": holds " + value.type_name() + ", wanted an object");
  return value;
}

std::string shown(const json& value) {
  if (value.is_string()) return in_quotes(value.get_ref<const std::string&>());
  if (value.is_object()) return "an object";
  if (value.is_array()) return "an array";
  return value.dump();
}

std::string shown(double value) { return json(value).dump(); }

std::string wanted_integer(int64_t low, int64_t high) {
  return "an integer in [" + std::to_string(low) + ", " + std::to_string(high) + "]";
}

std::string wanted_number(double low, double high) { return "a number in [" + shown(low) + ", " + shown(high) + "]"; }

const json& member(const JsonFile& file, const std::string& key, const std::string& wanted) {
  if (!file.has(key)) throw WeightsError(file.where() + ": key " + in_quotes(key) + " is missing, wanted " + wanted);
  return file.value().at(key);
}

[[noreturn]] void refuse(const JsonFile& file, const std::string& key, const std::string& wanted) {
  throw WeightsError(file.where() + ": key " + in_quotes(key) + " = " + shown(file.value().at(key)) + ", wanted " +
                     wanted);
}

// A range may follow from other keys: then the usual default is no better than a wrong value.
[[noreturn]] void refuse_default(const JsonFile& file, const std::string& key, const std::string& fallback,
                                 const std::string& wanted) {
  throw WeightsError(file.where() + ": key " + in_quotes(key) + " is missing and would be " + fallback + ", wanted " +
                     wanted + ": give it");
}

}  // namespace

std::string read_json_text(const std::filesystem::path& path, const JsonLimits& limits) {
  const InputFile file(path);
  if (file.size() > limits.bytes) {
    throw WeightsError(path.string() + ": " + std::to_string(file.size()) + " bytes of JSON, at most " +
                       std::to_string(limits.bytes) + " are read");
  }
  std::string text = file.whole();
  file.check_size();
  return text;
}

JsonFile::JsonFile(const std::filesystem::path& path) : value_(load(path)), where_(path.string()) {}

bool JsonFile::has(const std::string& key) const {
  const auto found = value_.find(key);
  return found != value_.end() && !found->is_null();
}

JsonFile JsonFile::child(const std::string& key) const {
  const json& found = member(*this, key, "an object");
  if (!found.is_object()) refuse(*this, key, "an object");
  return JsonFile(found, where_ + ": " + in_quotes(key));
}

int64_t JsonFile::integer(const std::string& key, int64_t low, int64_t high) const {
  const std::string wanted = wanted_integer(low, high);
  const json& found = member(*this, key, wanted);
  // Never through double: 2^63 + 1 must not become 2^63.
  if (found.is_number_unsigned()) {
    const auto value = found.get<uint64_t>();
    if (high >= 0 && value <= static_cast<uint64_t>(high) && (low <= 0 || value >= static_cast<uint64_t>(low))) {
      return static_cast<int64_t>(value);
    }
  } else if (found.is_number_integer()) {
    const auto value = found.get<int64_t>();
    if (value >= low && value <= high) return value;
  }
  refuse(*this, key, wanted);
}

int64_t JsonFile::integer_or(const std::string& key, int64_t fallback, int64_t low, int64_t high) const {
  if (has(key)) return integer(key, low, high);
  if (fallback < low || fallback > high)
    refuse_default(*this, key, std::to_string(fallback), wanted_integer(low, high));
  return fallback;
}

double JsonFile::number(const std::string& key, double low, double high) const {
  const std::string wanted = wanted_number(low, high);
  const json& found = member(*this, key, wanted);
  if (!found.is_number()) refuse(*this, key, wanted);
  const auto value = found.get<double>();
  if (!std::isfinite(value) || value < low || value > high) refuse(*this, key, wanted);
  return value;
}

double JsonFile::number_or(const std::string& key, double fallback, double low, double high) const {
  if (has(key)) return number(key, low, high);
  if (!(fallback >= low && fallback <= high)) refuse_default(*this, key, shown(fallback), wanted_number(low, high));
  return fallback;
}

bool JsonFile::boolean_or(const std::string& key, bool fallback) const {
  if (!has(key)) return fallback;
  const json& found = value_.at(key);
  if (!found.is_boolean()) refuse(*this, key, "true or false");
  return found.get<bool>();
}

std::string JsonFile::string(const std::string& key) const {
  const json& found = member(*this, key, "a string");
  if (!found.is_string()) refuse(*this, key, "a string");
  return found.get<std::string>();
}

std::string JsonFile::string_or(const std::string& key, const std::string& fallback) const {
  return has(key) ? string(key) : fallback;
}

}  // namespace limbeck::io
