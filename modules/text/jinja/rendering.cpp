#include "modules/text/jinja/rendering.h"

#include <utility>
#include <vector>

#include "modules/text/jinja/evaluator.h"
#include "modules/text/jinja/lexer.h"
#include "modules/text/jinja/parser.h"

namespace limbeck::text::jinja {
namespace {

Value value_of(Work& work, const nlohmann::ordered_json& json) {
  const Work::Level level(work);
  work.step();
  switch (json.type()) {
    case nlohmann::ordered_json::value_t::null:
      return Value(None{});
    case nlohmann::ordered_json::value_t::boolean:
      return Value(Value::Held(json.get<bool>()));
    case nlohmann::ordered_json::value_t::number_integer:
      return Value(Value::Held(json.get<int64_t>()));
    case nlohmann::ordered_json::value_t::number_unsigned:
      if (json.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) work.refuse_unsupported("an integer beyond 64 bits");
      return Value(Value::Held(json.get<int64_t>()));
    case nlohmann::ordered_json::value_t::number_float:
      return Value(Value::Held(json.get<double>()));
    case nlohmann::ordered_json::value_t::string:
      return text(work, json.get_ref<const std::string&>());
    case nlohmann::ordered_json::value_t::array: {
      Items items;
      for (const auto& item : json) items.push_back(value_of(work, item));
      return sequence(work, std::move(items));
    }
    case nlohmann::ordered_json::value_t::object: {
      Entries entries;
      for (const auto& [key, value] : json.items()) entries.emplace_back(text(work, key), value_of(work, value));
      return dict(work, std::move(entries));
    }
    default:
      break;
  }
  work.refuse("a value that JSON has not");
}

}  // namespace

struct Source::Tree {
  std::string where;
  Limits limits;
  Body body;
};

Source::Source(std::string_view text, std::string where, const Limits& limits) : tree_(std::make_unique<Tree>()) {
  tree_->where = std::move(where);
  tree_->limits = limits;
  Work work(tree_->where, limits);
  tree_->body = Parser(work, lex(work, text)).parse();
}

Source::~Source() = default;
Source::Source(Source&&) noexcept = default;
Source& Source::operator=(Source&&) noexcept = default;

std::string Source::render(const nlohmann::ordered_json& variables, const std::string& subject) const {
  Work work(tree_->where, tree_->limits, subject);
  std::vector<std::pair<std::string, Value>> given;
  for (const auto& [name, value] : variables.items()) given.emplace_back(name, value_of(work, value));
  Evaluator evaluator(work);
  return evaluator.run(tree_->body, given);
}

}  // namespace limbeck::text::jinja
