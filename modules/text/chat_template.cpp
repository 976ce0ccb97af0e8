#include "modules/text/chat_template.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <optional>
#include <utility>
#include <vector>

#include "modules/errors.h"
#include "modules/io/input_file.h"
#include "modules/io/json_file.h"
#include "modules/io/tensor_name.h"
#include "modules/text/characters/unicode.h"

namespace limbeck::text {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

// Text of a template and the place that messages name.
struct WrittenTemplate {
  std::string name, text, where;
};

bool is_there(const fs::path& path) { return fs::exists(fs::symlink_status(path)); }

WrittenTemplate read_template_file(const fs::path& path, std::string name) {
  const io::InputFile file(path);
  const size_t most = jinja::Limits{}.template_bytes;
  if (file.size() > most)
    throw InputDataError(
        fmt::format("{}: {} bytes, wanted a template of at most {}", path.string(), file.size(), most));
  std::string text = file.whole();
  file.check_size();
  const size_t fault = utf8_fault(text);
  if (fault != text.npos)
    throw InputDataError(fmt::format("{}: byte {} is not UTF-8: save the template as UTF-8", path.string(), fault));
  return {std::move(name), std::move(text), path.string()};
}

// Files beside the tokenizer's settings; when there is one, the settings' own templates do not count.
std::vector<WrittenTemplate> templates_of_files(const fs::path& folder) {
  std::vector<WrittenTemplate> found;
  const fs::path plain = folder / "chat_template.jinja", more = folder / "additional_chat_templates";
  if (is_there(plain)) found.push_back(read_template_file(plain, "default"));
  if (!fs::is_directory(more)) return found;
  std::vector<fs::path> paths;
  for (const auto& entry : fs::directory_iterator(more)) {
    if (entry.path().extension() == ".jinja") paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  for (const fs::path& path : paths) found.push_back(read_template_file(path, path.stem().string()));
  return found;
}

std::vector<WrittenTemplate> templates_of_settings(const io::JsonFile& settings) {
  const std::string where = settings.where() + ": \"chat_template\"";
  if (!settings.has("chat_template")) return {};
  const auto& value = settings.value().at("chat_template");
  const std::string wanted = "a string, or a list of {\"name\": ..., \"template\": ...}";
  if (value.is_string()) return {{"default", value.get<std::string>(), where}};
  if (!value.is_array()) throw InputDataError(fmt::format("{}: is {}, wanted {}", where, value.type_name(), wanted));
  std::vector<WrittenTemplate> found;
  for (const auto& entry : value) {
    if (!entry.is_object() || !entry.contains("name") || !entry.contains("template") || !entry["name"].is_string() ||
        !entry["template"].is_string())
      throw InputDataError(fmt::format("{}: entry {} is another thing, wanted {}", where, found.size() + 1, wanted));
    const auto name = entry["name"].get<std::string>();
    found.push_back({name, entry["template"].get<std::string>(), where + " " + io::in_quotes(name)});
  }
  return found;
}

std::vector<WrittenTemplate> written_templates(const fs::path& folder) {
  std::vector<WrittenTemplate> found = templates_of_files(folder);
  const fs::path settings = folder / "tokenizer_config.json";
  if (found.empty() && is_there(settings)) found = templates_of_settings(io::JsonFile(settings));
  return found;
}

// A special token is a string, or an object that holds it as its content.
std::optional<std::string> token_of(const nlohmann::json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_object() && value.contains("content") && value["content"].is_string())
    return value["content"].get<std::string>();
  return std::nullopt;
}

void take_tokens(const nlohmann::json& from, ordered_json& tokens) {
  for (const auto& [key, value] : from.items()) {
    if (key == "extra_special_tokens" && value.is_object()) {
      for (const auto& [name, token] : value.items()) {
        if (const auto text = token_of(token)) tokens[name] = *text;
      }
    }
    if (!key.ends_with("_token")) continue;
    if (const auto text = token_of(value))
      tokens[key] = *text;
    else if (value.is_null())
      tokens.erase(key);
  }
}

}  // namespace

std::optional<std::string> default_template(const fs::path& folder) {
  for (WrittenTemplate& one : written_templates(folder)) {
    if (one.name == "default") return std::move(one.text);
  }
  return std::nullopt;
}

ChatTemplate::ChatTemplate(const fs::path& folder) : where_(folder.string()), special_tokens_(ordered_json::object()) {
  const fs::path settings_path = folder / "tokenizer_config.json", map_path = folder / "special_tokens_map.json";
  std::vector<WrittenTemplate> found = written_templates(folder);
  bool knows_tokens = false;
  if (is_there(settings_path)) {
    const io::JsonFile settings(settings_path);
    take_tokens(settings.value(), special_tokens_);
    knows_tokens = settings.value().contains("added_tokens_decoder");
  }
  // Of tokenizers that were saved before the settings named every added token.
  if (!knows_tokens && is_there(map_path)) take_tokens(io::JsonFile(map_path).value(), special_tokens_);
  if (found.empty()) {
    throw WeightsError(fmt::format(
        "{}: has no chat template, wanted chat_template.jinja or the key \"chat_template\" of tokenizer_config.json: "
        "this model may know no chats; give it plain text with --prompt=TEXT",
        where_));
  }
  for (WrittenTemplate& one : found)
    sources_.insert_or_assign(std::move(one.name), jinja::Source(one.text, std::move(one.where)));
}

const jinja::Source& ChatTemplate::choose(bool with_tools) const {
  auto found = with_tools ? sources_.find("tool_use") : sources_.end();
  if (found == sources_.end()) found = sources_.find("default");
  if (found != sources_.end()) return found->second;
  std::vector<std::string> names;
  for (const auto& [name, source] : sources_) names.push_back(name);
  throw InputDataError(fmt::format("{}: has the chat templates {} and none called default: save the one you want as {}",
                                   where_, fmt::join(names, ", "),
                                   (fs::path(where_) / "chat_template.jinja").string()));
}

std::string ChatTemplate::render(const ordered_json& chat, bool add_generation_prompt, const std::string& where) const {
  ordered_json variables = special_tokens_;
  variables["tools"] = nullptr;
  variables["documents"] = nullptr;
  for (const auto& [key, value] : chat.items()) variables[key] = value;
  variables["add_generation_prompt"] = add_generation_prompt;
  return choose(!variables["tools"].is_null()).render(variables, where);
}

}  // namespace limbeck::text
