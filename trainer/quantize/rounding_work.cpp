#include "trainer/quantize/rounding_work.h"

#include <fmt/format.h>

#include "modules/errors.h"
#include "modules/io/atomic_file.h"
#include "modules/io/crc32c.h"
#include "modules/io/json_file.h"
#include "modules/io/safetensors.h"

namespace limbeck::quantize {

namespace {

using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

constexpr const char *kSaid = "said", *kDigest = "digest", *kIdentityFile = "rounding.json";

Json said_of(const FinishedStage& finished) {
  Json modules = Json::array();
  for (const RoundedModule& module : finished.modules)
    modules.push_back({module.path, module.format, module.tokens, module.damping, module.nearest, module.compensated});
  Json json = {{"modules", modules}};
  if (finished.experts) {
    const RoundedExperts& of = *finished.experts;
    json["experts"] = {of.path, of.format, of.tokens, of.to_nearest, of.nearest, of.compensated};
  }
  if (!finished.layer) return json;
  const LearnedLayer& layer = *finished.layer;
  json["layer"] = {layer.path, layer.kept, layer.step, layer.nearest, layer.compensated, layer.learned, layer.errors};
  return json;
}

FinishedStage finished_of(const Json& json) {
  FinishedStage finished;
  for (const Json& module : json.at("modules"))
    finished.modules.push_back({module.at(0), module.at(1), module.at(2), module.at(3), module.at(4), module.at(5)});
  if (json.contains("experts")) {
    const Json& of = json["experts"];
    finished.experts = {of.at(0), of.at(1), of.at(2), of.at(3), of.at(4), of.at(5)};
  }
  if (!json.contains("layer")) return finished;
  const Json& layer = json["layer"];
  finished.layer = {layer.at(0), layer.at(1), layer.at(2), layer.at(3), layer.at(4), layer.at(5), layer.at(6)};
  return finished;
}

std::string checksum_of(const std::string& said, const io::NamedTensors& tensors) {
  uint32_t sum = io::crc32c(said.data(), said.size());
  for (const auto& [name, tensor] : tensors) {
    sum = io::crc32c(name.data(), name.size(), sum);
    sum = io::crc32c(tensor.const_data_ptr(), tensor.nbytes(), sum);
  }
  return fmt::format("{:08x}", sum);
}

// A module's packed weight, and what a file calls its parts.
struct KeptWeight {
  std::shared_ptr<precision::ContractModule> module;
  std::string weight, name;

  const precision::PackedWeight& now() const { return *module->packed_weight(weight); }
  std::string part_name(const std::string& part) const { return name + "." + part; }

  void replace(std::vector<at::Tensor> parts) const {
    if (now().count() == 0) {
      kernels::QuantizedMatrix matrix = now().matrix();
      matrix.parts = std::move(parts);
      module->replace_packed_weight(weight, precision::PackedWeight(matrix).on(module->placement()));
      return;
    }
    kernels::QuantizedStack stack = now().stack();
    stack.parts = std::move(parts);
    for (int64_t i = 0; i < stack.count; ++i)
      module->replace_packed_member(weight, i, precision::PackedWeight(stack.matrix(i)));
  }
};

std::vector<KeptWeight> kept_weights(const StageModules& modules) {
  std::vector<KeptWeight> kept;
  for (const auto& linear : modules.linears) kept.push_back({linear, "weight", linear->path()});
  if (modules.experts == nullptr) return kept;
  for (const auto& [stack, codes] : modules.experts->packed_weights())
    kept.push_back({modules.experts, stack, modules.experts->path() + "." + stack});
  return kept;
}

// It is removed as a whole when all is done. What a killed process was writing is there too.
void require_own(const fs::path& folder) {
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (name == kIdentityFile || name.starts_with("stage-") || name.starts_with(".tmp-")) continue;
    throw UsageError(
        fmt::format("{}: holds {}, wanted a folder for what is rounded so far alone: move it away, or name "
                    "another --output",
                    folder.string(), name));
  }
}

void require_identity(const fs::path& folder, const Json& wanted) {
  Json found;
  try {
    found = Json::parse(io::read_json_text(folder / kIdentityFile));
  } catch (const nlohmann::json::exception&) {
    found = nullptr;
  }
  if (found == wanted) return;
  std::string other = "something else";
  for (const auto& [key, value] : wanted.items()) {
    if (found.is_object() && found.contains(key) && found[key] == value) continue;
    other = "other " + key;
    break;
  }
  throw UsageError(
      fmt::format("{}: holds what was rounded of {}, wanted that of this run: go on with the command that "
                  "began it, or remove the folder to begin anew",
                  folder.string(), other));
}

}  // namespace

