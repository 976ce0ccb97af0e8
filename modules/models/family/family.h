// The supported model families: one declarative row each. A row reads config.json into an Architecture and says how the
// checkpoint names the parameters. To add a family, add a row in family.cpp and a case in tests/python/model_zoo.py; a
// plug-in adds one by add_family(), in every process that is to know it, before a model is built.
#pragma once
#include <deque>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "modules/io/json_file.h"
#include "modules/models/family/architecture.h"
#include "modules/named_kind.h"
#include "modules/quantization/folder_layout.h"

namespace limbeck::models {

// How a parameter of ours is stored in the checkpoint.
struct NameRule {
  std::string ours;         // path of a module or parameter below the model root; {} matches a layer or expert number
  std::string theirs;       // the checkpoint's name with the same {}
  bool transposed = false;  // GPT-2 stores [in, out]
};

struct Family {
  std::string name;
  std::vector<std::string> architectures;  // of config.json
  std::function<Architecture(const io::JsonFile& config, const std::string& architecture)> read;
  std::vector<NameRule> names;  // first match wins; without one, the name stays as it is
  std::string prefix;           // of everything but the heads; a bare encoder checkpoint may lack it
  std::vector<std::string>
      ignored;               // patterns of checkpoint tensors that carry no weight of ours (old buffers, other heads)
  std::string summary = {};  // for `limbeck list models`
  bool of_limbeck = false;   // its config.json is Limbeck's own: transformers does not know it
};

std::deque<Family> shipped_families();
// Those, then the ones that were added. A deque: a model keeps a pointer to its family.
const std::deque<Family>& families();
// UsageError where its name, or an architecture of its, is another family's, or where it cannot be read.
void add_family(Family family);
std::vector<NamedKind> family_names();

// The key of config.json by which a resolvent sees what goes in and comes out as 8-bit codes: "float" or "int8".
inline constexpr const char* kBkActivations = "bk_activations";

struct ModelConfig {
  Architecture architecture;
  const Family* family = nullptr;
  std::filesystem::path folder;
  std::shared_ptr<const quantization::FolderLayout> layout;  // of its packed weights; null: all are plain
};

// Reads FOLDER/config.json (and generation_config.json where there is one). Throws WeightsError for an unknown family
// (all are listed) or an option that is not supported, naming file and key.
ModelConfig read_model_config(const std::filesystem::path& folder);

}  // namespace limbeck::models
