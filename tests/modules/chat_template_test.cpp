#include "modules/text/chat_template.h"

#include <gtest/gtest.h>

#include <chrono>
#include <fstream>

#include "modules/errors.h"
#include "tests/support/temporary_folder.h"

namespace limbeck::text {
namespace {

using nlohmann::ordered_json;

std::string rendered(const std::string& source, const ordered_json& variables = ordered_json::object()) {
  return jinja::Source(source, "t").render(variables);
}

std::string refusal(const std::string& source, const ordered_json& variables = ordered_json::object()) {
  try {
    return "rendered: " + rendered(source, variables);
  } catch (const InputDataError& error) {
    return error.what();
  }
}

const ordered_json kHello = {{"messages", {{{"role", "user"}, {"content", "Größe"}}}}};

TEST(ChatTemplates, WriteWhitespaceAsTransformersDoes) {
  EXPECT_EQ(rendered("  {% if true %}\n a\n  {% endif %}\n{{- ' b' }}  \n"), " a\n b  ");
  EXPECT_EQ(rendered("{{ x }}\n\n", {{"x", "é"}}), "é\n");
}

TEST(ChatTemplates, KeepTheOrderOfKeys) {
  EXPECT_EQ(rendered("{{ t | tojson }}", {{"t", {{"z", 1}, {"a", {1.0, true, nullptr}}}}}),
            R"({"z": 1, "a": [1.0, true, null]})");
}

TEST(ChatTemplates, RefusalsNameLineGotAndWanted) {
  EXPECT_EQ(refusal("\n{{ x + 1 }}"), "t:2: 'x' is undefined");
  EXPECT_EQ(refusal("{{ 'a' + 1 }}"), "t:1: unsupported operand types for +: 'str' and 'int'");
  EXPECT_EQ(refusal("\n\n{% if x %}"), "t:3: unexpected end of the template, wanted {% endif %}");
  EXPECT_EQ(refusal("{{ raise_exception('no\n system') }}"),
            "t:1: the template refuses these messages: \"no\\x0a system\"");
  EXPECT_NE(refusal("{{ x | groupby('a') }}").find("t:1: the filter groupby is not supported by Limbeck"),
            std::string::npos);
  EXPECT_NE(refusal("{% include 'x' %}").find("t:1: {% include %} is not supported by Limbeck"), std::string::npos);
  EXPECT_NE(refusal("{{ [].append(1) }}").find("is unsafe"), std::string::npos);
  EXPECT_NE(refusal("{{ 9223372036854775807 + 1 }}").find("an integer beyond 64 bits"), std::string::npos);
}

TEST(ChatTemplates, HostileOnesEndSoonInARefusal) {
  const std::string nested(300, '(');
  const std::vector<std::pair<std::string, std::string>> hostile = {
      {"{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "more than"},
      {"{{ 'x' * 99999999999 }}", "limits"},
      {"{% set n = namespace(s='x') %}{% for a in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}", "MiB"},
      {"{% for a in range(99999) %}{{ 'x' * 9999 }}{% endfor %}", "MiB"},
      {"{% set n = namespace(s=[]) %}{% for a in range(9999) %}{% set n.s = [n.s] %}{% endfor %}", "deep"},
      {"{% set n = namespace(s=[1]) %}{% for a in range(9999) %}{% set n.s = n.s | map('abs') %}{% endfor %}", "deep"},
      {"{% set n = namespace(s=(1, )) %}{% for a in range(90) %}{% set n.s = (n.s, n.s) %}{% endfor %}{{ n.s }}",
       "more than"},
      {"{% set n = namespace(s=(1, )) %}{% for a in range(90) %}{% set n.s = (n.s, n.s) %}{% endfor %}{{ {n.s: 1} }}",
       "more than"},
      {"{% set n = namespace(s=(1, )) %}{% for a in range(90) %}{% set n.s = (n.s, n.s) %}{% endfor %}{{ n.s == n.s }}",
       "more than"},
      {"{% set n = namespace() %}{% set n.n = n %}{{ n }}", "deep"},
      {"{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "deep"},
      {"{{ " + nested + "1" + std::string(300, ')') + " }}", "deep"},
      {"{{ 'a'.center(99999999999) }}", "limits"},
      {"{{ ('a' * 99999).replace('', 'b' * 99999) }}", "limits"},
      {"{{ range(99999999) }}", "100000 items"},
  };
  for (const auto& [source, word] : hostile) {
    const auto begin = std::chrono::steady_clock::now();
    const std::string message = refusal(source);
    EXPECT_TRUE(message.starts_with("t:1: ") && message.find(word) != message.npos) << source << "\n" << message;
    EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(30)) << source;
  }
}

class ChatTemplateFolder : public ::testing::Test {
 protected:
  void write(const std::string& name, const std::string& text) const {
    const std::filesystem::path path = folder_.path() / name;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << text;
  }
  std::string render(const ordered_json& chat = kHello) const {
    return ChatTemplate(folder_.path()).render(chat, true, "--chat");
  }

  test::TemporaryFolder folder_;
};

TEST_F(ChatTemplateFolder, AFileOfItsOwnComesBeforeTheSettings) {
  write("tokenizer_config.json",
        R"({"chat_template": "{{ bos_token }}{{ messages[0].content }}", "bos_token": "<s>"})");
  EXPECT_EQ(render(), "<s>Größe");
  write("chat_template.jinja", "{{ messages[0].role }}{{ bos_token }}{{ eos_token }}{{ tools is none }}");
  EXPECT_EQ(render(), "user<s>True");
}

TEST_F(ChatTemplateFolder, ToolsTakeTheTemplateOfThatName) {
  write("tokenizer_config.json", R"({"eos_token": {"__type": "AddedToken", "content": "</s>"}, "chat_template": [
      {"name": "default", "template": "d{{ eos_token }}"}, {"name": "tool_use", "template": "{{ tools[0].name }}"}]})");
  EXPECT_EQ(render(), "d</s>");
  ordered_json chat = kHello;
  chat["tools"] = {{{"name", "f"}}};
  EXPECT_EQ(render(chat), "f");
}

TEST_F(ChatTemplateFolder, WithoutATemplateSaysSoAndNamesPrompt) {
  try {
    render();
    FAIL();
  } catch (const WeightsError& error) {
    EXPECT_NE(std::string(error.what()).find("has no chat template"), std::string::npos);
    EXPECT_NE(std::string(error.what()).find("--prompt=TEXT"), std::string::npos);
  }
}

TEST_F(ChatTemplateFolder, RefusalsNameFileLineAndChat) {
  write("chat_template.jinja", "\n{{ nothing.x }}");
  try {
    render();
    FAIL();
  } catch (const InputDataError& error) {
    EXPECT_EQ(error.what(),
              (folder_.path() / "chat_template.jinja").string() + ":2: 'nothing' is undefined, rendering --chat");
  }
}

}  // namespace
}  // namespace limbeck::text
