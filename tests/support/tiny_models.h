// config.json folders of tiny models, one for each family, for tests that need a structure and no weights.
#pragma once
#include <filesystem>
#include <string>
#include <vector>

namespace limbeck::test {

// Names of the families that have a tiny model.
std::vector<std::string> tiny_families();
// A fresh folder under the test's temporary directory that holds the config.json of this family.
std::filesystem::path tiny_model(const std::string& family);

}  // namespace limbeck::test
