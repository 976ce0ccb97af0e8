#include "kernels/grouped_linear/grouped_linear.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <limits>

#include "kernels/linear/linear.h"
#include "support/device_dtype.h"
#include "support/operator_checks.h"

namespace limbeck::test {
namespace {

at::Tensor grouped_linear(const Tensors& in) { return kernels::grouped_linear(in[0], in[1], in[2]); }
at::Tensor grouped_outer(const Tensors& in) { return kernels::grouped_outer(in[0], in[1], in[2]); }

// Calls one(group, begin, rows) for each group.
void for_groups(const at::Tensor& ends, const std::function<void(int64_t, int64_t, int64_t)>& one) {
  const at::Tensor here = ends.to(at::kCPU, at::kLong).contiguous();
  int64_t begin = 0;
  for (int64_t group = 0; group < here.size(0); ++group) {
    const int64_t end = here.const_data_ptr<int64_t>()[group];
    one(group, begin, end - begin);
    begin = end;
  }
}

// By the products of single matrices.
at::Tensor grouped_linear_reference(const Tensors& in) {
  Tensors parts;
  for_groups(in[2], [&](int64_t group, int64_t begin, int64_t rows) {
    parts.push_back(in[0].narrow(0, begin, rows).matmul(in[1].select(0, group).t()));
  });
  return at::cat(parts);
}

at::Tensor grouped_outer_reference(const Tensors& in) {
  Tensors sums;
  for_groups(in[2], [&](int64_t, int64_t begin, int64_t rows) {
    sums.push_back(in[0].narrow(0, begin, rows).t().matmul(in[1].narrow(0, begin, rows)));
  });
  return at::stack(sums);
}

struct GroupedShape {
  std::vector<int> ends;
  int64_t in, out;
};

class GroupedLinearTest : public OperatorTest {
 protected:
  at::Tensor ends_of(const std::vector<int>& ends) const { return at::tensor(ends, at::kInt).to(GetParam().device); }
  // rows, weight, ends
  Tensors linear_inputs(const GroupedShape& shape) const {
    const int64_t groups = static_cast<int64_t>(shape.ends.size());
    return {random_tensor({shape.ends.back(), shape.in}, options(), 1),
            random_tensor({groups, shape.out, shape.in}, options(), 2), ends_of(shape.ends)};
  }
  // left, right, ends
  Tensors outer_inputs(const GroupedShape& shape) const {
    return {random_tensor({shape.ends.back(), shape.out}, options(), 1),
            random_tensor({shape.ends.back(), shape.in}, options(), 2), ends_of(shape.ends)};
  }
};

// Even groups; empty ones everywhere; one group; one that has all rows; no rows; more than a tile of each dimension;
// many groups.
const std::vector<GroupedShape> kGroupedShapes = {
    {{3, 6, 9}, 16, 24},
    {{0, 0, 5, 5, 6, 6}, 17, 9},
    {{7}, 33, 1},
    {{0, 70, 70}, 8, 72},
    {{0, 0}, 8, 16},
    {{1, 66, 130}, 40, 67},
    {{64, 64, 128}, 1, 65},
    {{31, 33, 33, 97}, 70, 31},
    {{2, 2, 2, 9, 10, 11, 11, 30, 30, 31, 33, 40, 41, 41, 41, 41, 60, 61, 100, 101, 101, 130, 130}, 6, 5}};

void expect_every_promise_of_groups(const Case& c, const std::string& op) {
  expect_matches_reference(c);
  expect_inference_equals_training(c);
  // On the CPU they are products of the processor's library, whose bits are its own affair.
  if (c.inputs[0].is_cuda()) expect_threads_do_not_matter(c);
  expect_meta_agrees(c);
  expect_mixing_refused(c, op);
}

TEST_P(GroupedLinearTest, KeepsEveryPromiseForEveryShape) {
  for (const GroupedShape& shape : kGroupedShapes) {
    SCOPED_TRACE(::testing::PrintToString(shape.ends) + " " + std::to_string(shape.in) + " " +
                 std::to_string(shape.out));
    expect_every_promise_of_groups({grouped_linear, grouped_linear_reference, linear_inputs(shape), 2},
                                   "grouped_linear");
    expect_every_promise_of_groups({grouped_outer, grouped_outer_reference, outer_inputs(shape), 2}, "grouped_outer");
  }
}

TEST_P(GroupedLinearTest, StridesAndStartsOfAnyKindAreTaken) {
  const std::vector<int> ends = {5, 5, 40};
  for (const int64_t in : {24, 29}) {
    for (const int64_t start : {0, 1, 8}) {
      SCOPED_TRACE(std::to_string(in) + " from " + std::to_string(start));
      const at::Tensor wide = random_tensor({40, 2 * in + start}, options(), 1);
      const at::Tensor rows = wide.narrow(1, start, in), others = wide.narrow(1, start + in, in);
      const at::Tensor flat = random_tensor({3 * 16 * in + start}, options(), 2).narrow(0, start, 3 * 16 * in);
      const at::Tensor weight = flat.view({3, 16, in}), transposed = flat.view({3, in, 16}).transpose(1, 2);
      const at::Tensor scattered = flat.view({16, in, 3}).permute({2, 0, 1});
      for (const at::Tensor& one : {weight, transposed, scattered}) {
        expect_matches_reference({grouped_linear, grouped_linear_reference, {rows, one, ends_of(ends)}, 2});
      }
      expect_matches_reference(
          {grouped_linear, grouped_linear_reference, {rows.t().contiguous().t(), weight, ends_of(ends)}, 2});
      expect_matches_reference({grouped_outer, grouped_outer_reference, {rows, others, ends_of(ends)}, 2});
      expect_matches_reference(
          {grouped_outer, grouped_outer_reference, {rows.t().contiguous().t(), others, ends_of(ends)}, 2});
    }
  }
}

// An expert without tokens has a gradient of zeros, whatever was in the memory.
TEST_P(GroupedLinearTest, AGroupWithoutRowsHasZeros) {
  for (const int64_t width : {16, 9}) {
    const at::Tensor rows = random_tensor({6, width}, options(), 1);
    { const at::Tensor litter = at::full({4, width, width}, std::numeric_limits<double>::quiet_NaN(), options()); }
    const at::Tensor sums = kernels::grouped_outer(rows, rows, ends_of({0, 2, 2, 6}));
    EXPECT_TRUE(sums.select(0, 0).eq(0).all().item<bool>());
    EXPECT_TRUE(sums.select(0, 2).eq(0).all().item<bool>());
    EXPECT_TRUE(sums.select(0, 1).ne(0).any().item<bool>());
  }
}

// What other rows there are changes no bit of a row, nor of a group's sums.
TEST_P(GroupedLinearTest, AGroupKnowsNothingOfItsNeighbours) {
  for (const int64_t width : {40, 37}) {
    const at::Tensor rows = random_tensor({30, width}, options(), 1),
                     weight = random_tensor({3, 20, width}, options(), 2);
    const at::Tensor all = kernels::grouped_linear(rows, weight, ends_of({9, 21, 30}));
    const at::Tensor one =
        kernels::grouped_linear(rows.narrow(0, 9, 12).clone(), weight.narrow(0, 1, 1).clone(), ends_of({12}));
    expect_same_bits(all.narrow(0, 9, 12), one, "rows");
    const at::Tensor sums = kernels::grouped_outer(rows, rows, ends_of({9, 21, 30}));
    const at::Tensor sum =
        kernels::grouped_outer(rows.narrow(0, 9, 12).clone(), rows.narrow(0, 9, 12).clone(), ends_of({12}));
    expect_same_bits(sums.narrow(0, 1, 1), sum, "sums");
  }
}

TEST_P(GroupedLinearTest, WrongArgumentsAreRefused) {
  const Tensors in = linear_inputs({{2, 5}, 8, 4});
  EXPECT_THROW(kernels::grouped_linear(in[0], in[1], in[2].to(at::kLong)), c10::Error);
  EXPECT_THROW(kernels::grouped_linear(in[0], in[1], in[2].view({1, 2})), c10::Error);
  EXPECT_THROW(kernels::grouped_linear(in[0], in[1], in[2].narrow(0, 0, 1)), c10::Error);
  EXPECT_THROW(kernels::grouped_linear(in[0], in[1], in[2].to(at::kMeta)), c10::Error);
  EXPECT_THROW(kernels::grouped_linear(in[0], in[1].transpose(1, 2), in[2]), c10::Error);
  EXPECT_THROW(kernels::grouped_linear(in[0].view({5, 2, 4}), in[1], in[2]), c10::Error);
  EXPECT_THROW(kernels::grouped_outer(in[0], in[0].narrow(0, 0, 4), in[2]), c10::Error);
}

INSTANTIATE_TEST_SUITE_P(Operators, GroupedLinearTest, every_device_and_dtype(), name_of);

// The bits of the products one by one, which training on the CPU had before there was an operator for them.
TEST(GroupedLinear, OnTheCpuHasTheBitsOfOneProductForEachGroup) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble}) {
    const auto options = at::TensorOptions().dtype(dtype);
    const at::Tensor rows = random_tensor({45, 48}, options, 1), weight = random_tensor({3, 32, 48}, options, 2);
    const at::Tensor ends = at::tensor({13, 13, 45}, at::kInt);
    Tensors parts;
    for_groups(ends, [&](int64_t group, int64_t begin, int64_t count) {
      if (count > 0) parts.push_back(kernels::linear(rows.narrow(0, begin, count), weight.select(0, group)));
    });
    expect_same_bits(kernels::grouped_linear(rows, weight, ends), at::cat(parts), "output");
    const at::Tensor grad = random_tensor({45, 32}, options, 3);
    const at::Tensor sum = kernels::linear(grad.narrow(0, 13, 32).t(), rows.narrow(0, 13, 32).t());
    expect_same_bits(kernels::grouped_outer(grad, rows, ends).select(0, 2), sum, "gradient of a weight");
  }
}

