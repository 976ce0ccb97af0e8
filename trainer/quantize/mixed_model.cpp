#include "trainer/quantize/mixed_model.h"

#include <ATen/core/grad_mode.h>

#include "modules/precision/casts.h"
#include "modules/precision/contract_modules.h"

namespace limbeck::quantize {

MixedModel::MixedModel(models::BuiltModel model, const ScoreMeter& meter, const FormatTable& table,
                       at::ScalarType floats)
    : model_(std::move(model)), meter_(meter), table_(table) {
  const at::NoGradGuard no_gradient;
  const std::string root = model_.model->path() + ".";
  for (const auto& module : precision::contract_modules(*model_.model)) {
    const size_t next = modules_.size();
    if (next < table.modules().size() && module->path() == root + table.modules()[next].path)
      modules_.push_back(module);
  }
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
    modules_[i]->replace_parameter("weight", meter_.weight_in(i, table_.format_index(format)));
    now_[path] = format;
  }
  return model_;
}

}  // namespace limbeck::quantize
