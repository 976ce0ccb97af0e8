// The memory of the fake device and ATen on it: what real CUDA refuses is refused, what it computes is right.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <thread>

#include "fake_cuda/counters.h"
#include "fake_cuda/fake_device.h"
#include "fake_cuda/probe_kernels.h"
#include "kernels/linear/linear.h"

namespace limbeck::test {
namespace {

const at::TensorOptions kOnDevice = at::TensorOptions(at::kCUDA).dtype(at::kFloat);

std::string refusal(const std::function<void()>& call) {
  try {
    call();
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
  return "";
}

TEST(FakeDeviceDeathTest, TheHostCannotTouchItsMemory) {
  const at::Tensor x = at::ones({10}, kOnDevice);
  const auto read = [&](int64_t i) { [[maybe_unused]] const volatile float seen = x.const_data_ptr<float>()[i]; };
  EXPECT_DEATH(read(3), "the host reads or writes byte 12 of a block of 40 on the device");
  EXPECT_DEATH(std::memset(x.mutable_data_ptr(), 0, 4), "the host reads or writes byte 0 of a block of 40");
  // Nor after a kernel had it.
  launch_fill(x.mutable_data_ptr<float>(), 10, 2.0f);
  EXPECT_DEATH(read(9), "the host reads or writes byte 36 of a block of 40");
  EXPECT_EQ(x.sum().item<float>(), 20.0f);
}

TEST(FakeDeviceDeathTest, AKernelMustStayInItsBlocks) {
  const at::Tensor from = at::ones({1000}, kOnDevice), to = at::zeros({1000}, kOnDevice);
  const auto copy = [&](int64_t offset) {
    launch_copy(from.const_data_ptr<float>(), to.mutable_data_ptr<float>(), 1000, offset);
  };
  copy(0);
  EXPECT_DEATH(copy(1), "kernel copy, block \\(15, 0\\), thread 39: out of bounds: byte 4000 of a block of 4000");
  // What stays on the pages of the block is seen when it is freed.
  const auto spoil = [](int64_t begin, int64_t count) {
    const at::Tensor odd = at::zeros({1001}, kOnDevice);
    launch_fill(odd.mutable_data_ptr<float>() + begin, count, 3.0f);
  };
  EXPECT_DEATH(spoil(0, 1002), "byte 4004 of a block of 4004 was written; seen when the block was freed");
  EXPECT_DEATH(spoil(-2, 2), "byte -8 of a block of 4004 was written");
}

TEST(FakeDevice, FreshMemoryIsNoNumber) {
  EXPECT_TRUE(at::empty({5}, kOnDevice).isnan().all().item<bool>());
  EXPECT_TRUE(at::empty({5}, kOnDevice.dtype(at::kBFloat16)).isnan().all().item<bool>());
}

TEST(FakeDevice, BothDevicesInOneCallAreRefused) {
  const at::Tensor x = at::ones({3, 3}, kOnDevice), y = at::ones({3, 3});
  const std::string words = "Expected all tensors to be on the same device";
  EXPECT_NE(refusal([&] { at::mm(x, y); }).find(words), std::string::npos);
  EXPECT_NE(refusal([&] { x + y; }).find(words), std::string::npos);
  EXPECT_NE(refusal([&] { at::cat({x, y}); }).find(words), std::string::npos);
  // A batch that was left on the CPU.
  const at::Tensor ids = at::tensor({0, 2});
  EXPECT_NE(refusal([&] { at::embedding(x, ids); }).find(words), std::string::npos);
  EXPECT_NE(refusal([&] { x.index_select(0, ids); }).find(words), std::string::npos);
  EXPECT_NE(refusal([&] { kernels::linear(y, x); }), "");
  // As on real CUDA: a number may come from the CPU, and indices in brackets.
  EXPECT_EQ((x + at::scalar_tensor(2.0f)).sum().item<float>(), 27.0f);
  EXPECT_EQ(x.index({ids}).sum().item<float>(), 6.0f);
  auto generator = at::make_generator<at::CPUGeneratorImpl>(uint64_t{1});
  EXPECT_NE(refusal([&] { at::zeros({3}, kOnDevice).normal_(0, 1, generator); }).find("generator"), std::string::npos);
  EXPECT_NE(refusal([] { at::empty({1}, at::TensorOptions(at::Device(at::kCUDA, 1))); }).find("invalid device ordinal"),
            std::string::npos);
}

TEST(FakeDevice, OperatorsInPlaceAndViewsReachTheTensor) {
  const at::Tensor x = at::arange(24, at::kFloat).view({4, 6}), y = x.to(at::kCUDA);
  x.t().slice(0, 1, 4).mul_(2).select(1, 2).fill_(7);
  y.t().slice(0, 1, 4).mul_(2).select(1, 2).fill_(7);
  EXPECT_TRUE(at::equal(x, y.cpu()));
  at::Tensor out = at::empty({0}, kOnDevice);
  at::mm_out(out, y, y.t());
  EXPECT_TRUE(at::allclose(out.cpu(), at::mm(x, x.t())));
  EXPECT_EQ(y.t().contiguous().stride(0), 4);
  EXPECT_EQ((y.t() + 1).strides(), (x.t() + 1).strides());
}

// conj() of a complex tensor is a mark on it, and so is the sign of the imaginary part of one: nothing is computed
// before a copy, which must see the mark.
TEST(FakeDevice, WhatIsMarkedAsConjugateIsCopiedAsOne) {
  const at::Tensor x = at::view_as_complex(at::arange(24, at::kDouble).view({3, 4, 2})), y = x.to(at::kCUDA);
  EXPECT_TRUE(at::equal(y.conj().resolve_conj().cpu(), x.conj().resolve_conj()));
  EXPECT_TRUE(at::equal(y.conj().cpu().resolve_conj(), x.conj().resolve_conj()));
  EXPECT_TRUE(at::equal(at::imag(y.conj()).contiguous().cpu(), at::imag(x.conj()).contiguous()));
  EXPECT_TRUE(at::allclose(at::matmul(y.conj(), y.t()).cpu(), at::matmul(x.conj(), x.t())));
  EXPECT_TRUE(at::equal(at::view_as_real(y).cpu(), at::view_as_real(x)));
  EXPECT_TRUE(at::view_as_real(y).is_alias_of(y) && at::view_as_complex(at::view_as_real(y)).is_alias_of(y));
}

TEST(FakeDevice, ProductsWithAnotherDtypeAreCublas) {
  for (const auto dtype : {at::kHalf, at::kBFloat16}) {
    const at::Tensor a = at::randn({3, 40, 70}).to(dtype), b = at::randn({3, 70, 30}).to(dtype);
    const at::Tensor wanted = at::bmm(a.to(at::kDouble), b.to(at::kDouble));
    const at::Tensor whole = at::bmm(a.to(at::kCUDA), b.to(at::kCUDA), at::kFloat);
    EXPECT_EQ(whole.scalar_type(), at::kFloat);
    // Sums of 70 in float32: about 70 * 2^-24 of the sum of magnitudes, which is below 100.
    EXPECT_LT((whole.cpu().to(at::kDouble) - wanted).abs().max().item<double>(), 5e-4);
    const at::Tensor one = at::mm(a[1].to(at::kCUDA), b[1].to(at::kCUDA), at::kFloat);
    EXPECT_LT((one.cpu().to(at::kDouble) - wanted[1]).abs().max().item<double>(), 5e-4);
    EXPECT_NE(refusal([&] { at::mm(a[0].to(at::kCUDA), b[0].to(at::kCUDA), at::kDouble); }).find("out_dtype"),
              std::string::npos);
  }
}

TEST(FakeDevice, CountsWhatTheHostWaitsFor) {
  auto& counted = fake_cuda::counters();
  const at::Tensor x = at::ones({3, 3}, kOnDevice), pinned = at::ones({3, 3}).pin_memory();
  const auto waits_of = [&](const std::function<void()>& call) {
    const int64_t before = counted.host_waits;
    call();
    return counted.host_waits - before;
  };
  EXPECT_EQ(waits_of([&] { at::mm(x, x).add_(1).sum(); }), 0);
  EXPECT_EQ(waits_of([&] { x.sum().item(); }), 1);
  EXPECT_EQ(waits_of([&] { x.cpu(); }), 1);
  EXPECT_EQ(waits_of([&] { x.nonzero(); }), 1);
  EXPECT_TRUE(pinned.is_pinned());
  EXPECT_EQ(waits_of([&] { pinned.to(at::kCUDA, /*non_blocking=*/true); }), 0);
  EXPECT_EQ(waits_of([&] { pinned.to(at::kCUDA); }), 1);
  const int64_t bytes = counted.bytes;
  { const at::Tensor large = at::empty({1 << 20}, kOnDevice.dtype(at::kByte)); }
  EXPECT_EQ(counted.bytes, bytes);
  EXPECT_GE(counted.peak_bytes, bytes + (1 << 20));
}

c10::Stream another_stream() { return fake_cuda::torch_stream(fake_cuda::new_stream(0)); }

c10::Event event_after(const c10::Stream& stream) {
  c10::Event event(c10::kCUDA);
  event.record(stream);
  return event;
}

TEST(FakeDeviceDeathTest, AMissingWaitBetweenStreamsIsFound) {
  const c10::Stream own = fake_cuda::torch_stream(0), side = another_stream();
  const auto on_side = [&](const std::function<void()>& call, bool waits) {
    if (waits) event_after(own).block(side);
    const c10::StreamGuard guard(side);
    call();
  };
  const at::Tensor x = at::ones({10}, kOnDevice);
  const std::string there = "on stream " + std::to_string(fake_cuda::stream_of(side));
  const auto read = [&] { x.sum(); };
  EXPECT_DEATH(on_side(read, false),
               "aten::sum.* " + there + " reads a block of 40 bytes that aten::fill_ on stream 0 writes");
  on_side(read, true);
  // What was read may not be written before that.
  EXPECT_DEATH(x.add_(1), "aten::add_? on stream 0 writes a block of 40 bytes that aten::sum.* " + there + " reads");
  event_after(side).block(own);
  x.add_(1);
  // Kernels of ours too, and both ways.
  const auto fill = [&] { launch_fill_on(x.mutable_data_ptr<float>(), 10, 2.0f, fake_cuda::stream_of(side)); };
  EXPECT_DEATH(fill(), "fill.* " + there + " writes a block of 40 bytes that aten::add_? on stream 0 writes");
  event_after(own).block(side);
  fill();
  EXPECT_DEATH(x.mul(2), "aten::mul on stream 0 reads a block of 40 bytes that .*fill.* " + there + " writes");
  EXPECT_DEATH(x.cpu(), "aten::copy_ on stream 0 reads");
  // The host waited: then everything begins later.
  event_after(side).synchronize();
  EXPECT_EQ(x.sum().item<float>(), 20.0f);
}

TEST(FakeDeviceDeathTest, MemoryIsGivenOutAnewAfterItsLastUse) {
  const c10::Stream own = fake_cuda::torch_stream(0), side = another_stream();
  const auto used_on_side = [&](bool recorded) {
    const at::Tensor x = at::ones({777}, kOnDevice);
    event_after(own).block(side);
    const c10::StreamGuard guard(side);
    x.sum();
    if (recorded) x.record_stream(side);
  };
  const auto next = [] { at::empty({777}, kOnDevice); };
  EXPECT_DEATH((used_on_side(false), next()), "of stream 0 was freed and is given out anew while aten::sum");
  used_on_side(true);
  next();
  used_on_side(true);
  event_after(side).block(own);
  next();
}

TEST(FakeDevice, AnOperatorBeginsWhenTheJobsBeforeItHaveEnded) {
  const c10::Stream own = fake_cuda::torch_stream(0), side = another_stream();
  const auto job = std::make_shared<fake_cuda::Job>();
  fake_cuda::add_job(fake_cuda::stream_of(side), job);
  c10::Event event = event_after(side);
  EXPECT_FALSE(event.query());
  const at::Tensor x = at::ones({3}, kOnDevice);  // own does not wait
  std::atomic<bool> ended{false};
  std::jthread later([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    ended = true;
    job->finish();
  });
  event.block(own);
  x.add_(1);
  EXPECT_TRUE(ended);
  EXPECT_TRUE(event.query());
}

}  // namespace
}  // namespace limbeck::test