TEST(GroupedLinear, OnTheCpuRefusesEndsThatDoNotDivideTheRows) {
  const at::Tensor rows = at::ones({5, 4}), weight = at::ones({2, 3, 4});
  for (const auto& [ends, fault] : {std::pair{std::vector<int>{2, 4}, "the last of ends is 4, wanted 5"},
                                    {{3, 2}, "ends[1] is 2, wanted 3 to 5"},
                                    {{-1, 5}, "ends[0] is -1, wanted 0 to 5"},
                                    {{2, 6}, "ends[1] is 6, wanted 2 to 5"}}) {
    try {
      kernels::grouped_linear(rows, weight, at::tensor(ends, at::kInt));
      ADD_FAILURE() << "taken: " << fault;
    } catch (const c10::Error& error) {
      EXPECT_NE(std::string(error.what()).find(fault), std::string::npos) << error.what();
    }
  }
}

// Broken ends read and write nothing outside of the tensors: the fake device ends the process where they do.
TEST(GroupedLinear, OnCudaBrokenEndsStayInside) {
  if (!kernels::cuda_available()) GTEST_SKIP() << "no GPU on this machine";
  const auto options = at::TensorOptions().device(at::kCUDA);
  const at::Tensor rows = random_tensor({70, 9}, options, 1), weight = random_tensor({3, 5, 9}, options, 2);
  for (const auto& ends :
       std::vector<std::vector<int>>{{-5, 900, 3}, {60, 10, 70}, {0, 0, 0}, {1 << 30, -(1 << 30), 7}}) {
    const at::Tensor broken = at::tensor(ends, at::kInt).to(at::kCUDA);
    EXPECT_EQ(kernels::grouped_linear(rows, weight, broken).sizes(), at::IntArrayRef({70, 5}));
    EXPECT_EQ(kernels::grouped_outer(rows, rows, broken).sizes(), at::IntArrayRef({3, 9, 9}));
  }
}

