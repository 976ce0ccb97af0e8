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
  throw WeightsError(fmt::format(
      "{}: quant_method \"{}\" is not read: wanted \"bitsandbytes\" (nf4), or the model's float weights, which "
      "--quantize packs while they are read",
      quantization.where(), method));
}

std::shared_ptr<const FolderLayout> layout_for(kernels::QuantizedFormat format) {
  auto layout = bitsandbytes_layout();
  const auto formats = layout->formats();
  return std::find(formats.begin(), formats.end(), format) == formats.end() ? nullptr : layout;
}

}  // namespace limbeck::quantization
