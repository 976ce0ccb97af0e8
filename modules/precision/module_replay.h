// What modules give that is known already, in place of computing it: for whoever runs nearly the same forward again and
// again. Where nobody replays, a module costs one look at a pointer.
#pragma once
#include <ATen/core/Tensor.h>

#include <string>

namespace limbeck::precision {

class ModuleReplay {
 public:
  virtual ~ModuleReplay() = default;
  // What the module of this path gives of x, or an undefined tensor: it is to be computed. `x` is undefined where the
  // result depends on more than one tensor (experts and their routing).
  virtual at::Tensor known(const std::string& path, const at::Tensor& x) = 0;
  // What it computed.
  virtual void computed(const std::string& path, const at::Tensor& x, const at::Tensor& y) = 0;
};

// For as long as it lives, on this thread; one at a time, those before it wait.
class Replaying {
 public:
  explicit Replaying(ModuleReplay& replay);
  ~Replaying();
  Replaying(const Replaying&) = delete;
  Replaying& operator=(const Replaying&) = delete;

 private:
  ModuleReplay* before_;
};

// Null: nobody replays on this thread.
ModuleReplay* current_replay();

// What compute() gives, unless it is known.
template <class Compute>
at::Tensor replayed(const std::string& path, const at::Tensor& x, Compute&& compute) {
  ModuleReplay* replay = current_replay();
  if (replay == nullptr) return compute();
  if (at::Tensor known = replay->known(path, x); known.defined()) return known;
  const at::Tensor y = compute();
  replay->computed(path, x, y);
  return y;
}

}  // namespace limbeck::precision
