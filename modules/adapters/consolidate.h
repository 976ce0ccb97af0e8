// What an outer NPT adapter wrote on average, made part of the weights: W_g += alpha * mean(v_f) mean(v_m)^T.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "modules/adapters/create_npt.h"

namespace limbeck::adapters {

// Means over the tokens of any number of forwards, summed in float64. v_m and v_f are linear in u = A_proj a, so the
// mean of u alone is collected.
class NptMeans {
 public:
  // Of a forward whose taps kept what adapters say (keep_adapted). attention_mask [B, T]: 0 = not counted.
  void add(const models::Taps& taps, const std::optional<at::Tensor>& attention_mask);
  int64_t tokens() const { return tokens_; }
  size_t layers() const { return sums_.size(); }
  at::Tensor low(size_t layer) const;  // float64 [r] on the CPU

 private:
  std::vector<at::Tensor> sums_;
  int64_t tokens_ = 0;
};

struct ConsolidationReport {
  int64_t layers = 0;
  // By the weights' own dtype: |stored - wanted| / |wanted - before| of the worst layer. 1: all of the change was lost.
  double worst_loss = 0;
  std::string worst_layer;
};

// The adapter itself stays as it is. UsageError for a delta adapter, for means of another model or of no token;
// ContractError for a quantized weight. Nothing is changed then.
ConsolidationReport consolidate_npt(models::BuiltModel& built, const std::string& name, const NptMeans& means,
                                    double alpha = 0.1);

}  // namespace limbeck::adapters
