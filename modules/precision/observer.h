// Hears of every module that a forward runs through, in order: for profiles, calibration, importance scores. Where
// nobody observes, a module costs one look at a pointer.
#pragma once
#include <ATen/core/Tensor.h>

#include <string>

namespace limbeck::precision {

class ContractModule;

// What it overrides must not throw: end() runs while an exception passes as well.
class ModuleObserver {
 public:
  virtual ~ModuleObserver() = default;
  // Around the code of one module, nested as the modules are: contract modules, attention and other mixers that say so,
  // mixtures of experts, the model itself at its head. A layer that runs again in backward is heard of again.
  virtual void begin(const std::string& path);
  virtual void end(const std::string& path);
  // What it accepts, as it came (ids too), and what it gives. An adapter may do either more than once.
  virtual void input(const ContractModule& module, const at::Tensor& x);
  virtual void output(const ContractModule& module, const at::Tensor& y);
  // Between the two, of the experts of a layer: to which of them each token goes, int64 [N, K], and with what weight.
  virtual void routing(const ContractModule& module, const at::Tensor& experts_nk, const at::Tensor& weights_nk);
};

// For as long as it lives, on this thread; one at a time, those before it wait.
class Observing {
 public:
  explicit Observing(ModuleObserver& observer);
  ~Observing();
  Observing(const Observing&) = delete;
  Observing& operator=(const Observing&) = delete;

 private:
  ModuleObserver* before_;
};

// Null: nobody observes this thread.
ModuleObserver* current_observer();

}  // namespace limbeck::precision
