#include "modules/projectors/initial_values.h"

#include <ATen/CPUGeneratorImpl.h>

#include "modules/precision/casts.h"
#include "modules/precision/contract_modules.h"
#include "modules/projectors/attention_projector.h"

namespace limbeck::projectors {

namespace {

// FNV-1a: spreads similar paths over unrelated seeds.
uint64_t seed_of(const std::string& path, int64_t seed) {
  uint64_t hash = 14695981039346656037ull ^ static_cast<uint64_t>(seed);
  for (const char c : path) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211ull;
  return hash;
}

void fill(precision::ContractModule& module, double standard_deviation, int64_t seed) {
  const bool norm = module.role() == precision::Role::kNorm;
  for (const auto& entry : module.named_parameters(/*recurse=*/false)) {
    at::Tensor parameter = entry.value();
    if (parameter.is_meta()) continue;
    if (parameter.dim() < 2) {
      parameter.fill_(norm && entry.key() == "weight" ? 1.0 : 0.0);
      continue;
    }
    const auto generator = at::make_generator<at::CPUGeneratorImpl>(seed_of(module.path() + "." + entry.key(), seed));
    precision::cast_into(parameter, at::empty(parameter.sizes(), at::kFloat).normal_(0, standard_deviation, generator));
  }
}

}  // namespace

void fill_initial_values(torch::nn::Module& root, double standard_deviation, int64_t seed) {
  at::NoGradGuard no_gradient;
  for (const auto& module : precision::contract_modules(root)) fill(*module, standard_deviation, seed);
  if (auto* attention = dynamic_cast<AttentionProjector*>(&root)) {
    if (!attention->parameter("weight").is_meta()) attention->reset_parameters();
  }
}

}  // namespace limbeck::projectors
