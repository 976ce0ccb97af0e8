// What a command writes must not be what it reads: refused before anything is computed, by the files themselves
// (device and inode), so that no link and no spelling leads around it.
#pragma once
#include <filesystem>
#include <string>
#include <vector>

#include "trainer/recipe/settings.h"

namespace limbeck::cli {

struct NamedPath {
  std::string name;  // as a message calls it: --output
  std::filesystem::path path;
};

// UsageError when the output is one of the inputs or a file inside one; a folder also when it lies inside an input.
// IoError when what stands there is no regular file.
void check_output_file(const NamedPath& output, const std::vector<NamedPath>& inputs);
void check_output_folder(const NamedPath& output, const std::vector<NamedPath>& inputs);

// Every path option of the command that is no output, and `recipe` unless it is "".
std::vector<NamedPath> inputs_of(const recipe::Settings& settings, const std::string& recipe);
// Both checks, for every output option that was given but --json.
void check_outputs(const recipe::Settings& settings, const std::string& recipe);

}  // namespace limbeck::cli