RoundingWork::RoundingWork(fs::path folder, const Json& identity) : folder_(std::move(folder)) {
  std::error_code fault;
  fs::create_directories(folder_, fault);
  if (fault) throw IoError(fmt::format("{}: cannot be made: {}", folder_.string(), fault.message()));
  require_own(folder_);
  if (finished() > 0) {
    require_identity(folder_, identity);
  } else {
    io::write_atomically(folder_ / kIdentityFile, identity.dump(1) + "\n");
  }
}

fs::path RoundingWork::file_of(size_t stage) const { return folder_ / fmt::format("stage-{:05}.safetensors", stage); }

int64_t RoundingWork::finished() const {
  size_t count = 0;
  std::error_code fault;
  while (fs::exists(file_of(count), fault)) ++count;
  return static_cast<int64_t>(count);
}

std::optional<FinishedStage> RoundingWork::take(size_t stage, const StageModules& modules) const {
  const fs::path path = file_of(stage);
  std::error_code fault;
  if (!fs::exists(path, fault)) return std::nullopt;
  const auto damaged = [&](const std::string& why) {
    return InputDataError(fmt::format("{}: {}: remove it, and what is behind it is rounded anew", path.string(), why));
  };
  const io::SafetensorsFile file(path);
  const auto said = file.metadata().find(kSaid), digest = file.metadata().find(kDigest);
  if (said == file.metadata().end() || digest == file.metadata().end()) throw damaged("is no file of a finished stage");
  const std::vector<KeptWeight> kept = kept_weights(modules);
  io::NamedTensors tensors;
  for (const KeptWeight& weight : kept) {
    for (const auto& [part, now] : weight.now().parts()) {
      const std::string name = weight.part_name(part);
      const io::TensorEntry* entry = file.find(name);
      if (entry == nullptr || entry->dtype != now.scalar_type() || at::IntArrayRef(entry->shape) != now.sizes())
        throw damaged("lacks " + name + " as it is to be");
      tensors.emplace_back(entry->name, file.read(*entry));
    }
  }
  if (checksum_of(said->second, tensors) != digest->second) throw damaged("is damaged: its checksum is another");
  auto tensor = tensors.begin();
  for (const KeptWeight& weight : kept) {
    std::vector<at::Tensor> parts;
    for (size_t i = 0; i < weight.now().parts().size(); ++i) parts.push_back((tensor++)->second);
    weight.replace(std::move(parts));
  }
  return finished_of(Json::parse(said->second));
}

void RoundingWork::keep(size_t stage, const StageModules& modules, const FinishedStage& finished) const {
  io::NamedTensors tensors;
  for (const KeptWeight& weight : kept_weights(modules)) {
    for (const auto& [part, tensor] : weight.now().on(c10::kCPU).parts())
      tensors.emplace_back(weight.part_name(part), tensor);
  }
  const std::string said = said_of(finished).dump();
  io::write_safetensors(file_of(stage), tensors, {{kSaid, said}, {kDigest, checksum_of(said, tensors)}});
}

void RoundingWork::remove() const {
  std::error_code fault;
  fs::remove_all(folder_, fault);
  if (fault) throw IoError(fmt::format("{}: cannot be removed: {}", folder_.string(), fault.message()));
}

}  // namespace limbeck::quantize
