// What a recipe says of the adapter on its student, read once: who makes it sees no key, word or line of the recipe,
// but for the words by which a refusal names it.
#pragma once
#include <filesystem>
#include <optional>
#include <string>
#include <variant>

#include "modules/adapters/added/create_added.h"
#include "modules/adapters/new_adapter.h"
#include "modules/adapters/npt/create_npt.h"
#include "trainer/recipe/settings.h"

namespace limbeck::build {

inline constexpr const char* kAdapterName = "default";

// One to start from.
struct StoredAdapter {
  std::filesystem::path folder;
  std::string folder_where;
  std::optional<double> dropout;  // in place of the folder's own
  std::string dropout_words;      // "adapter.dropout = 0.1 (my.ini:4)"
};

struct AdapterOptions {
  // What is made on the student, or read for it; the first: nothing, its own weights train.
  std::variant<std::monostate, StoredAdapter, adapters::NewAdapter, adapters::NptOptions, adapters::NewAdded> wanted;
  std::string kind_words;  // "adapter.kind = lora (my.ini:3)"
};

// Whether the student's own weights stay as they are.
bool trains_adapter(const recipe::Settings& settings);
// Of adapter.*, and of what else in the recipe they do not go with: that is a UsageError.
AdapterOptions read_adapter_options(const recipe::Settings& settings);
// UsageError for a dropout on a kind that has none.
void require_dropout_fits(const std::string& dropout_words, double dropout, const std::string& kind,
                          const std::string& kind_where);

}  // namespace limbeck::build
