// Base of every module that owns weights: it gets its Precision at construction, creates them in it (a parameter, or a
// packed weight, which is frozen and no parameter), and refuses any input of another dtype or device. The casts at its
// doors (input to compute, compute to output) are named.
#pragma once
#include <torch/nn/module.h>

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "modules/precision/packed_weight.h"
#include "modules/precision/policy.h"

namespace limbeck::precision {

// Where a module is being built: its path ("student.layers.3.mlp"), the policy that decides for it, and the device its
// tensors live on. `check` places everything on meta; the contract's own device stays in the Precision.
struct Scope {
  const PrecisionPolicy* policy;
  std::string path;
  std::optional<c10::Device> placement;  // overrides the policy's device
  bool trainable = false;

  Scope child(const std::string& name) const;
};

// What a precision decides of a module: its contract, and its weights in that.
struct StoredWeights {
  Precision precision;
  torch::OrderedDict<std::string, at::Tensor> parameters = torch::OrderedDict<std::string, at::Tensor>();
  std::map<std::string, PackedWeight> packed = {};
  std::map<std::string, PackedShape> packed_shapes = {};
};

// What a module weighs: the numbers that it stands for, and the bytes that it takes.
struct Footprint {
  int64_t values = 0, bytes = 0;
};

class ContractModule : public torch::nn::Module {
 public:
  // `host`: the contract of the module that this one belongs to, and starts from.
  ContractModule(const Scope& scope, Role role, const Precision* host = nullptr);

  const std::string& path() const { return path_; }
  Role role() const { return role_; }
  const Precision& precision() const { return precision_; }
  c10::Device placement() const { return placement_; }

  // Its weights, which must be floats, as they would be had it been built under this contract and filled with them: by
  // the named casts, or packed. Nothing of the module changes, and what is the same in both is shared. The module's
  // doors speak the contract's dtypes, so that neighbours need not know.
  StoredWeights stored_under(const Precision& other) const;
  // Takes these on and gives back what was there: exchanging that again restores contract and weights to the bit.
  StoredWeights exchange(StoredWeights other);

  // Every weight of this module alone that breaks the contract, one line each.
  std::vector<std::string> violations() const;
  // Of this module alone.
  Footprint footprint() const;

  // By the name it was created with; throws std::logic_error for another.
  const at::Tensor& parameter(const std::string& name) const;
  bool has_parameter(const std::string& name) const;
  // Puts another tensor in its place (a packed weight, a resized table). The next check holds it against the contract.
  void replace_parameter(const std::string& name, const at::Tensor& tensor);
  // By name, as parameters are.
  const std::map<std::string, PackedWeight>& packed_weights() const { return packed_; }
  const PackedWeight* packed_weight(const std::string& name) const;  // null: it is a parameter, or not there
  // Throws std::logic_error where there is none of this name. The next check holds it against the contract.
  void replace_packed_weight(const std::string& name, PackedWeight weight);
  // The same of one matrix of a packed stack.
  void replace_packed_member(const std::string& name, int64_t index, const PackedWeight& weight);
  // Whether `lender` has all weights of this module in the same shapes, dtypes and formats, and trains none of them.
  bool can_borrow(const ContractModule& lender) const;
  // Every weight is from now on that of `lender`, where the lender's live; std::logic_error unless can_borrow().
  void borrow(const ContractModule& lender);
  // The packed ones alone; false, and nothing changed, unless they are packed as the lender's are.
  bool borrow_packed(const ContractModule& lender);

 protected:
  // A parameter in the storage dtype, uninitialised.
  void create_parameter(const std::string& name, at::IntArrayRef shape);
  // A matrix in the form that the contract says, uninitialised: a parameter, or packed.
  void create_matrix(const std::string& name, int64_t rows, int64_t columns);
  // `count` matrices of one size, uninitialised, for a contract that packs them.
  void create_packed_stack(const std::string& name, int64_t count, int64_t rows, int64_t columns);
  // The matrices of a module that the contract can pack, by the names that create_matrix() or create_packed_stack()
  // gave them, quantized from the floats that it has now, and which parameters they stand for.
  struct Packed {
    std::map<std::string, PackedWeight> weights = {};
    std::map<std::string, PackedShape> shapes = {};
    std::vector<std::string> instead_of = {};
  };
  // A module with one matrix "weight", or none, need not override it.
  virtual Packed pack(kernels::QuantizedFormat format) const;
  // For a module whose weight is another one's: it is packed as that one is, and has no parts of its own.
  void pack_as(const ContractModule& owner);
  // Accepts the input dtype and device alone, and gives it in the compute dtype.
  at::Tensor enter(const at::Tensor& x) const;
  // Gives the result, which must be of the compute dtype, in the output dtype.
  at::Tensor leave(const at::Tensor& y) const;
  // For modules whose input is ids: only the device is checked.
  void accept_ids(const at::Tensor& ids) const;

 private:
  bool packs_as(const ContractModule& lender) const;

  std::string path_;
  Role role_;
  Precision precision_;
  c10::Device placement_;
  bool trainable_;
  std::map<std::string, PackedWeight> packed_;
  std::map<std::string, PackedShape> packed_shapes_;  // that the contract asks for
  std::string input_place_, output_place_;
};

// The module whose code runs on this thread, for messages and the recorder; empty outside of any.
const std::string& current_module();
// The innermost module that the last exception on this thread left: where an error came from once the stack is unwound.
const std::string& failed_module();

// Marks the code of one module (by path) on this thread.
// An observer of this thread (observer.h) hears of its begin and end.
class ModuleScope {
 public:
  explicit ModuleScope(const std::string& path);
  ~ModuleScope();
  ModuleScope(const ModuleScope&) = delete;
  ModuleScope& operator=(const ModuleScope&) = delete;

 private:
  const std::string* outer_;
  int exceptions_;
};

}  // namespace limbeck::precision
