#include "trainer/quantize/alone_meter.h"

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <cmath>
#include <stdexcept>

#include "modules/errors.h"
#include "trainer/quantize/mixed_model.h"

namespace limbeck::quantize {

AloneMeter::AloneMeter(models::BuiltModel model, const ScoreMeter& meter, const FormatTable& table)
    : model_(std::move(model)), meter_(meter), table_(table), modules_(modules_of(model_, table)) {
  for (const StoredFormat& format : table.formats()) {
    if (!format.packed || !format.packed->dynamic) continue;
    throw UsageError(
        fmt::format("{} rounds the inputs of a module too, and --predict-by=kl tries its weights alone: take "
                    "--predict-by=error, or "
                    "leave it out of --formats",
                    format.name));
  }
}

std::vector<double> AloneMeter::measure(size_t module, const FloatRow& row) const {
  const at::NoGradGuard no_gradient;
  precision::ContractModule& changed = *modules_.at(module);
  std::vector<double> kl;
  for (size_t format = 0; format < table_.formats().size(); ++format) {
    const WeightsInPlace other(changed, meter_.weights_in(module, format));
    kl.push_back(row.divergence(model_).kl);
    if (std::isfinite(kl.back())) continue;
    throw NumericError(
        fmt::format("{}: with it in {} the KL to the floats is not finite: look at its weights and at the data",
                    table_.modules()[module].path, table_.formats()[format].name));
  }
  return kl;
}

RowScore predicted(RowScore scores, PredictedBy by) {
  if (by == PredictedBy::kError) return scores;
  double errors = 0, divergences = 0;
  for (const ModuleScore& module : scores.modules) {
    if (module.divergences.size() != module.losses.size()) throw std::logic_error("no divergences were measured");
    for (const double loss : module.losses) errors += loss;
    for (const double kl : module.divergences) divergences += kl;
  }
  const double scale = errors > 0 ? divergences / errors : 0;
  for (ModuleScore& module : scores.modules) {
    for (size_t i = 0; i < module.losses.size(); ++i) {
      const double kl = module.divergences[i];
      module.losses[i] = by == PredictedBy::kKl ? kl : (kl + scale * module.losses[i]) / 2;
    }
  }
  return scores;
}

}  // namespace limbeck::quantize
