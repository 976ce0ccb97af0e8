// The resolvent's arguments as rows, copied where their strides forbid that: what a device reads, and what the plan for
// a device holds meanwhile.
#pragma once
#include <optional>

#include "kernels/operator/checks.h"

namespace limbeck::kernels {

struct ResolventRows {
  ResolventRows(const at::Tensor& of_a, const at::Tensor& of_b, const at::Tensor& of_c, const at::Tensor& of_z,
                const std::optional<at::Tensor>& of_documents)
      : a(of_a),
        b(of_b.numel() > 0 ? of_b : of_a),  // of one position nothing is read
        c(of_c.numel() > 0 ? of_c : of_a),
        z(of_z) {
    if (of_documents.has_value()) documents.emplace(of_documents->expand(of_a.sizes()));
  }

  Rows a, b, c, z;
  std::optional<Rows> documents;
};

}  // namespace limbeck::kernels
