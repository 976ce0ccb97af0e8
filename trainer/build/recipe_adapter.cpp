#include "trainer/build/recipe_adapter.h"

#include <fmt/format.h>

#include "modules/adapters/folder/peft_folder.h"
#include "modules/errors.h"

namespace limbeck::build {
namespace {

using Made = std::optional<adapters::AdapterConfig>;

// One function for each thing that options may ask for.
struct AdapterMaker {
  models::BuiltModel& student;
  std::vector<std::string>& notes;
  const std::string& kind_words;

  Made operator()(std::monostate) const { return std::nullopt; }

  Made operator()(const StoredAdapter& wanted) const {
    const adapters::LoadedAdapter loaded = adapters::load_adapter(
        student, {.folder = wanted.folder, .name = kAdapterName, .trainable = true, .dropout = wanted.dropout});
    require_dropout_fits(wanted.dropout_words, wanted.dropout.value_or(0), adapters::kind_name(loaded.config),
                         wanted.folder_where);
    const double own = adapters::dropout_of(loaded.config);
    if (loaded.stored_dropout != own) {
      notes.push_back(fmt::format("{} in place of lora_dropout = {} of {}", wanted.dropout_words, loaded.stored_dropout,
                                  wanted.folder.string()));
    }
    return loaded.config;
  }

  Made operator()(const adapters::NewAdapter& wanted) const {
    named([&] { adapters::create_adapter(student, wanted); });
    return wanted.config;
  }

  Made operator()(const adapters::NptOptions& wanted) const {
    named([&] { adapters::create_npt(student, wanted, kAdapterName); });
    return wanted;
  }

  Made operator()(const adapters::NewAdded& wanted) const {
    named([&] { adapters::create_added(student, wanted); });
    return wanted.config;
  }

  // A refusal says which line of the recipe asked for it.
  template <class Make>
  void named(const Make& make) const {
    try {
      make();
    } catch (const UsageError& error) {
      throw UsageError(fmt::format("{} ({})", error.what(), kind_words));
    }
  }
};

}  // namespace

std::optional<adapters::AdapterConfig> adapt_student(const AdapterOptions& options, models::BuiltModel& student,
                                                     std::vector<std::string>& notes) {
  const Made made = std::visit(AdapterMaker{student, notes, options.kind_words}, options.wanted);
  if (made) student.policy->require_all_rules_used(student.model->path());
  return made;
}

}  // namespace limbeck::build
