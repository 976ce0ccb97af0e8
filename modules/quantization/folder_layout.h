// How packed weights lie in a folder of safetensors: what config.json's quantization_config says of them, and which
// tensors stand for each. One class for each layout of other programs, all of which are read; some are written too.
// Names are the checkpoint's ("model.layers.0.mlp.up_proj.weight").
#pragma once
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "modules/io/json_file.h"
#include "modules/io/safetensors.h"
#include "modules/precision/packed_weight.h"
#include "modules/precision/policy.h"

namespace limbeck::quantization {

using precision::Role;

// The linear modules of a folder, its experts and its packed embeddings, by the checkpoint's names.
struct StoredModules {
  std::map<std::string, kernels::QuantizedFormat> packed;  // linear ones
  std::vector<std::string> plain;
  // Of each sparse layer, what the names of its experts' modules begin with ("model.layers.0.mlp.experts").
  std::map<std::string, kernels::QuantizedFormat> experts;
  std::vector<std::string> plain_experts;
  std::map<std::string, kernels::QuantizedFormat> embeddings;
  std::string tied_head;  // that has the weight of a packed embedding; empty: none
};

// A packed weight by the checkpoint's name, and what stores it.
struct StoredWeight {
  std::string name;
  bool embedding = false;
  std::string tied_head = {};  // the module that shares it
};

class FolderLayout {
 public:
  virtual ~FolderLayout() = default;

  // The word for it in quantization_config.quant_method.
  virtual const char* name() const = 0;
  // What the weight of a module of this role is stored in as config.json has it, without a look at the files; none:
  // plainly.
  virtual std::optional<kernels::QuantizedFormat> format_of(const std::string& weight, Role role) const = 0;
  // The tensors of the folder that stand for it; empty: it is stored plainly there, or not at all.
  virtual std::vector<std::string> tensors_of(const io::WeightsFolder& folder, const std::string& weight) const = 0;
  // On the CPU. WeightsError where its tensors are not those of a matrix of this size.
  virtual precision::PackedWeight read(const io::WeightsFolder& folder, const std::string& weight, Role role,
                                       int64_t rows, int64_t columns) const = 0;
  // Tensors of the folder that say once more what those of an embedding say, for a head that shares its weight.
  // WeightsError where they say something else.
  virtual std::vector<std::string> repeated_for(const io::WeightsFolder& folder, const std::string& head,
                                                const std::string& embedding) const;
};

class WrittenLayout : public FolderLayout {
 public:
  // Whether its readers know packed weights of modules that store them transposed (GPT-2's Conv1D).
  virtual bool has_transposed() const = 0;
  virtual bool writes(kernels::QuantizedFormat format) const = 0;
  // And weights of this role in it, as its readers take them.
  virtual bool writes_for(Role role, kernels::QuantizedFormat format) const = 0;
  // The tensors that stand for a weight of a format that it writes, whose activations are of `dtype`.
  virtual io::NamedTensors tensors(const StoredWeight& weight, const precision::PackedWeight& packed,
                                   at::ScalarType dtype) const = 0;
  // The bytes of those tensors, of a matrix of this size.
  virtual int64_t bytes_of(const StoredWeight& weight, kernels::QuantizedFormat format, int64_t rows, int64_t columns,
                           at::ScalarType dtype) const = 0;
  // quantization_config of a folder with these modules. UsageError where it has no words for them together.
  virtual nlohmann::json config(const StoredModules& modules, at::ScalarType dtype) const = 0;
};

// WeightsError with the place.
[[noreturn]] void refuse(const io::JsonFile& where, const std::string& what);

// As quantization_config of a config.json has it; null without one. WeightsError for a layout that is not known.
std::shared_ptr<const FolderLayout> layout_of(const io::JsonFile& config);
// The first one that writes all these formats; null: none does.
std::shared_ptr<const WrittenLayout> layout_for(const StoredModules& modules);

// bitsandbytes' nf4, with plain or quantized scales; read from `quantization` (quantization_config), or to write.
std::shared_ptr<const FolderLayout> bitsandbytes_layout(const io::JsonFile& quantization);
std::shared_ptr<const WrittenLayout> bitsandbytes_layout();
// compressed-tensors' int8 and int4 to int2, in one folder or mixed.
std::shared_ptr<const FolderLayout> compressed_tensors_layout(const io::JsonFile& quantization);
std::shared_ptr<const WrittenLayout> compressed_tensors_layout();
// GPTQ's int8 and int4 to int2 and AWQ's int4, as gptqmodel, AutoAWQ and auto-round write them: read only.
std::shared_ptr<const FolderLayout> gptq_layout(const io::JsonFile& quantization);

}  // namespace limbeck::quantization
