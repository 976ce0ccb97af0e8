// Meta kernels of the few ATen operators that have theirs in Python alone. They live in this library and not in
// kernels/, because a Python process has its own and must not get them twice.
#include <ATen/ATen.h>
#include <ATen/ExpandUtils.h>
#include <torch/library.h>

namespace limbeck::precision {

namespace {

at::Tensor index_select(const at::Tensor& self, int64_t dim, const at::Tensor& index) {
  TORCH_CHECK(index.dim() <= 1, "index_select: index has ", index.dim(), " dimensions, wanted at most 1");
  TORCH_CHECK(self.device() == index.device(), "index_select: self is on ", self.device(), ", index on ",
              index.device(), ", wanted one device");
  std::vector<int64_t> shape = self.sizes().vec();
  if (!shape.empty()) shape[static_cast<size_t>(c10::maybe_wrap_dim(dim, self.dim()))] = index.numel();
  return at::empty(shape, self.options());
}

at::Tensor embedding_dense_backward(const at::Tensor& gradient, const at::Tensor& ids, int64_t rows, int64_t, bool) {
  TORCH_CHECK(gradient.device() == ids.device(), "embedding: the gradient is on ", gradient.device(), ", the ids on ",
              ids.device(), ", wanted one device");
  return at::empty({rows, gradient.size(-1)}, gradient.options());
}

// The branches have one dtype: a mixture of two would be a silent cast, which the recorder reports before it gets here.
at::Tensor where(const at::Tensor& condition, const at::Tensor& self, const at::Tensor& other) {
  TORCH_CHECK(condition.device() == self.device() && self.device() == other.device(), "where: condition is on ",
              condition.device(), ", the branches on ", self.device(), " and ", other.device(), ", wanted one device");
  const auto shape = at::infer_size(condition.sizes(), at::infer_size(self.sizes(), other.sizes()));
  return at::empty(shape, self.options().dtype(at::result_type(self, other)));
}

void cummax_helper(const at::Tensor&, at::Tensor&, at::Tensor&, int64_t) {}  // fills what is allocated already

at::Tensor& logical_and_out(const at::Tensor& self, const at::Tensor& other, at::Tensor& out) {
  TORCH_CHECK(self.device() == other.device(), "logical_and: the operands are on ", self.device(), " and ",
              other.device(), ", wanted one device");
  out.resize_(at::infer_size(self.sizes(), other.sizes()));
  return out;
}

at::Tensor& logical_not_out(const at::Tensor& self, at::Tensor& out) {
  out.resize_(self.sizes());
  return out;
}

at::Tensor& logsumexp_out(const at::Tensor& self, at::IntArrayRef over, bool keepdim, at::Tensor& out) {
  std::vector<int64_t> shape = self.sizes().vec();
  for (const int64_t axis : over) shape[static_cast<size_t>(c10::maybe_wrap_dim(axis, self.dim()))] = 1;
  TORCH_CHECK(keepdim, "logsumexp on meta: keepdim alone is there");
  out.resize_(shape);
  return out;
}

at::Tensor nonzero_static(const at::Tensor& self, int64_t count, int64_t) {
  return at::empty({count, self.dim()}, self.options().dtype(at::kLong));
}

at::Tensor relu(const at::Tensor& self) { return at::empty_like(self); }

at::Tensor abs(const at::Tensor& self) { return at::empty_like(self); }

}  // namespace

TORCH_LIBRARY_IMPL(aten, Meta, library) {
  library.impl("index_select", &index_select);
  library.impl("_cummax_helper", &cummax_helper);
  library.impl("logical_and.out", &logical_and_out);
  library.impl("logical_not.out", &logical_not_out);
  library.impl("logsumexp.out", &logsumexp_out);
  library.impl("nonzero_static", &nonzero_static);
  library.impl("relu", &relu);
  library.impl("abs", &abs);
  library.impl("where.self", &where);
  library.impl("embedding_dense_backward", &embedding_dense_backward);
}

}  // namespace limbeck::precision
