// How much a module matters, from its gradients, what it gives and its weights, and the formats that follow: the most
// important in the first format, the least important in the last one.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "trainer/data/data_source.h"
#include "trainer/quantize/score_meter.h"

namespace limbeck::quantize {

// By module: 0.5 z(mean |gradient|) + 0.3 z(variance of activations) + 0.2 z(mean |w|), z over the modules.
using LayerImportance = std::map<std::string, double>;
LayerImportance importance_of(const FormatTable& table, const RowScore& scores,
                              const std::vector<double>& mean_weights);

class LayerImportanceAnalyzer {
 public:
  LayerImportanceAnalyzer(const ScoreMeter& meter, const FormatTable& table) : meter_(meter), table_(table) {}
  // Over the first batches of the data; UsageError where there are none.
  LayerImportance analyze(const data::DataSource& data, int64_t num_batches) const;

 private:
  const ScoreMeter& meter_;
  const FormatTable& table_;
};

struct DynamicQuantizationPolicy {
  LayerImportance layer_importance;
  double high_precision_ratio = 0.2, low_precision_ratio = 0.4;

  // Who is as important as the last one of the top share belongs to it, so that equal modules are all in `high`.
  Mix mix(const std::string& high, const std::string& middle, const std::string& low) const;
};

}  // namespace limbeck::quantize
