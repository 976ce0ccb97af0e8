// Blocks, warps, barriers and shared memory of the emulated kernels, and the faults in kernels that they find.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "fake_cuda/launch.h"
#include "fake_cuda/probe_kernels.h"

namespace limbeck::test {
namespace {

at::Tensor numbers(int64_t count, int seed = 1) {
  return at::sin(at::arange(count, at::kFloat) * 0.7 + seed).to(at::kCUDA);
}

at::Tensor nothing(int64_t count) { return at::zeros({count}, at::TensorOptions(at::kCUDA).dtype(at::kFloat)); }

constexpr unsigned kBlocks = 5, kThreads = 160;

// The largest error over every order of threads that is tried.
double error_of_block_sums(Fault fault) {
  const at::Tensor x = numbers(kBlocks * kThreads), out = nothing(2 * kBlocks);
  const at::Tensor rows = x.cpu().to(at::kDouble).view({kBlocks, kThreads});
  const at::Tensor wanted = at::cat({rows.sum(1), rows.square().sum(1)});
  double worst = 0;
  for (uint64_t seed = 0; seed < 6; ++seed) {
    fake_cuda::set_seed(seed);
    launch_block_sums(fault, x.const_data_ptr<float>(), out.mutable_data_ptr<float>(), kBlocks, kThreads);
    worst = std::max(worst, (out.cpu().to(at::kDouble) - wanted).abs().max().item<double>());
  }
  fake_cuda::set_seed(0);
  return worst;
}

TEST(EmulatedLaunch, SumsOverABlockAreRightInEveryOrderOfThreads) {
  EXPECT_LT(error_of_block_sums(Fault::kNone), 1e-4);
}

TEST(EmulatedLaunch, AMissingBarrierShows) {
  EXPECT_GT(error_of_block_sums(Fault::kNoBarrierBefore), 1e-2);
  EXPECT_GT(error_of_block_sums(Fault::kNoBarrierAfter), 1e-2);
}

TEST(EmulatedLaunchDeathTest, ThreadsThatDoNotMeetAreNamed) {
  EXPECT_DEATH(launch_meeting(Meeting::kPartOfABlock, 64),
               "kernel meet_in_part, block \\(0, 0\\).*probe_kernels.cu:[0-9]+ was reached by 40 of the block's 64");
  EXPECT_DEATH(launch_meeting(Meeting::kTwoPlaces, 64), "threads of one block wait at different barriers");
  EXPECT_DEATH(launch_meeting(Meeting::kLaneThatLeft, 64), "names lane 3 of its warp, which is not there");
  EXPECT_DEATH(launch_meeting(Meeting::kLaneThatLeft, 48), "which is not there");  // half a warp
  EXPECT_DEATH(launch_meeting(Meeting::kLaneOutsideOfTheMask, 32), "takes from lane 5, which its mask does not name");
}

TEST(EmulatedLaunch, DynamicSharedMemoryBelongsToTheBlock) {
  const at::Tensor x = numbers(3 * 96), out = nothing(3 * 96);
  launch_reversed(x.const_data_ptr<float>(), out.mutable_data_ptr<float>(), 3, 96, 96);
  EXPECT_TRUE(at::equal(out.cpu(), x.cpu().view({3, 96}).flip({1}).flatten()));
}

TEST(EmulatedLaunchDeathTest, DynamicSharedMemoryEndsWhereTheLaunchSaid) {
  const at::Tensor x = numbers(96), out = nothing(96);
  const auto reversed = [&](unsigned elements) {
    launch_reversed(x.const_data_ptr<float>(), out.mutable_data_ptr<float>(), 1, 96, elements);
  };
  EXPECT_DEATH(reversed(92), "kernel reversed.*out of bounds");
  EXPECT_DEATH(reversed(94), "out of bounds: byte 376 of a block of 376");
}

TEST(EmulatedLaunch, AtomicSumsAndShufflesAreCudas) {
  const at::Tensor x = at::arange(300, at::kInt).remainder(7).to(at::kCUDA), bins = at::zeros({7}, x.options());
  launch_histogram(x.const_data_ptr<int>(), bins.mutable_data_ptr<int>(), 300);
  EXPECT_TRUE(at::equal(bins.cpu().to(at::kLong), at::bincount(x.cpu())));
  const at::Tensor values = numbers(64), down = nothing(64);
  launch_shifted_down(values.const_data_ptr<float>(), down.mutable_data_ptr<float>(), 64, 5);
  const at::Tensor index = at::arange(64), from = at::where(index % 32 < 27, index + 5, index);
  EXPECT_TRUE(at::equal(down.cpu(), values.cpu().index_select(0, from)));
}

TEST(EmulatedLaunch, HalfTypesRoundAsLibTorchs) {
  const at::Tensor every = at::arange(65536, at::kInt).to(at::kShort).view(at::kHalf).to(at::kFloat);
  const at::Tensor between = at::randn({20000}) * at::exp(at::randn({20000}) * 6);
  const at::Tensor ties =
      at::arange(4096, at::kFloat) * (1.0 / 4096) + 1.0;  // halfway between two bfloat16, and float16
  const at::Tensor x = at::cat({every, between, ties, every * (1.0 + 1.0 / 1024)}).to(at::kCUDA);
  const at::Tensor half = at::empty_like(x), bfloat = at::empty_like(x);
  launch_rounded(x.const_data_ptr<float>(), half.mutable_data_ptr<float>(), bfloat.mutable_data_ptr<float>(),
                 static_cast<unsigned>(x.numel()));
  const auto same = [&](const at::Tensor& got, at::ScalarType dtype) {
    const at::Tensor wanted = x.cpu().to(dtype).to(at::kFloat);
    return at::allclose(got.cpu(), wanted, 0, 0, /*equal_nan=*/true);
  };
  EXPECT_TRUE(same(half, at::kHalf));
  EXPECT_TRUE(same(bfloat, at::kBFloat16));
}

TEST(EmulatedLaunch, WhatNoGpuTakesIsAnErrorOfTheLaunch) {
  const at::Tensor x = numbers(8), out = nothing(16);
  EXPECT_EQ(fake_cuda::take_launch_error(), nullptr);
  launch_block_sums(Fault::kNone, x.const_data_ptr<float>(), out.mutable_data_ptr<float>(), 0, 64);
  EXPECT_NE(fake_cuda::take_launch_error(), nullptr);
  launch_block_sums(Fault::kNone, x.const_data_ptr<float>(), out.mutable_data_ptr<float>(), 1, 2048);
  const char* error = fake_cuda::take_launch_error();
  ASSERT_NE(error, nullptr);
  EXPECT_NE(std::string(error).find("block_sums: a grid of 1 x 1 x 1 blocks of 2048"), std::string::npos) << error;
  EXPECT_EQ(fake_cuda::take_launch_error(), nullptr);
}

}  // namespace
}  // namespace limbeck::test
