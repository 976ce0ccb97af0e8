#include "trainer/quantize/importance.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "modules/errors.h"

namespace limbeck::quantize {

namespace {

std::vector<double> standardised(const std::vector<double>& values) {
  const auto count = static_cast<double>(values.size());
  const double mean = std::accumulate(values.begin(), values.end(), 0.0) / count;
  double squares = 0;
  for (const double value : values) squares += (value - mean) * (value - mean);
  const double deviation = std::sqrt(squares / count);
  std::vector<double> z;
  for (const double value : values) z.push_back(deviation > 0 ? (value - mean) / deviation : 0);
  return z;
}

// How many a share of so many is; 0.3 of 10 is 3 however it is rounded.
size_t share_of(double ratio, size_t count) {
  return static_cast<size_t>(std::floor(ratio * static_cast<double>(count) + 1e-9));
}

}  // namespace

LayerImportance importance_of(const FormatTable& table, const RowScore& scores,
                              const std::vector<double>& mean_weights) {
  std::vector<double> gradients, variances;
  for (const ModuleScore& module : scores.modules) {
    const auto count = static_cast<double>(std::max<int64_t>(module.count, 1));
    const double mean = module.outputs / count;
    gradients.push_back(module.gradient / static_cast<double>(scores.rows));
    variances.push_back(std::max(0.0, module.squares / count - mean * mean));
  }
  const auto of_gradient = standardised(gradients), of_variance = standardised(variances),
             of_weight = standardised(mean_weights);
  LayerImportance importance;
  for (size_t i = 0; i < table.modules().size(); ++i) {
    importance[table.modules()[i].path] = 0.5 * of_gradient[i] + 0.3 * of_variance[i] + 0.2 * of_weight[i];
  }
  return importance;
}

LayerImportance LayerImportanceAnalyzer::analyze(const data::DataSource& data, int64_t num_batches) const {
  const int64_t batches = std::min(num_batches, data.batches_per_epoch());
  if (batches < 1) throw UsageError("importance is measured on data: there is no batch to measure it on");
  RowScore sum;
  for (int64_t i = 0; i < batches; ++i) sum.add(meter_.measure(data.batch(i)));
  return importance_of(table_, sum, meter_.mean_weights());
}

Mix DynamicQuantizationPolicy::mix(const std::string& high, const std::string& middle, const std::string& low) const {
  std::vector<double> sorted;
  for (const auto& [module, importance] : layer_importance) sorted.push_back(importance);
  std::sort(sorted.begin(), sorted.end());
  const size_t count = sorted.size(), top = share_of(high_precision_ratio, count),
               bottom = share_of(low_precision_ratio, count);
  Mix mix;
  for (const auto& [module, importance] : layer_importance) {
    if (top > 0 && importance >= sorted[count - top]) {
      mix[module] = high;
    } else {
      mix[module] = bottom > 0 && importance <= sorted[bottom - 1] ? low : middle;
    }
  }
  return mix;
}

}  // namespace limbeck::quantize
