// An adapter made part of the weights it works on, and taken out of them again with the bits that were there.
#pragma once
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "modules/adapters/hosts/adapter_hosts.h"

namespace limbeck::adapters {

struct MergeReport {
  int64_t modules = 0;
  // By the weights' own dtype, which the sum is rounded to: |stored - exact| / |exact| of the worst module.
  double worst_error = 0;
  std::string worst_module;
};

// kYes costs a copy of the weights and biases of the adapted modules, in their own dtype: for an adapter on every
// linear module nearly as much memory as the model has.
enum class KeepOriginals { kNo, kYes };

class Merged {
 public:
  const MergeReport& report() const { return report_; }
  int64_t original_bytes() const;  // of the copies that are kept
  // The weights are again those of before, bit for bit, and the adapter works beside them; the copies are let go.
  // UsageError where no originals are kept: not asked for, or put back already.
  void undo();

 private:
  friend Merged merge_adapter(models::BuiltModel& built, KeepOriginals keep);
  struct Original {
    AnyHost host;
    std::string adapter;
    at::Tensor weight;
    std::optional<at::Tensor> bias;
  };
  template <class Host>
  void merge(Host& host, KeepOriginals keep);

  std::shared_ptr<models::Transformer> model_;
  std::vector<Original> originals_;
  MergeReport report_;
};

// Of the adapters that work now; none does afterwards. UsageError for what adapted_hosts() refuses and for a
// quantized weight, before anything is changed. NumericError where a sum is not finite in the dtype of its weight: the
// modules before that one are then merged.
Merged merge_adapter(models::BuiltModel& built, KeepOriginals keep = KeepOriginals::kNo);

}  // namespace limbeck::adapters
