#include "trainer/check/module_table.h"

#include <fmt/format.h>

#include <map>

namespace limbeck::check {

std::vector<ModuleRow> module_table(const objective::Distillation& objective) {
  std::vector<ModuleRow> rows;
  std::map<std::string, size_t> known;
  for (const auto& module : objective.contract_modules()) {
    const precision::Precision& p = module->precision();
    ModuleRow row{without_layer(module->path()),
                  precision::role_name(module->role()),
                  precision::storage_name(p),
                  precision::dtype_name(p.input),
                  precision::dtype_name(p.compute),
                  precision::dtype_name(p.output),
                  p.device.str(),
                  p.source};
    row.modules = 1;
    const precision::Footprint own = module->footprint();
    row.parameters = own.values;
    row.bytes = own.bytes;
    if (row.role == "embedding") row.input = "ids";
    row.tied = row.role == "head" && own.values == 0;
    const std::string key = fmt::format("{}|{}|{}|{}|{}|{}|{}", row.path, row.storage, row.input, row.compute,
                                        row.output, row.device, row.source);
    const auto [where, fresh] = known.emplace(key, rows.size());
    if (fresh) {
      rows.push_back(row);
    } else {
      ModuleRow& sum = rows[where->second];
      sum.modules += 1;
      sum.parameters += row.parameters;
      sum.bytes += row.bytes;
    }
  }
  return rows;
}

Learning count_learning(const objective::Distillation& objective) {
  Learning count;
  for (const auto& module : objective.contract_modules()) {
    if (module->path().starts_with("teacher.")) continue;
    count.of += module->footprint().values;
    for (const at::Tensor& parameter : module->parameters(/*recurse=*/false)) {
      if (parameter.requires_grad()) count.trained += parameter.numel();
    }
  }
  return count;
}

std::string without_number(const std::string& path, const std::string& marker) {
  const size_t at = path.find(marker);
  if (at == std::string::npos) return path;
  const size_t begin = at + marker.size(), end = path.find_first_not_of("0123456789", begin);
  if (end == begin) return path;
  return path.substr(0, begin) + "*" + (end == std::string::npos ? "" : path.substr(end));
}

std::string without_layer(const std::string& path) { return without_number(path, ".layers."); }

}  // namespace limbeck::check
