#include "modules/models/weights/save_model.h"

#include <fmt/format.h>
#include <unistd.h>

#include <atomic>
#include <system_error>

#include "modules/errors.h"
#include "modules/io/atomic_file.h"
#include "modules/io/folder_in_place.h"
#include "modules/io/input_file.h"

namespace limbeck::models {

namespace {

namespace fs = std::filesystem;

// Everything else of a folder is about its weights.
constexpr const char* kOfTokenizer[] = {"tokenizer.json",
                                        "tokenizer_config.json",
                                        "special_tokens_map.json",
                                        "added_tokens.json",
                                        "vocab.json",
                                        "vocab.txt",
                                        "merges.txt",
                                        "tokenizer.model",
                                        "spiece.model",
                                        "chat_template.json",
                                        "chat_template.jinja"};
constexpr const char* kOfGeneration = "generation_config.json";

void copy_if_there(const fs::path& from, const fs::path& to, const char* name) {
  std::error_code absent;
  if (fs::is_regular_file(from / name, absent)) io::write_atomically(to / name, io::InputFile(from / name).whole());
}

// The dtype that holds every stored value: the one of all tensors, or where rules mix them the one that loses nothing.
at::ScalarType stored_dtype(const io::NamedTensors& tensors) {
  at::ScalarType dtype = tensors.front().second.scalar_type();
  for (const auto& [name, tensor] : tensors) dtype = c10::promoteTypes(dtype, tensor.scalar_type());
  return dtype;
}

std::string config_text(const fs::path& source, at::ScalarType dtype) {
  nlohmann::json config = io::JsonFile(source / "config.json").value();
  const std::string name = precision::dtype_name(dtype);
  if (config.contains("torch_dtype")) config["torch_dtype"] = name;
  if (config.contains("dtype") || !config.contains("torch_dtype")) config["dtype"] = name;
  return config.dump(2) + "\n";
}

// Removed with all it holds unless it was put in place.
class TemporaryFolder {
 public:
  explicit TemporaryFolder(const fs::path& target) : target_(target) {
    static std::atomic<uint64_t> counter{0};
    const fs::path parent = target.has_parent_path() ? target.parent_path() : fs::path(".");
    std::error_code error;
    fs::create_directories(parent, error);
    path_ = parent / fmt::format(".tmp-{}-{}-{}", target.filename().string(), ::getpid(), counter.fetch_add(1));
    if (!error) fs::create_directory(path_, error);
    if (error) throw IoError(path_.string() + ": cannot be created: " + error.message());
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    if (!path_.empty()) fs::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const fs::path& path() const { return path_; }

  void put_in_place() {
    io::put_folder_in_place(path_, target_);
    path_.clear();
  }

 private:
  fs::path target_, path_;
};

}  // namespace

void save_model(const BuiltModel& built, const fs::path& folder, const SaveOptions& options) {
  const fs::path target = folder.has_filename() ? folder : folder.parent_path();  // "out/" is "out"
  std::error_code error;
  const bool there = fs::exists(target, error);
  if (there && (!fs::is_directory(target, error) || !fs::is_empty(target, error))) {
    throw UsageError(target.string() + ": is there already: name a folder that does not exist, or remove it");
  }
  io::NamedTensors tensors;
  for (const WeightBinding& binding : bind_weights(*built.model, *built.config.family)) {
    tensors.emplace_back(binding.name, binding.values());
  }
  const fs::path& source = built.config.folder;
  TemporaryFolder temporary(target);
  io::write_weights_folder(temporary.path(), tensors, options.max_shard_bytes, options.before);
  io::write_atomically(temporary.path() / "config.json", config_text(source, stored_dtype(tensors)));
  copy_if_there(source, temporary.path(), kOfGeneration);
  for (const char* name : kOfTokenizer)
    copy_if_there(options.tokenizer.empty() ? source : options.tokenizer, temporary.path(), name);
  temporary.put_in_place();
}

}  // namespace limbeck::models
