#include "trainer/cli/commands/output_paths.h"

#include <fmt/format.h>

#include <system_error>

#include "modules/errors.h"
#include "modules/io/file_identity.h"
#include "trainer/recipe/message.h"

namespace limbeck::cli {
namespace {

namespace fs = std::filesystem;
using recipe::OptionKind;

// A model's or a data folder is flat, or nearly; what lies deeper belongs to something else.
constexpr int kDeepest = 2;
constexpr int kMostLookedAt = 100'000;

[[noreturn]] void refuse_for(const NamedPath& output, const NamedPath& input, const std::string& what) {
  throw UsageError(fmt::format("{}={}: {} {}={}, which is read: name another place", output.name,
                               recipe::shown(output.path.string()), what, input.name,
                               recipe::shown(input.path.string())));
}

bool holds_file(const fs::path& folder, const io::FileIdentity& file) {
  std::error_code ignored;
  auto entry = fs::recursive_directory_iterator(folder, fs::directory_options::skip_permission_denied, ignored);
  for (int seen = 0; !ignored && entry != fs::recursive_directory_iterator() && seen < kMostLookedAt; ++seen) {
    if (io::identity_of(entry->path()) == file) return true;
    if (entry.depth() >= kDeepest) entry.disable_recursion_pending();
    entry.increment(ignored);
  }
  return false;
}

}  // namespace

void check_output_file(const NamedPath& output, const std::vector<NamedPath>& inputs) {
  const std::string obstacle = io::obstacle_at(output.path);
  if (!obstacle.empty()) {
    throw IoError(fmt::format("{}={}: is {}, wanted the name of a file, new or to be replaced", output.name,
                              recipe::shown(output.path.string()), obstacle));
  }
  const auto file = io::identity_of(output.path);
  if (!file) return;
  for (const NamedPath& input : inputs) {
    if (io::identity_of(input.path) == file) refuse_for(output, input, "is the same file as");
    std::error_code ignored;
    if (fs::is_directory(input.path, ignored) && holds_file(input.path, *file))
      refuse_for(output, input, "is a file of");
  }
}

void check_output_folder(const NamedPath& output, const std::vector<NamedPath>& inputs) {
  std::error_code ignored;
  const fs::path target = fs::weakly_canonical(fs::absolute(output.path), ignored);
  for (const NamedPath& input : inputs) {
    const auto folder = fs::is_directory(input.path, ignored) ? io::identity_of(input.path) : std::nullopt;
    if (!folder) continue;
    if (io::identity_of(output.path) == folder) refuse_for(output, input, "is the same folder as");
    for (fs::path above = target; above.has_relative_path(); above = above.parent_path()) {
      if (io::identity_of(above) == folder) refuse_for(output, input, "lies in the folder");
    }
  }
}

std::vector<NamedPath> inputs_of(const recipe::Settings& settings, const std::string& recipe) {
  std::vector<NamedPath> found;
  if (!recipe.empty()) found.push_back({"RECIPE", recipe});
  for (const recipe::Option& option : settings.table().options()) {
    const bool reads = option.kind == OptionKind::kPath && option.writes == recipe::Writes::kNothing;
    if (reads && settings.given(option.name)) found.push_back({"--" + option.name, settings.path(option.name)});
  }
  return found;
}

void check_outputs(const recipe::Settings& settings, const std::string& recipe) {
  const std::vector<NamedPath> inputs = inputs_of(settings, recipe);
  for (const recipe::Option& option : settings.table().options()) {
    const bool writes = option.writes != recipe::Writes::kNothing && option.name != "json";  // see App
    if (!writes || !settings.given(option.name)) continue;
    const NamedPath output{"--" + option.name, settings.text(option.name)};
    if (option.writes == recipe::Writes::kFolder) check_output_folder(output, inputs);
    if (option.writes == recipe::Writes::kFile) check_output_file(output, inputs);
  }
}

}  // namespace limbeck::cli
