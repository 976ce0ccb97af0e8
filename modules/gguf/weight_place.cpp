#include "modules/gguf/weight_place.h"

#include <fmt/format.h>

namespace limbeck::gguf {
namespace {

using models::BuiltModel;
using models::WeightBinding;

std::string module_of(const BuiltModel& built, const WeightBinding& binding) {
  const size_t root = built.model->path().size() + 1;
  std::string module = binding.path.substr(root, binding.path.size() - root - binding.leaf.size() - 1);
  if (binding.expert < 0) return module;
  const std::string number = fmt::format(".{}.", binding.expert);  // the file has one tensor for all experts
  return module.replace(module.rfind(number), number.size(), ".");
}

bool is_norm(const WeightBinding& binding) {
  return binding.owner->role() == precision::Role::kNorm && binding.leaf == "weight";
}

std::vector<int64_t> shape_of(const WeightBinding& binding) {
  if (const auto packed = binding.packed()) {
    std::vector<int64_t> shape = {packed->matrix().rows, packed->matrix().columns};
    if (binding.expert >= 0) shape.insert(shape.begin(), binding.owner->packed_weight(binding.stack)->count());
    return shape;
  }
  return part_in_file(binding).sizes().vec();
}

}  // namespace

WeightPlace place_of(const BuiltModel& built, const LlamaCppModel& words, const WeightBinding& binding) {
  WeightPlace place{module_of(built, binding), "", shape_of(binding), is_norm(binding) && words.adds_one_to_norms()};
  place.tensor = words.tensor_name(place.module, binding.leaf);
  return place;
}

at::Tensor part_in_file(const WeightBinding& binding) {
  const at::Tensor whole = binding.parameter.detach();
  return binding.expert >= 0 && binding.rows > 0 ? whole.narrow(1, binding.row, binding.rows) : whole;
}

}  // namespace limbeck::gguf
