#include "trainer/sweep/candidate.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <memory>
#include <sstream>
#include <variant>

#include "modules/errors.h"
#include "modules/models/network/experts.h"
#include "modules/precision/contract_modules.h"
#include "modules/precision/policy.h"

namespace limbeck::sweep {

namespace {

using precision::ContractModule;

precision::Storage storage_of(const std::string& format, const std::string& source) {
  return precision::parse_rule("** " + format, source).storage;
}

bool can_be_in(precision::Role role, const precision::Storage& storage) {
  const auto* packed = std::get_if<kernels::QuantizedFormat>(&storage);
  return packed == nullptr || precision::packable_in(role, *packed);
}

bool is_convertible(const ContractModule& module) {
  return dynamic_cast<const models::Linear*>(&module) != nullptr ||
         dynamic_cast<const models::Norm*>(&module) != nullptr ||
         dynamic_cast<const models::ExpertWeights*>(&module) != nullptr;
}

// The embedding that a head takes its weight from; null: none.
const ContractModule* tied_to(const ContractModule& module,
                              const std::vector<std::shared_ptr<ContractModule>>& modules) {
  const auto* linear = dynamic_cast<const models::Linear*>(&module);
  if (linear == nullptr || !linear->is_tied()) return nullptr;
  for (const auto& other : modules) {
    const auto* table = dynamic_cast<const models::Embedding*>(other.get());
    if (table != nullptr && table->weight().is_same(linear->weight())) return table;
  }
  return nullptr;
}

// Before the layers or behind them.
size_t stage_outside(const models::Transformer& model, const std::string& name) {
  return name == "embed_norm" ? 0 : model.layers().size() + 1;
}

}  // namespace

std::vector<std::string> parse_sweep_formats(const std::string& names, const std::string& source) {
  std::vector<std::string> formats;
  std::istringstream words(names);
  for (std::string name; std::getline(words, name, ',');) {
    if (std::find(formats.begin(), formats.end(), name) != formats.end())
      throw UsageError(fmt::format("{}={}: {} is there twice: name each format once", source, names, name));
    const precision::Storage storage = storage_of(name, source);
    const auto* dtype = std::get_if<at::ScalarType>(&storage);
    if (dtype != nullptr && (*dtype == at::kFloat || *dtype == at::kDouble)) {
      throw UsageError(
          fmt::format("{}={}: a sweep measures against float32: wanted float16, bfloat16, int8, int4, nf4 "
                      "or another packed format",
                      source, names));
    }
    formats.push_back(name);
  }
  if (formats.empty()) throw UsageError(fmt::format("{} names no format: wanted such as float16,int8", source));
  return formats;
}

size_t stages_of(const models::Transformer& model) { return model.layers().size() + 2; }

std::vector<Candidate> candidates_of(const models::BuiltModel& model, const std::vector<std::string>& formats) {
  const std::string root = model.model->path();
  const auto modules = precision::contract_modules(*model.model);
  std::map<std::string, precision::Storage> storages;
  for (const std::string& format : formats) storages.emplace(format, storage_of(format, "--formats"));
  std::vector<Candidate> found;
  const auto add = [&](const std::string& name, const std::string& role, size_t stage,
                       const std::vector<const ContractModule*>& members, const std::vector<std::string>& patterns) {
    for (const std::string& format : formats) {
      const auto fits = [&](const ContractModule* one) { return can_be_in(one->role(), storages.at(format)); };
      if (!std::any_of(members.begin(), members.end(), fits)) continue;
      Candidate candidate{name, role, format, stage, {}};
      for (const std::string& pattern : patterns)
        candidate.rules.push_back(fmt::format("{}.{} {}", root, pattern, format));
      found.push_back(std::move(candidate));
    }
  };
  const auto add_module = [&](const ContractModule& module, size_t stage) {
    if (!is_convertible(module)) return;
    const std::string name = module.path().substr(root.size() + 1);
    const ContractModule* table = tied_to(module, modules);
    if (table == nullptr) return add(name, precision::role_name(module.role()), stage, {&module}, {name});
    // It changes what enters the first layer.
    add(name, "head (tied)", 0, {&module}, {table->path().substr(root.size() + 1), name});
  };
  size_t layer = 0;
  const auto& layers = model.model->layers();
  const auto end_layers_before = [&](const std::string& path) {
    while (layer < layers.size() && !path.starts_with(layers[layer]->path() + ".")) {
      std::vector<const ContractModule*> members;
      for (const auto& module : modules) {
        if (module->path().starts_with(layers[layer]->path() + ".")) members.push_back(module.get());
      }
      const std::string name = layers[layer]->path().substr(root.size() + 1);
      add(name, "block", ++layer, members, {name + ".**"});
    }
  };
  for (const auto& module : modules) {
    const bool in_layer = module->path().starts_with(root + ".layers.");
    if (in_layer || layer > 0) end_layers_before(module->path());
    const std::string name = module->path().substr(root.size() + 1);
    add_module(*module, in_layer ? layer + 1 : stage_outside(*model.model, name));
  }
  end_layers_before("");
  return found;
}

}  // namespace limbeck::sweep
