// The parameter-owning modules that every family is built from: linear, embedding and norm.
// Each refuses inputs outside its contract and computes through the operators of kernels/.
#pragma once
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "modules/models/family/architecture.h"
#include "modules/models/network/named_adapters.h"
#include "modules/models/network/weight_adapter.h"
#include "modules/precision/contract_module.h"
#include "modules/precision/module_replay.h"

namespace limbeck::models {

using precision::ContractModule;
using precision::Role;
using precision::Scope;

class Embedding;

// Its contract says how the weight is stored: a parameter, or packed in few bits and frozen.
class Linear : public ContractModule, public NamedAdapters<LinearAdapter> {
 public:
  Linear(const Scope& scope, Role role, int64_t in, int64_t out, bool bias);
  // Shares the weight of an embedding (a tied head): it belongs there, packed or not, and is read anew at each forward.
  // A bias is its own.
  Linear(const Scope& scope, Role role, std::shared_ptr<Embedding> tied, bool bias = false);
  at::Tensor forward(const at::Tensor& x, const Draws& draws = {}) const {
    return precision::replayed(path(), x,
                               [&] { return adapter() ? adapter()->forward(x, *this, draws) : base_forward(x); });
  }
  at::Tensor base_forward(const at::Tensor& x) const;  // without the adapter
  at::Tensor product(const at::Tensor& x) const;       // and without the bias
  // The same as forward() without draws, but only x gets a gradient.
  at::Tensor frozen_forward(const at::Tensor& x) const;
  const at::Tensor& weight() const;  // throws where it is quantized
  // As an operand in the compute dtype; of a quantized weight all of it, unpacked at each call.
  at::Tensor operand() const;
  // Rows of the weight; of a quantized one what its codes stand for, in float32. Meant for some rows at a time.
  at::Tensor weight_rows(int64_t row, int64_t count) const;
  int64_t in_features() const { return in_; }
  int64_t out_features() const { return out_; }
  const precision::PackedWeight* packed() const;  // null: the weight is a parameter
  bool is_quantized() const { return packed() != nullptr; }
  std::optional<at::Tensor> bias() const;

  bool is_tied() const { return tied_ != nullptr; }
  // Programs that read quantized folders make one product of some linear modules (q, k and v; gate and up), which must
  // then be in one format: the path of the first of them, of a module by itself its own.
  const std::string& fused_with() const { return fused_with_.empty() ? path() : fused_with_; }
  void fuse_with(const Linear& first) { fused_with_ = first.path(); }

 private:
  int64_t in_ = 0, out_ = 0;
  std::string fused_with_;
  std::shared_ptr<Embedding> tied_;
};

// Its table is a parameter, or packed and frozen, as its contract says.
class Embedding : public ContractModule, public NamedAdapters<EmbeddingAdapter> {
 public:
  // The row padding_id takes part in lookups but gets no gradient from them; -1: none.
  Embedding(const Scope& scope, int64_t rows, int64_t width, int64_t padding_id = -1);
  at::Tensor forward(const at::Tensor& ids) const {
    return adapter() ? adapter()->forward(ids, *this) : base_forward(ids);
  }
  at::Tensor base_forward(const at::Tensor& ids) const;  // without the adapter
  const at::Tensor& weight() const;                      // throws where it is quantized
  // Rows of the table; of a quantized one what its codes stand for, in float32. Meant for some rows at a time.
  at::Tensor weight_rows(int64_t row, int64_t count) const;
  int64_t rows() const { return rows_; }
  int64_t width() const { return width_; }
  const precision::PackedWeight* packed() const { return packed_weight("weight"); }  // null: it is a parameter
  bool is_quantized() const { return packed() != nullptr; }
  int64_t padding_id() const { return padding_id_; }

 private:
  int64_t rows_, width_, padding_id_;
};

class Norm : public ContractModule {
 public:
  Norm(const Scope& scope, NormKind kind, int64_t width, double epsilon);
  at::Tensor forward(const at::Tensor& x, bool learns = true) const {  // learns: its parameters get gradients
    return precision::replayed(path(), x, [&] { return normed(x, learns); });
  }

 private:
  at::Tensor normed(const at::Tensor& x, bool learns) const;

  NormKind kind_;
  double epsilon_;
};

// act(x), elementwise.
at::Tensor activate(const at::Tensor& x, Activation activation);
// act(gate) * up in one pass where kernels/ has it.
at::Tensor gate(const at::Tensor& gate, const at::Tensor& up, Activation activation);

}  // namespace limbeck::models
