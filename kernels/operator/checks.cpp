#include "kernels/operator/checks.h"

#include <fmt/format.h>

#include "kernels/operator/cuda_library.h"

namespace limbeck::kernels {
namespace {

std::string dtype_name(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return "float32";
    case at::kBFloat16:
      return "bfloat16";
    case at::kHalf:
      return "float16";
    case at::kDouble:
      return "float64";
    case at::kInt:
      return "int32";
    case at::kLong:
      return "int64";
    default:
      return c10::toString(type);
  }
}

bool is_supported(at::ScalarType type) {
  return type == at::kFloat || type == at::kBFloat16 || type == at::kHalf || type == at::kDouble;
}

// Whether one stride leads from each row to the next across all leading dimensions.
bool has_even_rows(const at::Tensor& tensor) {
  const auto sizes = tensor.sizes();
  const auto strides = tensor.strides();
  const int64_t last = tensor.dim() - 1;
  if (sizes[last] > 1 && strides[last] != 1) return false;
  int64_t expected = -1;  // unknown until the innermost leading dimension longer than 1
  for (int64_t d = last - 1; d >= 0; --d) {
    if (sizes[d] == 1) continue;
    if (expected >= 0 && strides[d] != expected) return false;
    expected = strides[d] * sizes[d];
  }
  return true;
}

int64_t row_stride(const at::Tensor& tensor) {
  for (int64_t d = tensor.dim() - 2; d >= 0; --d) {
    if (tensor.size(d) > 1) return tensor.stride(d);
  }
  return tensor.size(-1);
}

}  // namespace

std::string described(const at::Tensor& tensor) {
  if (!tensor.defined()) return "no tensor";
  return fmt::format("{} {} on {}", dtype_name(tensor.scalar_type()), c10::str(tensor.sym_sizes()),
                     tensor.device().str());
}

void check_floating(const char* op, const char* name, const at::Tensor& tensor) {
  TORCH_CHECK(tensor.defined(), "[", op, "] ", name, " is no tensor");
  TORCH_CHECK(is_supported(tensor.scalar_type()) && tensor.layout() == at::kStrided, "[", op, "] ", name, " is ",
              described(tensor), ", wanted float32, bfloat16, float16 or float64");
  TORCH_CHECK(tensor.is_cpu() || tensor.is_meta() || (tensor.is_cuda() && cuda_library_loaded()), "[", op, "] ", name,
              " is ", described(tensor),
              tensor.is_cuda()
                  ? ", and the CUDA operators are not loaded: call limbeck::kernels::load_cuda_library(), or"
                    " torch.ops.load_library(\"liblimbeck_cuda.so\") from Python"
                  : ", wanted cpu, cuda or meta");
}

void check_matches(const char* op, const char* name, const at::Tensor& tensor, const char* like_name,
                   const at::Tensor& like) {
  TORCH_CHECK(tensor.defined(), "[", op, "] ", name, " is no tensor");
  TORCH_CHECK(tensor.scalar_type() == like.scalar_type(), "[", op, "] ", name, " is ", described(tensor), ", wanted ",
              dtype_name(like.scalar_type()), " as ", like_name, " (", described(like), ")");
  TORCH_CHECK(tensor.device() == like.device() && tensor.layout() == at::kStrided, "[", op, "] ", name, " is ",
              described(tensor), ", wanted it on ", like.device(), " as ", like_name, " (", described(like), ")");
}

void check_same_shape(const char* op, const char* name, const at::Tensor& tensor, const char* like_name,
                      const at::Tensor& like) {
  TORCH_CHECK(tensor.sym_sizes() == like.sym_sizes(), "[", op, "] ", name, " is ", described(tensor), ", wanted ",
              c10::str(like.sym_sizes()), " as ", like_name);
}

Storage storage_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return Storage::kFloat32;
    case at::kBFloat16:
      return Storage::kBFloat16;
    case at::kHalf:
      return Storage::kFloat16;
    case at::kDouble:
      return Storage::kFloat64;
    default:
      TORCH_CHECK(false, "no loops for ", described(tensor));
  }
}

Rows::Rows(const at::Tensor& from)
    : tensor(has_even_rows(from) ? from : from.contiguous()),
      data(tensor.const_data_ptr()),
      count(tensor.numel() == 0 ? 0 : tensor.numel() / tensor.size(-1)),
      width(tensor.size(-1)),
      stride(row_stride(tensor)) {}

}  // namespace limbeck::kernels
