// Chats as users give them: a message on the command line, or a file of conversations; made a model's text by the
// template of its folder.
#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "trainer/recipe/option_table.h"
#include "trainer/recipe/settings.h"

namespace limbeck::cli {

struct WrittenChat {
  std::string text, where;
};

void declare_chats(recipe::OptionTable& table);
bool gives_chats(const recipe::Settings& settings);
// By --chat, --chats and --system; UsageError for what goes not together.
std::vector<WrittenChat> written_chats(const recipe::Settings& settings, const std::filesystem::path& tokenizer,
                                       bool add_generation_prompt);

}  // namespace limbeck::cli
