#include "modules/io/json_text.h"

#include <algorithm>
#include <type_traits>
#include <utility>
#include <vector>

#include "modules/errors.h"
#include "modules/io/tensor_name.h"

namespace limbeck::io {
namespace {

using nlohmann::json;

// Builds the value from the parser's events; json::parse would keep the last of two equal keys and nest without limit.
template <typename Json>
class Builder {
  static constexpr bool kOrdered = std::is_same_v<Json, nlohmann::ordered_json>;

 public:
  Builder(std::string_view text, const std::string& where, size_t most) : text_(text), where_(where), most_(most) {}
  Json take() { return std::move(root_); }

  bool null() { return put(nullptr); }
  bool boolean(bool value) { return put(value); }
  bool number_integer(int64_t value) { return put(value); }
  bool number_unsigned(uint64_t value) { return put(value); }
  bool number_float(double value, const std::string& written) {
    if (kOrdered && written.find_first_of(".eE") == written.npos)
      fail("the integer " + in_quotes(written) + " is beyond 64 bits");
    return put(value);
  }
  bool string(std::string& value) { return put(std::move(value)); }
  bool binary(typename Json::binary_t&) {
    fail("binary value");
    return false;
  }
  bool start_object(size_t) { return open(Json::object()); }
  bool start_array(size_t) { return open(Json::array()); }
  bool end_object() { return close(); }
  bool end_array() { return close(); }
  bool key(std::string& name) {
    if (kOrdered && open_.back()->size() == kMaxOrderedKeys)
      fail("an object of more than " + std::to_string(kMaxOrderedKeys) + " keys");
    if (open_.back()->contains(name)) fail("key " + in_quotes(name) + " appears twice");
    key_ = std::move(name);
    return true;
  }
  bool parse_error(size_t position, const std::string&, const json::exception& error) {
    fail(syntax_fault(position, error, text_));
    return false;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const { throw WeightsError(where_ + ": " + what); }

  Json* place(Json value) {
    if (++values_ > most_) fail("more than " + std::to_string(most_) + " values");
    if (open_.empty()) return &(root_ = std::move(value));
    Json& parent = *open_.back();
    if (parent.is_object()) return &(parent[key_] = std::move(value));
    parent.push_back(std::move(value));
    return &parent.back();
  }
  bool put(Json value) {
    place(std::move(value));
    return true;
  }
  // Pointers stay valid: a container is not touched by its parent until it is closed.
  bool open(Json value) {
    if (open_.size() == kMaxJsonDepth) fail("nested deeper than " + std::to_string(kMaxJsonDepth) + " levels");
    open_.push_back(place(std::move(value)));
    return true;
  }
  bool close() {
    open_.pop_back();
    return true;
  }

  std::string_view text_;
  const std::string& where_;
  Json root_;
  std::vector<Json*> open_;
  std::string key_;
  size_t most_, values_ = 0;
};

bool names_no_number(std::string_view text, size_t position) {
  const size_t from = position > 10 ? position - 10 : 0;
  const std::string_view near = text.substr(std::min(from, text.size()), 20);
  return near.find("NaN") != near.npos || near.find("Infinity") != near.npos;
}

}  // namespace

std::string syntax_fault(size_t position, const json::exception& error, std::string_view text) {
  std::string what = error.what();
  const size_t bracket = what.find("] ");
  if (bracket != what.npos) what.erase(0, bracket + 2);
  if (what.size() > 200) what = what.substr(0, 200) + "...";
  for (char& c : what) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte >= 0x7F) c = '?';
  }
  if (names_no_number(text, position)) what += " (NaN and Infinity are not JSON)";
  return "not JSON at byte " + std::to_string(position) + ": " + what;
}

namespace {

template <typename Json>
Json parse_as(std::string_view text, const std::string& where, const JsonLimits& limits) {
  if (text.size() > limits.bytes) {
    throw WeightsError(where + ": " + std::to_string(text.size()) + " bytes of JSON, at most " +
                       std::to_string(limits.bytes) + " are read");
  }
  // The library takes a zero byte for the end of its input and would not look at what follows.
  const size_t zero = text.find('\0');
  if (zero != text.npos) throw WeightsError(where + ": not JSON: zero byte at byte " + std::to_string(zero));
  Builder<Json> builder(text, where, limits.values);
  Json::sax_parse(text.begin(), text.end(), &builder);
  return builder.take();
}

}  // namespace

json parse_json(std::string_view text, const std::string& where, const JsonLimits& limits) {
  return parse_as<json>(text, where, limits);
}

nlohmann::ordered_json parse_ordered_json(std::string_view text, const std::string& where, const JsonLimits& limits) {
  return parse_as<nlohmann::ordered_json>(text, where, limits);
}

}  // namespace limbeck::io
