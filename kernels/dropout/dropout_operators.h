// What every backend of dropout shares: argument checks, the output, and the loops' arguments. The Meta kernel is
// exactly dropout_output().
#pragma once
#include "kernels/dropout/dropout_loops.h"
#include "kernels/operator/checks.h"

namespace limbeck::kernels {

at::Tensor dropout_output(const at::Tensor& x, const at::Tensor& tokens, int64_t key, double rate);

struct DropoutWork {
  DropoutWork(const at::Tensor& x, const at::Tensor& tokens, int64_t key, double rate, const at::Tensor& out);

  Rows rows;
  DropoutArguments arguments;
};

}  // namespace limbeck::kernels
