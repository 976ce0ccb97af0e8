#include "modules/adapters/folder/npt_folder.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <map>
#include <set>
#include <system_error>

#include "modules/adapters/folder/stored_values.h"
#include "modules/adapters/npt/npt_config.h"
#include "modules/adapters/peft/adapter_names.h"
#include "modules/errors.h"
#include "modules/io/atomic_file.h"
#include "modules/nearest_name.h"
#include "modules/precision/casts.h"

namespace limbeck::adapters {
namespace {

namespace fs = std::filesystem;

std::string stored_name(const models::BuiltModel& built, size_t layer, const std::string& parameter) {
  return fmt::format("base_model.model.{}layers.{}.npt.{}.weight", built.config.family->prefix, layer, parameter);
}

// Every tensor that the shape wants is there in its shape, and no other: known before anything of that size is made.
void require_exactly(const io::SafetensorsFile& file, const models::BuiltModel& built, const NptShape& shape) {
  std::set<std::string> unused;
  std::vector<std::string> names;
  for (const io::TensorEntry& entry : file.entries()) names.push_back(entry.name), unused.insert(entry.name);
  for (size_t layer = 0; layer < built.model->layers().size(); ++layer) {
    for (const NptShape::Parameter& one : shape.parameters()) {
      const std::string name = stored_name(built, layer, one.name);
      const io::TensorEntry* entry = file.find(name);
      if (entry == nullptr) {
        throw WeightsError(fmt::format(
            "{}: tensor {} is missing{}: adapter_config.json and {} layers want it", file.path().string(), name,
            offer_nearest(name, names, 1, {.before = " (nearest: ", .behind = ")"}), built.model->layers().size()));
      }
      unused.erase(name);
      if (at::isFloatingType(entry->dtype) && entry->shape == std::vector<int64_t>{one.rows, one.columns}) continue;
      throw WeightsError(
          fmt::format("{}: tensor {} is {} [{}], wanted [{},{}]: adapter_config.json gives it rank {}, or "
                      "is it an adapter of another model?",
                      file.path().string(), name, precision::dtype_name(entry->dtype), fmt::join(entry->shape, ","),
                      one.rows, one.columns, shape.rank));
    }
  }
  if (unused.empty()) return;
  throw WeightsError(fmt::format("{}: {} tensors have no place in this adapter of {} layers: {}", file.path().string(),
                                 unused.size(), built.model->layers().size(), fmt::join(unused, ", ")));
}

bool fill_npt(const at::Tensor& parameter, const io::SafetensorsFile& file, const io::TensorEntry& entry) {
  at::Tensor target = parameter.detach();
  if (!target.is_meta()) {
    take_stored(target, file.read(entry, io::NonFinite::kRefuse), file.path().string(), entry.name);
  }
  return entry.dtype != target.scalar_type();
}

}  // namespace

bool is_npt_folder(const fs::path& folder) {
  return io::JsonFile(folder / kConfigFile).string("peft_type") == kNptType;
}

LoadedAdapter load_npt(models::BuiltModel& built, const AdapterRequest& request) {
  NptOptions options = read_npt_config(io::JsonFile(request.folder / kConfigFile));
  options.trainable = request.trainable;
  const io::SafetensorsFile file(request.folder / kTensorFile);
  require_exactly(file, built, shape_for(built, options));
  const auto adapters = make_npt(built, options, request.name);
  LoadedAdapter loaded;
  loaded.config = options;
  loaded.modules = static_cast<int64_t>(adapters.size());
  for (size_t layer = 0; layer < adapters.size(); ++layer) {
    for (const NptShape::Parameter& one : adapters[layer]->shape().parameters()) {
      const io::TensorEntry& entry = *file.find(stored_name(built, layer, one.name));
      loaded.cast_tensors += fill_npt(adapters[layer]->parameter(one.name), file, entry) ? 1 : 0;
    }
  }
  put_on(built, adapters, request.name);
  loaded.weights = npt_weights(built, request.name);
  return loaded;
}

std::vector<AdapterWeight> npt_weights(const models::BuiltModel& built, const std::string& name) {
  std::vector<AdapterWeight> weights;
  const auto adapters = npt_of(built, name);
  for (size_t layer = 0; layer < adapters.size(); ++layer) {
    for (const NptShape::Parameter& one : adapters[layer]->shape().parameters()) {
      weights.push_back({stored_name(built, layer, one.name), adapters[layer]->parameter(one.name)});
    }
  }
  return weights;
}

void save_npt(const models::BuiltModel& built, const std::string& name, const fs::path& folder,
              const io::BeforeTensor& before) {
  io::NamedTensors tensors;
  for (const AdapterWeight& weight : npt_weights(built, name)) {
    tensors.emplace_back(weight.name, weight.parameter.detach());
  }
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) throw IoError(folder.string() + ": cannot be created: " + error.message());
  for (const fs::path& old : {folder / kConfigFile, folder / kTensorFile}) {
    if (fs::symlink_status(old, error).type() == fs::file_type::not_found) continue;
    throw UsageError(old.string() + ": is there already: name an empty folder, or remove the old adapter");
  }
  io::write_safetensors(folder / kTensorFile, tensors, {{"format", "pt"}}, before);
  // Last, because it is what makes the tensors an adapter.
  const NptShape& shape = npt_of(built, name).front()->shape();
  io::write_atomically(folder / kConfigFile, npt_config_text(shape, built.config.folder.string()));
}

}  // namespace limbeck::adapters
