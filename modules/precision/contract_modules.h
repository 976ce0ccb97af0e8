// The one walk over the modules of a model that have a contract: whoever lists, fills, counts, shares or saves
// parameters goes through it, so that none of them can pass over a module that another one sees.
#pragma once
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "modules/precision/contract_module.h"

namespace limbeck::precision {

// In the order of registration, `root` itself first where it has a contract.
std::vector<std::shared_ptr<ContractModule>> contract_modules(const torch::nn::Module& root);

// The module's own parameters by their unique paths ("student.layers.0.mlp.up_proj.weight").
std::vector<std::pair<std::string, at::Tensor>> path_parameters(const ContractModule& module);
// Of all of them.
std::vector<std::pair<std::string, at::Tensor>> path_parameters(const torch::nn::Module& root);
// All that is stored: the parameters, and the parts of packed weights ("student.layers.0.mlp.up_proj.weight.codes").
std::vector<std::pair<std::string, at::Tensor>> stored_tensors(const torch::nn::Module& root);

// Of all of them.
Footprint total_footprint(const torch::nn::Module& root);

}  // namespace limbeck::precision
