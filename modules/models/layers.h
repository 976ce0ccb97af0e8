// The parameter-owning modules that every family is built from: linear, embedding and norm.
// Each refuses inputs outside its contract and computes through the operators of kernels/.
#pragma once
#include <optional>

#include "modules/models/architecture.h"
#include "modules/precision/contract_module.h"

namespace limbeck::models {

using precision::ContractModule;
using precision::Role;
using precision::Scope;

class Linear : public ContractModule {
 public:
  Linear(const Scope& scope, Role role, int64_t in, int64_t out, bool bias);
  // Shares the weight of an embedding (a tied head): the parameter is registered there, not here.
  Linear(const Scope& scope, Role role, const at::Tensor& shared_weight);
  at::Tensor forward(const at::Tensor& x) const;
  // For the tied head: the embedding's weight may be replaced (a mutation, a reload) and is read anew at each forward.
  const at::Tensor& weight() const;

 private:
  at::Tensor weight_;
  at::Tensor bias_;
};

class Embedding : public ContractModule {
 public:
  // The row padding_id takes part in lookups but gets no gradient from them; -1: none.
  Embedding(const Scope& scope, int64_t rows, int64_t width, int64_t padding_id = -1);
  at::Tensor forward(const at::Tensor& ids) const;
  const at::Tensor& weight() const { return weight_; }

 private:
  at::Tensor weight_;
  int64_t padding_id_;
};

class Norm : public ContractModule {
 public:
  Norm(const Scope& scope, NormKind kind, int64_t width, double epsilon);
  at::Tensor forward(const at::Tensor& x) const;

 private:
  NormKind kind_;
  double epsilon_;
  at::Tensor weight_, bias_;
};

// act(x), elementwise.
at::Tensor activate(const at::Tensor& x, Activation activation);
// act(gate) * up in one pass where kernels/ has it.
at::Tensor gate(const at::Tensor& gate, const at::Tensor& up, Activation activation);

}  // namespace limbeck::models
