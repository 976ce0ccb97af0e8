// Untrusted JSON text to a value, strictly: UTF-8, no NaN or Infinity, no duplicate keys, bounded depth and number of
// values. Violations throw WeightsError naming `where` and the byte.
#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace limbeck::io {

inline constexpr size_t kMaxJsonBytes = size_t{16} << 20;
inline constexpr size_t kMaxJsonDepth = 64;
inline constexpr size_t kMaxJsonValues = 2'000'000;  // some 200 MB in the worst case

struct JsonLimits {
  size_t bytes = kMaxJsonBytes;
  size_t values = kMaxJsonValues;
};

nlohmann::json parse_json(std::string_view text, const std::string& where, const JsonLimits& limits = {});

// The same for what a program is to see as it was written: keys stay in their order, an integer beyond 64 bits is
// refused instead of becoming a float. An object has at most kMaxOrderedKeys keys, because looking one up takes as long
// as there are.
inline constexpr size_t kMaxOrderedKeys = 1000;
nlohmann::ordered_json parse_ordered_json(std::string_view text, const std::string& where,
                                          const JsonLimits& limits = {});

// The library's account of a syntax error, safe to show: shortened, on one line, without its own prefix.
std::string syntax_fault(size_t position, const nlohmann::json::exception& error, std::string_view text);

}  // namespace limbeck::io
