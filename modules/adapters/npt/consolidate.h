// What an outer NPT adapter wrote on average, made part of the weights: W_g += alpha * mean(v_f) mean(v_m)^T.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "modules/adapters/npt/create_npt.h"

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

// What was done to one weight.
struct ConsolidatedGate {
  std::string module;
  double change = 0;  // |wanted - before| / |before|
  double loss = 0;    // by its dtype: |stored - wanted| / |wanted - before|
};

struct ConsolidationReport {
  int64_t layers = 0;
  std::vector<ConsolidatedGate> gates;  // in their order
  // By the weights' own dtype: |stored - wanted| / |wanted - before| of the worst layer. 1: all of the change was lost.
  double worst_loss = 0;
  std::string worst_layer;
};

// UsageError for a delta adapter or none of this name, ContractError for a quantized weight.
void require_consolidable(const models::BuiltModel& built, const std::string& name);

// The adapter itself stays as it is. Refused before anything is changed: what require_consolidable() refuses, means of
// another model or of no token (UsageError), means that are not finite (NumericError).
ConsolidationReport consolidate_npt(models::BuiltModel& built, const std::string& name, const NptMeans& means,
                                    double alpha = 0.1);

}  // namespace limbeck::adapters
