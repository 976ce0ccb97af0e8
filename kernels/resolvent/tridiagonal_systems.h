// The arguments of tridiagonal_solve() without gaps, copied where they have some: what each body reads, and what the
// plan for a device holds meanwhile.
#pragma once
#include <ATen/core/Tensor.h>

#include "kernels/resolvent/tridiagonal_formula.h"

namespace limbeck::kernels {

class DenseSystems {
 public:
  // As tridiagonal_solve_output() has checked them.
  DenseSystems(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c, const at::Tensor& z,
               const at::Tensor& rhs)
      : a_(a.contiguous()), b_(b.contiguous()), c_(c.contiguous()), z_(z.contiguous()), rhs_(rhs.contiguous()) {}

  // Whose solution is to be `out`, of the shape of rhs.
  TridiagonalSystems into(const at::Tensor& out) const {
    return {.a = a_.const_data_ptr<double>(),
            .b = b_.const_data_ptr<double>(),
            .c = c_.const_data_ptr<double>(),
            .z = z_.const_data_ptr<double>(),
            .rows = a_.numel() / a_.size(-1),
            .n = a_.size(-1),
            .columns = rhs_.size(-2),
            .rhs = rhs_.const_data_ptr<double>(),
            .x = out.mutable_data_ptr<double>()};
  }

 private:
  const at::Tensor a_, b_, c_, z_, rhs_;
};

}  // namespace limbeck::kernels
