// How a model wants its chats written: the template of its folder, found where transformers finds it, and the special
// tokens that the template may name. Rendering equals transformers' apply_chat_template(tokenize=False).
#pragma once
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "modules/text/jinja/rendering.h"

namespace limbeck::text {

// The template that is called default, as it is written there; none: the folder has none.
std::optional<std::string> default_template(const std::filesystem::path& folder);

class ChatTemplate {
 public:
  // WeightsError: the folder has none. What is wrong with the template is InputDataError.
  explicit ChatTemplate(const std::filesystem::path& folder);

  // `chat`: an object with "messages"; "tools", "documents" and what else the template is to see are its other keys.
  // `where` names it in messages. The text holds its special tokens: to be encoded without adding any.
  std::string render(const nlohmann::ordered_json& chat, bool add_generation_prompt, const std::string& where) const;

 private:
  const jinja::Source& choose(bool with_tools) const;

  std::string where_;
  std::map<std::string, jinja::Source> sources_;  // by name; the one of most folders is "default"
  nlohmann::ordered_json special_tokens_;
};

}  // namespace limbeck::text
