#include "modules/quantization/folder_layout.h"

#include <fmt/format.h>

#include <algorithm>

#include "modules/errors.h"

namespace limbeck::quantization {

void refuse(const io::JsonFile& where, const std::string& what) { throw WeightsError(where.where() + ": " + what); }

std::vector<std::string> FolderLayout::repeated_for(const io::WeightsFolder&, const std::string&,
                                                    const std::string&) const {
  return {};
}

std::shared_ptr<const FolderLayout> layout_of(const io::JsonFile& config) {
  if (!config.has("quantization_config")) return nullptr;
  const io::JsonFile quantization = config.child("quantization_config");
  const std::string method = quantization.string("quant_method");
  if (method == "bitsandbytes") return bitsandbytes_layout(quantization);
  if (method == "compressed-tensors") return compressed_tensors_layout(quantization);
  if (method == "gptq" || method == "awq" || method == "auto-round") return gptq_layout(quantization);
  refuse(
      quantization,
      fmt::format("quant_method \"{}\" is not read: wanted \"bitsandbytes\" (nf4), \"compressed-tensors\", \"gptq\", "
                  "\"awq\" or "
                  "\"auto-round\" (int8, int4, int3, int2), or the model's float weights, which --quantize packs while "
                  "they are read",
                  method));
}

std::shared_ptr<const WrittenLayout> layout_for(const StoredModules& modules) {
  for (const auto& layout : {bitsandbytes_layout(), compressed_tensors_layout()}) {
    const auto written = [&](const auto& module) { return layout->writes(module.second); };
    if (std::all_of(modules.packed.begin(), modules.packed.end(), written) &&
        std::all_of(modules.experts.begin(), modules.experts.end(), written) &&
        std::all_of(modules.embeddings.begin(), modules.embeddings.end(), written)) {
      return layout;
    }
  }
  return nullptr;
}

}  // namespace limbeck::quantization
