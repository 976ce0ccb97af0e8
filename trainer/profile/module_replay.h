// The inputs that modules got in one forward, and those modules run again on them, each for as long as a meter of
// energy needs. What no module of weights computes (attention's products, activations, sums) is the rest of the
// forward.
#pragma once
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "modules/models/network/transformer.h"
#include "modules/precision/observer.h"

namespace limbeck::profile {

class CapturedInputs : public precision::ModuleObserver {
 public:
  explicit CapturedInputs(const models::Transformer& model);

  void input(const precision::ContractModule& module, const at::Tensor& x) override;
  void routing(const precision::ContractModule& module, const at::Tensor& experts_nk,
               const at::Tensor& weights_nk) override;

  // By path, in no order: does once what the module did in the forward.
  std::vector<std::pair<std::string, std::function<void()>>> replays() const;

 private:
  struct Inputs {
    at::Tensor x, experts, weights;
  };
  std::map<std::string, const torch::nn::Module*> modules_;
  std::map<std::string, Inputs> inputs_;  // those of the first call
};

}  // namespace limbeck::profile
