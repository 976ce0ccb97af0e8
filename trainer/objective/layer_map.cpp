#include "trainer/objective/layer_map.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <optional>
#include <sstream>

#include "modules/errors.h"
#include "trainer/recipe/message.h"

namespace limbeck::objective {

namespace {

std::optional<int64_t> number(const std::string& text) {
  int64_t value = 0;
  const auto [end, fault] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (fault != std::errc() || end != text.data() + text.size() || value < 0) return std::nullopt;
  return value;
}

}  // namespace

int64_t layer_at_same_place(int64_t layer, int64_t student_layers, int64_t teacher_layers) {
  return layer * teacher_layers / student_layers;
}

LayerMap read_layer_map(const recipe::Settings& settings) {
  const std::string& text = settings.text("objective.layer_map");
  LayerMap map;
  map.said = fmt::format("objective.layer_map = {} {}", recipe::shown(text), settings.where("objective.layer_map"));
  if (text == "auto") return map;
  const auto refuse = [&](const std::string& what) { throw UsageError(map.said + ": " + what); };
  std::istringstream words(text);
  for (std::string word; words >> word;) {
    const size_t colon = word.find(':');
    const auto s = number(word.substr(0, colon));
    const auto t = colon == std::string::npos ? std::nullopt : number(word.substr(colon + 1));
    if (!s || !t) refuse(fmt::format("got {}, wanted STUDENT:TEACHER such as 1:2", recipe::shown(word)));
    const auto taken =
        std::find_if(map.pairs.begin(), map.pairs.end(), [&](const auto& pair) { return pair.first == *s; });
    if (taken != map.pairs.end()) {
      refuse(fmt::format("{} gives the student's state {} a second teacher's, wanted each at most once", word, *s));
    }
    map.pairs.emplace_back(*s, *t);
  }
  if (map.pairs.empty()) refuse("no pair is given, wanted auto or STUDENT:TEACHER pairs");
  return map;
}

LayerPairs layer_map(const LayerMap& map, int64_t student_layers, int64_t teacher_layers) {
  const auto refuse = [&](const std::string& what) { throw UsageError(map.said + ": " + what); };
  LayerPairs pairs = map.pairs;
  if (pairs.empty()) {
    for (int64_t s = 1; s < student_layers; ++s)
      pairs.emplace_back(s, layer_at_same_place(s, student_layers, teacher_layers));
    if (pairs.empty()) refuse("a student of one layer has no state between its layers: set objective.layer_weight = 0");
    return pairs;
  }
  for (const auto& [s, t] : pairs) {
    if (s > student_layers || t > teacher_layers) {
      refuse(fmt::format("{}:{} is outside the models, wanted at most {}:{}", s, t, student_layers, teacher_layers));
    }
    if ((s == student_layers) != (t == teacher_layers)) {
      refuse(
          fmt::format("{}:{} pairs a state after the final norm with one before it; the last state, {}, goes with {}",
                      s, t, student_layers, teacher_layers));
    }
  }
  return pairs;
}

}  // namespace limbeck::objective