// Central differences in float64, of the operators and of their gradients again.
TEST(GroupedLinear, NumericalDerivativesAgree) {
  const auto wide = at::TensorOptions().dtype(at::kDouble);
  const at::Tensor ends = at::tensor({2, 2, 5}, at::kInt);
  const Tensors start = {random_tensor({5, 3}, wide, 1), random_tensor({3, 2, 3}, wide, 2)};
  const auto loss = [&](const Tensors& in) {
    const at::Tensor y = kernels::grouped_linear(in[0], in[1], ends);
    return y.sin().sum() + kernels::grouped_outer(y, in[0], ends).pow(2).sum();
  };
  const auto slope = [&](const Tensors& in) {
    const auto first = torch::autograd::grad({loss(in)}, in, {}, true, /*create_graph=*/true);
    return first[0].square().sum() + first[1].square().sum();
  };
  const auto expect_slopes = [&](const std::function<at::Tensor(const Tensors&)>& f) {
    Tensors leaves;
    for (const at::Tensor& one : start) leaves.push_back(one.clone().requires_grad_(true));
    const auto gradients = torch::autograd::grad({f(leaves)}, leaves);
    for (size_t which = 0; which < leaves.size(); ++which) {
      for (int64_t i = 0; i < leaves[which].numel(); ++i) {
        const auto moved = [&](double by) {
          Tensors in;
          for (const at::Tensor& one : start) in.push_back(one.clone());
          in[which].view({-1}).narrow(0, i, 1).add_(by);
          for (at::Tensor& one : in) one.requires_grad_(true);
          return f(in).item<double>();
        };
        const double wanted = (moved(1e-5) - moved(-1e-5)) / 2e-5;
        EXPECT_NEAR(gradients[which].flatten()[i].item<double>(), wanted, 1e-6 * std::max(1.0, std::abs(wanted)));
      }
    }
  };
  expect_slopes(loss);
  expect_slopes(slope);
}

}  // namespace
}  // namespace limbeck::test
