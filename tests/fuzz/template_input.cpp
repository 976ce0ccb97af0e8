#include "tests/fuzz/template_input.h"

#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>

#include "modules/errors.h"
#include "modules/text/characters/unicode.h"
#include "modules/text/jinja/rendering.h"

namespace limbeck::fuzz {
namespace {

using nlohmann::ordered_json;

// Small enough that a run takes milliseconds.
constexpr text::jinja::Limits kSmall{.template_bytes = size_t{64} << 10,
                                     .steps = 200'000,
                                     .made_bytes = size_t{16} << 20,
                                     .output_bytes = size_t{1} << 20};

void demand(bool held, const char* invariant) {
  if (held) return;
  std::fprintf(stderr, "a template breaks the invariant: %s\n", invariant);
  std::abort();
}

const ordered_json& variables() {
  static const ordered_json kVariables = ordered_json::parse(R"({
    "bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": true, "documents": null,
    "messages": [{"role": "system", "content": "Größe \u0000 <&>"}, {"role": "user", "content": "a\nb"}],
    "tools": [{"type": "function", "function": {"name": "f", "description": "d", "parameters":
              {"type": "object", "properties": {"x": {"type": "integer", "default": 1}}, "required": ["x"]}}}]})");
  return kVariables;
}

void require_one_line(const std::string& message) {
  demand(!message.empty() && message.size() < 1024 && text::utf8_fault(message) == message.npos, "a short message");
  for (const char c : message) demand(static_cast<unsigned char>(c) >= 0x20 && c != 0x7F, "no control characters");
  demand(message.starts_with("input:"), "a message names file and line");
}

}  // namespace

bool judge_template(const uint8_t* data, size_t size) {
  const std::string source(reinterpret_cast<const char*>(data), size);
  if (text::utf8_fault(source) != source.npos) return false;  // as ChatTemplate refuses it
  try {
    const text::jinja::Source read(source, "input", kSmall);
    const std::string out = read.render(variables());
    demand(out.size() <= kSmall.output_bytes, "output within its limit");
    demand(text::utf8_fault(out) == out.npos, "output is UTF-8");
    demand(read.render(variables()) == out, "the same text again");
    return true;
  } catch (const InputDataError& refusal) {
    require_one_line(refusal.what());
    return false;
  }
}

}  // namespace limbeck::fuzz
