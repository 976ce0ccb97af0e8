#include "trainer/cli/commands/chats.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "modules/errors.h"
#include "modules/io/json_file.h"
#include "modules/io/json_text.h"
#include "modules/io/tensor_name.h"
#include "modules/text/characters/unicode.h"
#include "modules/text/chat_template.h"

namespace limbeck::cli {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;
using recipe::OptionKind;

constexpr const char* kForms =
    "a list of messages such as [{\"role\": \"user\", \"content\": \"Hello\"}], or an object with it as \"messages\"";

struct Chat {
  ordered_json content;  // an object with "messages" and what else the template is to see
  std::string where;
};

[[noreturn]] void refuse(const std::string& where, const std::string& got, const std::string& wanted) {
  throw InputDataError(fmt::format("{}: {}, wanted {}", where, got, wanted));
}

void check_messages(const ordered_json& messages, const std::string& where) {
  if (!messages.is_array()) refuse(where, fmt::format("is {}", messages.type_name()), kForms);
  if (messages.empty()) refuse(where, "has no messages", "at least one");
  for (size_t i = 0; i < messages.size(); ++i) {
    const ordered_json& message = messages[i];
    const std::string place = fmt::format("{}: message {}", where, i + 1);
    if (!message.is_object()) refuse(place, fmt::format("is {}", message.type_name()), "an object with \"role\"");
    if (!message.contains("role") || !message["role"].is_string())
      refuse(place, "has no \"role\" that is a string", "such as \"user\"");
  }
}

// What stands beside the messages: what apply_chat_template takes, and further names under "chat_template_kwargs".
Chat checked_chat(ordered_json given, std::string where) {
  Chat chat{ordered_json::object(), std::move(where)};
  if (given.is_array()) {
    chat.content["messages"] = std::move(given);
  } else if (given.is_object()) {
    if (!given.contains("messages")) refuse(chat.where, "has no key \"messages\"", kForms);
    for (auto& [key, value] : given.items()) {
      if (key == "chat_template_kwargs" && value.is_object()) continue;
      if (key != "messages" && key != "tools" && key != "documents") {
        refuse(chat.where, "has the key " + io::in_quotes(key),
               "messages, tools, documents, and what else the template takes as an object \"chat_template_kwargs\"");
      }
      const bool list = value.is_array() &&
                        std::all_of(value.begin(), value.end(), [](const auto& entry) { return entry.is_object(); });
      if (key != "messages" && !list && !value.is_null())
        refuse(chat.where, fmt::format("\"{}\" is no list of objects", key), "one");
      chat.content[key] = std::move(value);
    }
    const ordered_json further = given.value("chat_template_kwargs", ordered_json::object());
    for (const auto& [key, value] : further.items()) {
      for (const char* own : {"messages", "tools", "documents", "add_generation_prompt"}) {
        if (key == own)
          refuse(chat.where, fmt::format("\"chat_template_kwargs\" has the key \"{}\"", own), "another name");
      }
      chat.content[key] = value;
    }
  } else {
    refuse(chat.where, fmt::format("is {}", given.type_name()), kForms);
  }
  check_messages(chat.content["messages"], chat.where);
  return chat;
}

// One conversation, or a list of them.
bool holds_many(const ordered_json& whole) {
  if (!whole.is_array() || whole.empty()) return false;
  return whole[0].is_array() || (whole[0].is_object() && whole[0].contains("messages"));
}

std::vector<Chat> read_chats(const fs::path& path) {
  const std::string name = path.string();
  const std::string text = io::read_json_text(path);
  std::vector<Chat> chats;
  if (path.extension() == ".json") {
    ordered_json whole = io::parse_ordered_json(text, name);
    if (!holds_many(whole)) return {checked_chat(std::move(whole), name)};
    for (ordered_json& one : whole)
      chats.push_back(checked_chat(std::move(one), fmt::format("{}: conversation {}", name, chats.size() + 1)));
    return chats;
  }
  if (path.extension() != ".jsonl") refuse(name, "is neither a .json nor a .jsonl file", "chats in one of these forms");
  size_t line = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    const std::string where = fmt::format("{}:{}", name, ++line);
    chats.push_back(checked_chat(io::parse_ordered_json(std::string_view(text).substr(at, end - at), where), where));
    at = end + 1;
  }
  if (chats.empty()) refuse(name, "is empty", "a chat on every line");
  return chats;
}

void put_system(Chat& chat, const std::string& system) {
  ordered_json& messages = chat.content["messages"];
  const auto& role = messages[0]["role"].get_ref<const std::string&>();
  if (role == "system" || role == "developer")
    refuse(chat.where, "begins with a message of the role " + role, "none, because --system gives it");
  messages.insert(messages.begin(), ordered_json{{"role", "system"}, {"content", system}});
}

// An argument may be any bytes; a file's JSON was checked.
void check_utf8(const std::string& flag, const std::string& text) {
  const size_t fault = text::utf8_fault(text);
  if (fault != text.npos) throw UsageError(fmt::format("{}: byte {} is not UTF-8", flag, fault));
}

std::vector<Chat> given_chats(const recipe::Settings& settings) {
  std::vector<Chat> chats;
  if (settings.given("chats")) {
    chats = read_chats(settings.path("chats"));
  } else {
    const std::vector<std::string> texts = settings.list("chat");
    for (size_t i = 0; i < texts.size(); ++i) {
      const std::string where = texts.size() == 1 ? "--chat" : fmt::format("--chat {}", i + 1);
      check_utf8(where, texts[i]);
      const ordered_json message = {{"role", "user"}, {"content", texts[i]}};
      chats.push_back(checked_chat(ordered_json::array({message}), where));
    }
  }
  if (settings.given("system")) {
    check_utf8("--system", settings.text("system"));
    for (Chat& chat : chats) put_system(chat, settings.text("system"));
  }
  return chats;
}

}  // namespace

void declare_chats(recipe::OptionTable& table) {
  table.add({.name = "chat",
             .kind = OptionKind::kList,
             .help = "A user's message, written as a chat by the model's own template; may be repeated.",
             .value_name = "TEXT",
             .flag_only = true});
  table.add({.name = "chats",
             .kind = OptionKind::kPath,
             .help =
                 "Chats as JSON, or one a line (.jsonl): lists of {\"role\", \"content\"}, or objects with such a list "
                 "as \"messages\", and \"tools\" if wanted.",
             .value_name = "FILE",
             .flag_only = true});
  table.add({.name = "system",
             .kind = OptionKind::kText,
             .help = "The system message of every chat.",
             .value_name = "TEXT",
             .flag_only = true});
}

bool gives_chats(const recipe::Settings& settings) { return settings.given("chats") || settings.given("chat"); }

std::vector<WrittenChat> written_chats(const recipe::Settings& settings, const fs::path& tokenizer,
                                       bool add_generation_prompt) {
  if (settings.enabled("no-special-tokens")) {
    throw UsageError(
        "--no-special-tokens: a chat has the special tokens that its template writes and no others; "
        "leave this switch out");
  }
  const text::ChatTemplate chat_template(fs::is_directory(tokenizer) ? tokenizer : tokenizer.parent_path());
  std::vector<WrittenChat> written;
  for (const Chat& chat : given_chats(settings))
    written.push_back({chat_template.render(chat.content, add_generation_prompt, chat.where), chat.where});
  return written;
}

}  // namespace limbeck::cli
