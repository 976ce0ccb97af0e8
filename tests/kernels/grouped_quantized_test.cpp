// Products of sorted rows with packed stacks: on the CPU the bits of the products with single matrices, which have
// their own tests against float64; on CUDA and in gradients the values of float64.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "gpu_case.h"
#include "kernels/quantized/grouped_quantized_linear.h"
#include "kernels/quantized/quantized_linear.h"
#include "tests/support/operator_checks.h"
#include "tests/support/quantized_formats.h"

namespace limbeck::kernels {
namespace {

using at::Tensor;

struct StackShape {
  std::vector<int> ends;
  int64_t out, in;
};

// Empty groups at either end and inside, one that has all rows, more rows than the bodies for few; sizes that divide no
// word of codes, no group and no block, and ones that divide all.
const std::vector<StackShape> kStackShapes = {
    {{3, 6, 9}, 16, 64}, {{0, 0, 5, 5, 30, 30}, 17, 75}, {{7}, 33, 1}, {{0, 21, 21}, 70, 320}, {{0, 0}, 8, 16}};
const at::ScalarType kStackDtypes[] = {at::kFloat, at::kBFloat16, at::kHalf};

Tensor stack_values(at::IntArrayRef sizes, at::ScalarType dtype, uint64_t seed) {
  return test::random_tensor(sizes, at::TensorOptions().dtype(dtype), seed);
}

QuantizedStack stack_of(const StackShape& shape, QuantizedFormat format, at::ScalarType scales = at::kFloat) {
  const auto count = static_cast<int64_t>(shape.ends.size());
  QuantizedStack stack{format, count, shape.out, shape.in, {}};
  std::vector<std::vector<Tensor>> parts;
  for (int64_t i = 0; i < count; ++i) {
    const auto matrix =
        quantize(stack_values({shape.out, shape.in}, at::kFloat, 10 + static_cast<uint64_t>(i)), format, scales);
    parts.resize(matrix.parts.size());
    for (size_t p = 0; p < parts.size(); ++p) parts[p].push_back(matrix.parts[p]);
  }
  for (const auto& part : parts) stack.parts.push_back(at::stack(part));
  return stack;
}

Tensor ends_of(const StackShape& shape) { return at::tensor(shape.ends, at::kInt); }

// What each group's rows give with its matrix.
template <class Product>
Tensor group_by_group(const StackShape& shape, const Product& product) {
  std::vector<Tensor> results;
  int64_t begin = 0;
  for (size_t i = 0; i < shape.ends.size(); ++i) {
    results.push_back(product(static_cast<int64_t>(i), begin, shape.ends[i] - begin));
    begin = shape.ends[i];
  }
  return at::cat(results);
}

class GroupedQuantizedLinear : public ::testing::TestWithParam<QuantizedFormat> {};

TEST_P(GroupedQuantizedLinear, HasTheBitsOfTheProductsWithSingleMatrices) {
  for (const StackShape& shape : kStackShapes) {
    for (const auto scales : {at::kFloat, at::kBFloat16}) {
      const QuantizedStack stack = stack_of(shape, GetParam(), scales);
      for (const auto dtype : kStackDtypes) {
        SCOPED_TRACE(::testing::PrintToString(shape.ends) + " " + c10::toString(dtype));
        const Tensor rows = stack_values({shape.ends.back(), shape.in}, dtype, 1).requires_grad_();
        const Tensor dy = stack_values({shape.ends.back(), shape.out}, dtype, 2);
        const Tensor y = grouped_quantized_linear(rows, stack, ends_of(shape));
        ASSERT_EQ(y.scalar_type(), dtype);
        const auto dx = torch::autograd::grad({y}, {rows}, {dy})[0];
        const Tensor plain = rows.detach();
        const auto forward = [&](int64_t i, int64_t begin, int64_t count) {
          return quantized_linear(plain.narrow(0, begin, count), stack.matrix(i));
        };
        const auto backward = [&](int64_t i, int64_t begin, int64_t count) {
          return quantized_linear_backward(dy.narrow(0, begin, count), stack.matrix(i));
        };
        test::expect_same_bits(y.detach(), group_by_group(shape, forward), "y");
        test::expect_same_bits(dx, group_by_group(shape, backward), "dx");
        test::expect_same_bits(grouped_quantized_linear(plain, stack, ends_of(shape)), y.detach(), "no gradient");
        const Tensor turned = plain.t().contiguous().t();
        test::expect_same_bits(grouped_quantized_linear(turned, stack, ends_of(shape)), y.detach(), "strides");
      }
    }
  }
}

TEST_P(GroupedQuantizedLinear, MetaGivesShapesForwardAndBackward) {
  QuantizedStack stack = stack_of(kStackShapes[1], GetParam());
  for (Tensor& part : stack.parts) part = part.to(at::kMeta);
  const Tensor rows = stack_values({30, 75}, at::kHalf, 1).to(at::kMeta).requires_grad_();
  const Tensor y = grouped_quantized_linear(rows, stack, ends_of(kStackShapes[1]).to(at::kMeta));
  EXPECT_EQ(y.sizes(), at::IntArrayRef({30, 17}));
  EXPECT_EQ(y.scalar_type(), at::kHalf);
  EXPECT_EQ(torch::autograd::grad({y}, {rows}, {at::empty_like(y)})[0].sizes(), rows.sizes());
}

TEST_P(GroupedQuantizedLinear, RefusesOtherDtypesShapesAndEnds) {
  const QuantizedStack stack = stack_of(kStackShapes[0], GetParam());
  const auto message = [&](const Tensor& rows, const std::vector<int>& ends) -> std::string {
    try {
      grouped_quantized_linear(rows, stack, at::tensor(ends, at::kInt));
    } catch (const c10::Error& error) {
      return error.what_without_backtrace();
    }
    return "accepted";
  };
  const auto expect = [](const std::string& text, const char* part) {
    EXPECT_NE(text.find(part), std::string::npos) << text;
  };
  expect(message(at::ones({9, 64}, at::kDouble), {3, 6, 9}),
         "rows is float64 [9, 64] on cpu, wanted float32, bfloat16");
  expect(message(at::ones({9, 65}), {3, 6, 9}), "wanted [R, 64] for 3 weights [16, 64]");
  expect(message(at::ones({9, 64}), {3, 9}), "codes is ");
  expect(message(at::ones({9, 64}), {3, 6, 8}), "the last of ends is 8, wanted 9");
  expect(message(at::ones({9, 64}), {6, 3, 9}), "ends[1] is 3, wanted 6 to 9");
}

// Each value is rounded once to the dtype of the rows; a sum's order is the device's.
void expect_close(const Tensor& got, const Tensor& exact, const Tensor& absolute, const char* what) {
  const auto dtype = got.scalar_type();
  const double half_ulp = dtype == at::kHalf ? 0x1p-11 : dtype == at::kBFloat16 ? 0x1p-8 : 0x1p-24;
  const Tensor allowed = exact.abs() * half_ulp + absolute * 1e-6 + 0x1p-25;
  EXPECT_TRUE(((got.cpu().to(at::kDouble) - exact).abs() <= allowed).all().item<bool>()) << what;
}

TEST_P(GroupedQuantizedLinear, cuda_ValuesAndGradientsAreThoseOfFloat64AndTheSameAgain) {
  LIMBECK_NEEDS_GPU();
  for (const StackShape& shape : kStackShapes) {
    const QuantizedStack here = stack_of(shape, GetParam());
    QuantizedStack there = here;
    for (Tensor& part : there.parts) part = part.cuda();
    const Tensor ends = ends_of(shape).cuda();
    for (const auto dtype : kStackDtypes) {
      SCOPED_TRACE(::testing::PrintToString(shape.ends) + " " + c10::toString(dtype));
      const Tensor rows = stack_values({shape.ends.back(), shape.in}, dtype, 1),
                   dy = stack_values({rows.size(0), shape.out}, dtype, 2);
      const Tensor leaf = rows.cuda().requires_grad_();
      if (GetParam().dynamic) {
        EXPECT_THROW(grouped_quantized_linear(leaf, there, ends), c10::Error);
        continue;
      }
      const Tensor y = grouped_quantized_linear(leaf, there, ends);
      const Tensor dx = torch::autograd::grad({y}, {leaf}, {dy.cuda()})[0];
      const auto weight = [&](int64_t i) {
        return dequantize_rows(here.matrix(i), 0, shape.out).to(dtype).to(at::kDouble);
      };
      const auto product = [&](const Tensor& a, bool forward, bool absolute) {
        return group_by_group(shape, [&](int64_t i, int64_t begin, int64_t count) {
          const Tensor x = a.narrow(0, begin, count).to(at::kDouble), w = forward ? weight(i).t() : weight(i);
          return absolute ? x.abs().mm(w.abs()) : x.mm(w);
        });
      };
      expect_close(y.detach(), product(rows, true, false), product(rows, true, true), "y");
      expect_close(dx, product(dy, false, false), product(dy, false, true), "dx");
      test::expect_same_bits(grouped_quantized_linear(leaf, there, ends).detach().cpu(), y.detach().cpu(), "y again");
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, GroupedQuantizedLinear, ::testing::ValuesIn(test::every_format()),
                         [](const auto& instance) { return test::format_label(instance.param); });

}  // namespace
}  // namespace limbeck::kernels
