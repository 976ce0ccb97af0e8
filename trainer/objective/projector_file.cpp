#include "trainer/objective/projector_file.h"

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "modules/errors.h"
#include "modules/precision/casts.h"

namespace limbeck::objective {

namespace fs = std::filesystem;

namespace {

constexpr const char* kProjectorFile = "projectors.safetensors";

}  // namespace

void save_projectors(const Distillation& objective, const fs::path& folder, const io::BeforeTensor& before) {
  const auto projectors = objective.projector_tensors();
  if (!projectors.empty()) io::write_safetensors(folder / kProjectorFile, projectors, {}, before);
}

void load_projectors(Distillation& objective, const fs::path& folder) {
  const auto wanted = objective.projector_tensors();
  if (wanted.empty()) return;
  const fs::path path = folder / kProjectorFile;
  if (!fs::exists(path)) {
    throw WeightsError(
        fmt::format("{}: is missing, and the recipe has {} projector tensors: name a folder that "
                    "`limbeck train` saved with this recipe",
                    path.string(), wanted.size()));
  }
  const io::SafetensorsFile file(path);
  objective.fill([&] {
    const at::NoGradGuard no_gradient;
    for (const auto& [name, tensor] : wanted) {
      const io::TensorEntry* entry = file.find(name);
      if (entry == nullptr || entry->shape != tensor.sizes().vec() || entry->dtype != tensor.scalar_type()) {
        throw WeightsError(
            fmt::format("{}: {} is {}, wanted {} [{}]: the recipe's projector differs from the saved one",
                        path.string(), name, entry == nullptr ? "missing" : "another dtype or shape",
                        precision::dtype_name(tensor.scalar_type()), fmt::join(tensor.sizes(), ",")));
      }
      at::Tensor destination = tensor.detach();
      file.read_into(*entry, destination, io::NonFinite::kRefuse);
    }
  });
}

}  // namespace limbeck::objective
