#include "trainer/quantize/mixed_model.h"

#include <ATen/core/grad_mode.h>

#include <stdexcept>

#include "modules/precision/casts.h"
#include "modules/precision/contract_modules.h"

namespace limbeck::quantize {

std::vector<std::shared_ptr<precision::ContractModule>> modules_of(const models::BuiltModel& model,
                                                                   const FormatTable& table) {
  std::vector<std::shared_ptr<precision::ContractModule>> modules;
  const std::string root = model.model->path() + ".";
  for (const auto& module : precision::contract_modules(*model.model)) {
    const size_t next = modules.size();
    if (next < table.modules().size() && module->path() == root + table.modules()[next].path) modules.push_back(module);
  }
  if (modules.size() != table.modules().size()) throw std::logic_error("the model has not all modules of the table");
  return modules;
}

MixedModel::MixedModel(models::BuiltModel model, const ScoreMeter& meter, const FormatTable& table,
                       at::ScalarType floats)
    : model_(std::move(model)), meter_(meter), table_(table), modules_(modules_of(model_, table)) {
  const at::NoGradGuard no_gradient;
  for (const auto& [path, parameter] : precision::path_parameters(*model_.model)) {
    at::Tensor narrow = at::empty(parameter.sizes(), parameter.options().dtype(floats)), values = parameter.detach();
    precision::cast_into(narrow, values);
    precision::cast_into(values, narrow);
  }
}

const models::BuiltModel& MixedModel::in(const Mix& mix) {
  for (size_t i = 0; i < modules_.size(); ++i) {
    const std::string& path = table_.modules()[i].path;
    const std::string& format = mix.at(path);
    if (now_[path] == format) continue;
    for (const auto& [name, weight] : meter_.weights_in(i, table_.format_index(format)))
      modules_[i]->replace_parameter(name, weight);
    now_[path] = format;
  }
  return model_;
}

}  // namespace limbeck::quantize
