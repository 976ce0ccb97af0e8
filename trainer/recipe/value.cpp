#include "trainer/recipe/value.h"

#include <charconv>
#include <cmath>
#include <limits>

namespace limbeck::recipe {
namespace {

template <class Number>
std::optional<Number> whole_text(const std::string& text) {
  Number value{};
  const char* begin = text.data();
  const char* end = begin + text.size();
  // from_chars takes no leading plus; users type one.
  if (text.size() > 1 && text[0] == '+' && text[1] != '-') ++begin;
  const auto [stop, error] = std::from_chars(begin, end, value);
  if (error != std::errc() || stop != end) return std::nullopt;
  return value;
}

}  // namespace

std::optional<int64_t> to_integer(const std::string& text) { return whole_text<int64_t>(text); }

std::optional<double> to_number(const std::string& text) {
  const auto value = whole_text<double>(text);
  return value && std::isfinite(*value) ? value : std::nullopt;
}

std::optional<bool> to_bool(const std::string& text) {
  if (text == "true" || text == "True" || text == "yes" || text == "on" || text == "1") return true;
  if (text == "false" || text == "False" || text == "no" || text == "off" || text == "0") return false;
  return std::nullopt;
}

std::optional<c10::ScalarType> to_dtype(const std::string& text) {
  if (text == "float32") return c10::kFloat;
  if (text == "float64") return c10::kDouble;
  if (text == "bfloat16") return c10::kBFloat16;
  if (text == "float16") return c10::kHalf;
  return std::nullopt;
}

std::optional<c10::Device> to_device(const std::string& text) {
  if (text == "cpu") return c10::Device(c10::kCPU);
  if (text == "meta") return c10::Device(c10::kMeta);
  if (text == "cuda") return c10::Device(c10::kCUDA);
  if (text.rfind("cuda:", 0) != 0 || text.size() < 6 || text[5] < '0' || text[5] > '9') return std::nullopt;
  const auto index = to_integer(text.substr(5));
  if (!index || *index < 0 || *index > std::numeric_limits<c10::DeviceIndex>::max()) return std::nullopt;
  return c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(*index));
}

}  // namespace limbeck::recipe
