#include "modules/precision/contract_modules.h"

namespace limbeck::precision {

std::vector<std::shared_ptr<ContractModule>> contract_modules(const torch::nn::Module& root) {
  // A root without a contract may live anywhere; torch hands out shared pointers to what is below it alone.
  const bool itself = dynamic_cast<const ContractModule*>(&root) != nullptr;
  std::vector<std::shared_ptr<ContractModule>> found;
  for (const auto& module : root.modules(itself)) {
    if (auto owner = std::dynamic_pointer_cast<ContractModule>(module)) found.push_back(std::move(owner));
  }
  return found;
}

std::vector<std::pair<std::string, at::Tensor>> path_parameters(const ContractModule& module) {
  std::vector<std::pair<std::string, at::Tensor>> found;
  for (const auto& entry : module.named_parameters(/*recurse=*/false)) {
    found.emplace_back(module.path() + "." + entry.key(), entry.value());
  }
  return found;
}

std::vector<std::pair<std::string, at::Tensor>> path_parameters(const torch::nn::Module& root) {
  std::vector<std::pair<std::string, at::Tensor>> found;
  for (const auto& module : contract_modules(root)) {
    for (auto& named : path_parameters(*module)) found.push_back(std::move(named));
  }
  return found;
}

std::vector<std::pair<std::string, at::Tensor>> stored_tensors(const torch::nn::Module& root) {
  std::vector<std::pair<std::string, at::Tensor>> found;
  for (const auto& module : contract_modules(root)) {
    for (auto& named : path_parameters(*module)) found.push_back(std::move(named));
    for (const auto& [name, weight] : module->packed_weights()) {
      for (auto& [part, tensor] : weight.parts())
        found.emplace_back(module->path() + "." + name + "." + part, std::move(tensor));
    }
  }
  return found;
}

Footprint total_footprint(const torch::nn::Module& root) {
  Footprint sum;
  for (const auto& module : contract_modules(root)) {
    const Footprint own = module->footprint();
    sum.values += own.values;
    sum.bytes += own.bytes;
  }
  return sum;
}

}  // namespace limbeck::precision
