#include <cstdio>
#include <string_view>

#include "tests/driver/verbs.h"

int main(int count, char** arguments) {
  namespace test = limbeck::test;
  const std::string_view verb = count > 1 ? arguments[1] : "";
  if (verb == "templates") return test::render_templates();
  if (verb == "backward") return test::late_load(count - 1, arguments + 1);
  if (verb == "touch") return test::touch_device();
  std::fprintf(stderr, "usage: test_driver templates|backward|touch ...\n");
  return 2;
}
