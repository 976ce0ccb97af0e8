#include "modules/text/jinja/globals.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <ctime>

#include "modules/io/tensor_name.h"
#include "modules/text/jinja/arguments.h"
#include "modules/text/jinja/lookup.h"

namespace limbeck::text::jinja {
namespace {

constexpr uint64_t kLongestRange = 100'000;  // Jinja's own

Value make_range(Work& work, const Arguments& arguments) {
  const Bound bound(work, "range", arguments, {"start", "stop", "step"}, 1);
  if (!arguments.named.empty()) work.refuse("range() takes no keyword arguments");
  const bool one = !bound.given(1);
  SequenceData data;
  data.kind = SequenceKind::kRange;
  data.start = one ? 0 : bound.integer(0, 0);
  data.stop = one ? bound.integer(0, 0) : bound.integer(1, 0);
  data.stride = bound.integer(2, 1);
  if (data.stride == 0) work.refuse("range() with a step of 0");
  const uint64_t count = steps_between(data.start, data.stop, data.stride);
  if (count > kLongestRange) work.refuse("a range of more than 100000 items");
  work.make(count * sizeof(Value));
  work.step(count / 16);
  for (int64_t i = 0; i < static_cast<int64_t>(count); ++i)
    data.items.push_back(Value(Value::Held(data.start + i * data.stride)));
  return Value(std::make_shared<const SequenceData>(std::move(data)));
}

// dict(of, name=value) and namespace(of, name=value).
Entries named_entries(Work& work, const char* what, const Arguments& arguments) {
  if (arguments.positional.size() > 1) work.refuse(std::string(what) + " takes at most one argument without a name");
  Entries entries;
  if (!arguments.positional.empty()) {
    const Value& of = arguments.positional[0];
    if (const auto* other = of.as<Dict>()) {
      entries = (*other)->entries;
      work.make(entries.size() * 2 * sizeof(Value));
    } else {
      const Next next = iterate(work, of);
      while (auto item = next()) {
        const Items pair = listed(work, *item);
        if (pair.size() != 2) work.refuse(std::string(what) + " wanted pairs of a key and a value");
        put(work, entries, pair[0], pair[1]);
      }
    }
  }
  for (const auto& [name, value] : arguments.named) put(work, entries, text(work, name), value);
  return entries;
}

Value make_namespace(Evaluator& evaluator, const Arguments& arguments) {
  Work& work = evaluator.work();
  const auto space = evaluator.new_namespace();
  for (auto& [key, value] : named_entries(work, "namespace", arguments)) {
    const std::string* name = text_of(key);
    if (name == nullptr) work.refuse_unsupported("a namespace with a name that is a " + type_name(key));
    space->names.emplace_back(*name, value);
  }
  return Value(space);
}

Value time_now(Work& work, const Arguments& arguments) {
  const Bound bound(work, "strftime_now", arguments, {"format"}, 1);
  const std::string format = bound.required_text(0);
  if (format.empty()) return text(work, "");
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  if (format.find("%f") != format.npos) work.refuse_unsupported("%f (microseconds) of strftime_now");
  if (format.find("%z") != format.npos || format.find("%Z") != format.npos)
    work.refuse_unsupported("%z (the time zone) of strftime_now");
  std::string out(256 + 16 * format.size(), '\0');
  work.make(out.size());
  out.resize(std::strftime(out.data(), out.size(), format.c_str(), &local));
  return text(work, std::move(out));
}

Value raise(Work& work, const Arguments& arguments) {
  const Bound bound(work, "raise_exception", arguments, {"message"}, 1);
  work.refuse("the template refuses these messages: " + io::in_quotes(to_text(work, bound.value(0))));
}

}  // namespace

std::optional<Value> find_global(Work& work, const std::string& name) {
  static constexpr std::array<const char*, 5> kKnown = {"namespace", "raise_exception", "range", "dict",
                                                        "strftime_now"};
  const auto is_name = [&](const char* known) { return name == known; };
  if (std::any_of(kKnown.begin(), kKnown.end(), is_name)) {
    work.make(sizeof(FunctionData));
    auto function = std::make_shared<FunctionData>();
    function->name = name;
    return Value(Function(std::move(function)));
  }
  for (const char* lacking : {"cycler", "joiner", "lipsum", "self"}) {
    if (name == lacking) work.refuse_unsupported(fmt::format("`{}`", name));
  }
  return std::nullopt;
}

Value call_global(Evaluator& evaluator, const std::string& name, const Arguments& arguments) {
  Work& work = evaluator.work();
  if (name == "namespace") return make_namespace(evaluator, arguments);
  if (name == "range") return make_range(work, arguments);
  if (name == "dict") return dict(work, named_entries(work, "dict", arguments));
  if (name == "strftime_now") return time_now(work, arguments);
  return raise(work, arguments);
}

}  // namespace limbeck::text::jinja
