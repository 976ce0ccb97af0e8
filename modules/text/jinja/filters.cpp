#include "modules/text/jinja/filters.h"

#include <algorithm>
#include <array>

#include "modules/text/jinja/arguments.h"
#include "modules/text/jinja/write_json.h"

namespace limbeck::text::jinja {
namespace {

constexpr std::array<const char*, 17> kLackingFilters = {
    "attr",     "batch",     "filesizeformat", "forceescape", "groupby",  "pprint",  "random", "slice", "striptags",
    "truncate", "urlencode", "urlize",         "wordcount",   "wordwrap", "xmlattr", "center", "format"};

Value default_filter(Evaluator& evaluator, const Value& value, const Arguments& arguments) {
  Work& work = evaluator.work();
  const Bound bound(work, "default", arguments, {"default_value", "boolean"});
  if (!value.is<Undefined>() && !(bound.flag(1, false) && !truth(value))) return value;
  return bound.given(0) ? bound.value(0) : text(work, "");
}

Value json_filter(Evaluator& evaluator, const Value& value, const Arguments& arguments) {
  Work& work = evaluator.work();
  const Bound bound(work, "tojson", arguments, {"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonStyle style;
  style.ascii = bound.flag(0, false);
  style.sorted = bound.flag(3, false);
  if (bound.given(1) && !bound.value(1).is<None>()) {
    const std::string* indent = text_of(bound.value(1));
    const int64_t width = indent == nullptr ? bound.integer(1, 0) : 0;
    if (width > 1000) work.refuse("tojson: an indent of more than 1000");
    style.indent = indent != nullptr ? *indent : std::string(static_cast<size_t>(std::max<int64_t>(width, 0)), ' ');
    style.item = ",";
  }
  if (bound.given(2) && !bound.value(2).is<None>()) {
    const Items parts = listed(work, bound.value(2));
    if (parts.size() != 2 || text_of(parts[0]) == nullptr || text_of(parts[1]) == nullptr)
      work.refuse("tojson: separators wanted two texts");
    style.item = *text_of(parts[0]);
    style.key = *text_of(parts[1]);
  }
  return text(work, to_json(work, value, style));
}

Filter find_filter(const std::string& name) {
  if (name == "default" || name == "d") return default_filter;
  if (name == "tojson") return json_filter;
  for (const auto find : {find_text_filter, find_number_filter, find_sequence_filter, find_choosing_filter}) {
    if (const Filter filter = find(name)) return filter;
  }
  return nullptr;
}

bool is_lacking_filter(const std::string& name) {
  return std::any_of(kLackingFilters.begin(), kLackingFilters.end(), [&](const char* known) { return name == known; });
}

}  // namespace

bool jinja_has_filter(const std::string& name) { return find_filter(name) != nullptr || is_lacking_filter(name); }

Value apply_filter(Evaluator& evaluator, const std::string& name, const Value& value, const Arguments& arguments) {
  if (const Filter filter = find_filter(name)) return filter(evaluator, value, arguments);
  if (is_lacking_filter(name)) evaluator.work().refuse_unsupported("the filter " + name);
  evaluator.work().refuse("no filter is called \"" + name + "\"");
}

}  // namespace limbeck::text::jinja
