// libFuzzer target for the engine of chat templates. Most mutations put a piece of the language somewhere, so that
// inputs get past the parser.
#include <algorithm>
#include <cstring>
#include <iterator>
#include <random>
#include <string>

#include "tests/fuzz/template_input.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

namespace {

constexpr const char* kPieces[] = {"{{ ",
                                   " }}",
                                   "{% ",
                                   " %}",
                                   "{%- if ",
                                   " -%}",
                                   "{% endif %}",
                                   "{% else %}",
                                   "{% for x in ",
                                   "{% endfor %}",
                                   "{% set x = ",
                                   "{% set n.x = ",
                                   "{% endset %}",
                                   "{% macro m(a, b=1) %}",
                                   "{% endmacro %}",
                                   "{% call m() %}",
                                   "{% endcall %}",
                                   "{% filter upper %}",
                                   "{% endfilter %}",
                                   "{% break %}",
                                   "{% continue %}",
                                   "{% with x = 1 %}",
                                   "{% endwith %}",
                                   "{% raw %}",
                                   "{% endraw %}",
                                   "{#",
                                   "#}",
                                   "caller()",
                                   "m(m)",
                                   "loop.last",
                                   "loop.length",
                                   "loop.changed(x)",
                                   "loop.previtem",
                                   "messages",
                                   "namespace(x=messages)",
                                   "range(9)",
                                   "dict(a=1)",
                                   "[x, x]",
                                   "(x, x)",
                                   "{'a': x}",
                                   "{x: x}",
                                   "[::-1]",
                                   "[1:2]",
                                   "[0]",
                                   ".x",
                                   "['x']",
                                   ".items()",
                                   ".keys()",
                                   ".get('a')",
                                   ".split()",
                                   ".split('a', 1)",
                                   ".strip('x')",
                                   ".replace('', 'ab')",
                                   ".join(messages)",
                                   ".format(x, x)",
                                   ".center(99)",
                                   ".upper()",
                                   " | upper",
                                   " | title",
                                   " | tojson(indent=2)",
                                   " | map('upper')",
                                   " | map(attribute='x')",
                                   " | select('string')",
                                   " | selectattr('role', 'equalto', 'user')",
                                   " | reverse",
                                   " | sort",
                                   " | unique",
                                   " | list",
                                   " | first",
                                   " | last",
                                   " | join(x)",
                                   " | int",
                                   " | float",
                                   " | round(2)",
                                   " | safe",
                                   " | e",
                                   " | indent(2)",
                                   " | dictsort",
                                   " | sum",
                                   " | max",
                                   " | length",
                                   " | default(x)",
                                   " is defined",
                                   " is string",
                                   " is odd",
                                   " is in x",
                                   " in ",
                                   " not in ",
                                   " and ",
                                   " or ",
                                   " not ",
                                   " if x else ",
                                   " + ",
                                   " - ",
                                   " * ",
                                   " / ",
                                   " // ",
                                   " % ",
                                   " ** ",
                                   " ~ ",
                                   " == ",
                                   " < ",
                                   "-1",
                                   "0",
                                   "9223372036854775807",
                                   "1e308",
                                   "1.5",
                                   "'\\u00e9ß'",
                                   "'%s'",
                                   "true",
                                   "none",
                                   "x"};

}  // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  std::minstd_rand random(seed);
  if (random() % 4 == 0) return LLVMFuzzerMutate(data, size, max_size);
  std::string text(reinterpret_cast<const char*>(data), size);
  for (unsigned i = 0; i <= random() % 3; ++i) {
    const size_t at = random() % (text.size() + 1);
    if (random() % 4 == 0)
      text.erase(at, random() % 12);
    else
      text.insert(at, kPieces[random() % std::size(kPieces)]);
  }
  text.resize(std::min(text.size(), max_size));
  std::memcpy(data, text.data(), text.size());
  return text.size();
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  limbeck::fuzz::judge_template(data, size);
  return 0;
}
