// test_driver templates: renders templates, one a line of standard input, for tests/python/test_chat_template.py, which
// asks for hundreds at once. A line is {"template": TEXT, "variables": {...}}; the answer {"text": ...} or {"refused":
// ...}.
#include <iostream>
#include <string>

#include "modules/errors.h"
#include "modules/text/jinja/rendering.h"
#include "tests/driver/verbs.h"

namespace limbeck::test {

int render_templates() {
  using nlohmann::ordered_json;
  for (std::string line; std::getline(std::cin, line);) {
    const auto request = ordered_json::parse(line);
    ordered_json answer;
    try {
      const text::jinja::Source source(request.at("template").get_ref<const std::string&>(), "template");
      answer["text"] = source.render(request.at("variables"));
    } catch (const InputDataError& refusal) {
      answer["refused"] = refusal.what();
    }
    std::cout << answer.dump() << "\n";
  }
  return 0;
}

}  // namespace limbeck::test
