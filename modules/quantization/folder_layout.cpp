#include "modules/quantization/folder_layout.h"

#include <fmt/format.h>

#include <algorithm>

#include "modules/errors.h"

namespace limbeck::quantization {

std::shared_ptr<const FolderLayout> layout_of(const io::JsonFile& config) {
  if (!config.has("quantization_config")) return nullptr;
  const io::JsonFile quantization = config.child("quantization_config");
  const std::string method = quantization.string("quant_method");
  if (method == "bitsandbytes") return bitsandbytes_layout(quantization);
  if (method == "compressed-tensors") return compressed_tensors_layout(quantization);
  throw WeightsError(
      fmt::format("{}: quant_method \"{}\" is not read: wanted \"bitsandbytes\" (nf4) or \"compressed-tensors\" (int8, "
                  "int4), or the "
                  "model's float weights, which --quantize packs while they are read",
                  quantization.where(), method));
}

std::shared_ptr<const FolderLayout> layout_for(const StoredModules& modules) {
  for (auto layout : {bitsandbytes_layout(), compressed_tensors_layout()}) {
    const auto written = [&](const auto& module) { return layout->writes(module.second); };
    if (std::all_of(modules.packed.begin(), modules.packed.end(), written) &&
        std::all_of(modules.embeddings.begin(), modules.embeddings.end(), written)) {
      return layout;
    }
  }
  return nullptr;
}

}  // namespace limbeck::quantization
