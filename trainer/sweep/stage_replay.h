// What the modules of one stage gave of one batch in floats, so that a forward in which a few of them changed computes
// from those on alone: what ran before them gives what it gave, and so does what gets the very tensor that it got.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "modules/precision/contract_module.h"
#include "modules/precision/module_replay.h"
#include "modules/precision/observer.h"

namespace limbeck::sweep {

// What a module was given: experts, which tokens go to which of them too.
struct KeptInput {
  at::Tensor x, experts_nk = {}, weights_nk = {};
};

class StageReplay : public precision::ModuleReplay, public precision::ModuleObserver {
 public:
  // What is kept is forgotten, and what is computed from now on is kept.
  void record();
  // From now on these modules are others than they were, and nothing more is kept.
  void replay(const std::vector<std::string>& changed);

  at::Tensor known(const std::string& path, const at::Tensor& x) override;
  void computed(const std::string& path, const at::Tensor& x, const at::Tensor& y) override;
  void input(const precision::ContractModule& module, const at::Tensor& x) override;
  void routing(const precision::ContractModule& module, const at::Tensor& experts_nk,
               const at::Tensor& weights_nk) override;

  // Of a module by itself, as it was recorded; null where it did not run.
  const KeptInput* input_of(const std::string& path) const;

 private:
  struct Kept {
    size_t place;  // in the order in which modules ended
    at::Tensor x, y;
    bool again = false;  // it ran more than once, and is computed each time
  };
  bool holds_changed(const std::string& path) const;

  bool recording_ = true;
  std::map<std::string, Kept> kept_;
  std::map<std::string, KeptInput> inputs_;
  std::vector<std::string> changed_;
  size_t first_changed_ = 0;
};

}  // namespace limbeck::sweep
