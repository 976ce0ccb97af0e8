// Watches every operator that runs on this thread and reports silent mixing: floating inputs of different dtypes or of
// different devices, and dtype changes that are no named cast. This is what finds a mismatch that ATen would promote
// without a word (layer_norm of float16 with float32 weights, mse_loss of float16 with float32, …).
// An operator of the backward pass is charged to the module whose forward made it.
#pragma once
#include <ATen/record_function.h>

#include <cstdint>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

namespace limbeck::precision {

class OperatorRecorder {
 public:
  OperatorRecorder();
  ~OperatorRecorder();
  OperatorRecorder(const OperatorRecorder&) = delete;
  OperatorRecorder& operator=(const OperatorRecorder&) = delete;

  struct Use {
    int64_t count = 0;
    std::set<std::string> dtypes;  // of the floating inputs seen
  };
  // One line each: where, operator, what came, what was wanted.
  const std::vector<std::string>& violations() const { return violations_; }
  const std::unordered_map<std::string, Use>& operators() const { return operators_; }
  int64_t operator_count() const { return operator_count_; }

 private:
  void observe(const at::RecordFunction& function);
  static std::unique_ptr<at::ObserverContext> begin(const at::RecordFunction& function);

  at::CallbackHandle handle_;
  OperatorRecorder* outer_;
  int64_t operator_count_ = 0;
  std::vector<std::string> violations_;
  std::set<std::string> reported_;
  std::unordered_map<std::string, Use> operators_;
  std::unordered_map<int64_t, std::string> module_of_sequence_;
};

}  // namespace limbeck::precision
