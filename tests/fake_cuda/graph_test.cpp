// Graphs of the fake device by the same code as real ones: what is recorded is done later and as often as asked, and
// what a graph cannot hold is refused, or shows.
#include <ATen/ATen.h>
#include <c10/core/Event.h>
#include <gtest/gtest.h>

#include <memory>
#include <thread>

#include "fake_cuda/counters.h"
#include "fake_cuda/fake_device.h"
#include "fake_cuda/graph.h"
#include "fake_cuda/probe_kernels.h"
#include "kernels/operator/device_graph.h"

extern "C" limbeck::kernels::DeviceGraph* limbeck_cuda_new_graph(c10::Device device,
                                                                 const limbeck::kernels::DeviceGraph* neighbour);

namespace limbeck::test {
namespace {

const at::TensorOptions kFloats = at::TensorOptions(at::kCUDA).dtype(at::kFloat);

std::unique_ptr<kernels::DeviceGraph> graph_of(const std::function<void()>& work,
                                               const kernels::DeviceGraph* neighbour = nullptr) {
  std::unique_ptr<kernels::DeviceGraph> graph(limbeck_cuda_new_graph({at::kCUDA, 0}, neighbour));
  graph->record(work);
  return graph;
}

float first_of(const at::Tensor& x) { return x.flatten()[0].item<float>(); }

int stream_now() { return fake_cuda::current_stream(0); }

TEST(FakeGraph, DoesAgainWhatTheStreamWasGiven) {
  const at::Tensor x = at::full({3, 4}, 2.0, kFloats), weight = at::full({4, 2}, 3.0, kFloats);
  const at::Tensor total = at::zeros({}, kFloats), filled = at::zeros({5}, kFloats);
  at::Tensor y;
  const auto graph = graph_of([&] {
    launch_fill_on(filled.mutable_data_ptr<float>(), 5, 7.0f, stream_now());
    y = at::mm(x, weight).relu().t() + filled[0];
    total.add_(y.sum());
  });
  // Nothing was done so far: no kernel ran, what was there is as it was, and what was made is no number.
  EXPECT_EQ(first_of(filled), 0.0f);
  EXPECT_EQ(total.item<float>(), 0.0f);
  EXPECT_TRUE(y.isnan().all().item<bool>());
  const int64_t operators = fake_cuda::counters().operators, launches = fake_cuda::counters().launches;
  graph->play();
  EXPECT_EQ(fake_cuda::counters().operators, operators);
  EXPECT_EQ(fake_cuda::counters().launches, launches);
  EXPECT_EQ(first_of(y), 31.0f);
  EXPECT_EQ(total.item<float>(), 6 * 31.0f);
  x.fill_(1.0);
  graph->play();
  EXPECT_EQ(first_of(y), 19.0f);
  EXPECT_EQ(total.item<float>(), 6 * (31.0f + 19.0f));
}

// In both its ways to the device: the argument of an operator, and that of a kernel.
TEST(FakeGraph, ANumberThatWasToldStaysAsItWas) {
  const at::Tensor x = at::ones({4}, kFloats), held = at::full({}, 2.0, kFloats), filled = at::zeros({1}, kFloats);
  double told = 2.0;
  at::Tensor baked, read;
  const auto graph = graph_of([&] {
    baked = x * told;
    read = x * held;
    launch_fill_on(filled.mutable_data_ptr<float>(), 1, static_cast<float>(told), stream_now());
  });
  told = 5.0;
  held.fill_(told);
  graph->play();
  EXPECT_EQ(first_of(read), 5.0f);
  EXPECT_EQ(first_of(baked), 2.0f);
  EXPECT_EQ(first_of(filled), 2.0f);
}

TEST(FakeGraph, OfABackwardHoldsItsThread) {
  at::Tensor weight = at::full({3, 3}, 0.5, kFloats).requires_grad_(true);
  const at::Tensor x = at::ones({2, 3}, kFloats);
  const auto graph = graph_of([&] { at::mm(x, weight).pow(2).sum().backward(); });
  const at::Tensor gradient = weight.grad();
  weight.mutable_grad().reset();
  for (const double value : {1.0, 2.0}) {
    x.fill_(value);
    graph->play();
    // d/dW of the sum of (x W)^2 is 2 x^T x W.
    EXPECT_EQ(first_of(gradient), static_cast<float>(2 * 2 * value * (3 * value * 0.5)));
  }
}

std::string refusal_of(const std::function<void()>& work) {
  try {
    graph_of(work);
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
  return "";
}

TEST(FakeGraph, WhatTheHostWouldWaitForIsRefused) {
  const at::Tensor x = at::ones({4}, kFloats), on_host = at::ones({4}), pinned = at::ones({4}).pin_memory();
  c10::Event event(c10::kCUDA);
  event.record(fake_cuda::torch_stream(0));
  const std::string words = "operation not permitted when stream is capturing: ";
  const auto refused = [&](const std::function<void()>& work, const std::string& what) {
    EXPECT_NE(refusal_of(work).find(words + what), std::string::npos) << what << ": " << refusal_of(work);
    EXPECT_EQ(fake_cuda::capturing(stream_now()), nullptr);
    EXPECT_EQ(x.sum().item<float>(), 4.0f);  // the device is as before
  };
  refused([&] { x.sum().item(); }, "aten::item");
  refused([&] { x.nonzero(); }, "aten::nonzero");
  refused([&] { x.cpu(); }, "a copy of host memory");
  refused([&] { x.copy_(on_host); }, "a copy of host memory");
  // CUDA would take this one, and read the memory at each replay, whosever it is.
  refused([&] { pinned.to(at::kCUDA, /*non_blocking=*/true); }, "a copy of host memory");
  refused([&] { event.synchronize(); }, "a wait of the host");
  refused([&] { event.query(); }, "a question to an event");
  refused([&] { std::thread([&] { x.numel(); }).join(), fake_cuda::refuse_while_capturing("by hand"); }, "by hand");
  // A wait that somebody swallows spoils the graph all the same.
  refused(
      [&] {
        try {
          x.sum().item();
        } catch (const c10::Error&) {
        }
        fake_cuda::refuse_while_capturing("after it");
      },
      "after it");
  EXPECT_NE(refusal_of([&] {
              try {
                x.sum().item();
              } catch (const c10::Error&) {
              }
            }).find("a previous error during capture"),
            std::string::npos);
  refused([&] { graph_of([] {}); }, "another capture");
}

// Batches are placed and events are asked while the step is recorded.
TEST(FakeGraph, OtherThreadsGoOn) {
  const at::Tensor x = at::ones({4}, kFloats), pinned = at::full({4}, 3.0).pin_memory();
  at::Tensor placed, y;
  const auto graph = graph_of([&] {
    y = x * 2;
    std::thread([&] {
      placed = pinned.to(at::kCUDA, /*non_blocking=*/true);
      c10::Event event(c10::kCUDA);
      event.record(fake_cuda::torch_stream(0));
      event.synchronize();
    }).join();
  });
  EXPECT_EQ(first_of(placed), 3.0f);
  graph->play();
  EXPECT_EQ(first_of(y), 2.0f);
}

TEST(FakeGraph, ItsMemoryGoesWithIt) {
  const int64_t before = fake_cuda::counters().bytes;
  const at::Tensor x = at::ones({1000}, kFloats);
  {
    at::Tensor y;
    const auto graph = graph_of([&] { y = (x * 2 + 1).mul(3); });
    EXPECT_EQ(graph->held_bytes(), 3 * 4000);                   // what lies between is held,
    EXPECT_EQ(fake_cuda::counters().bytes, before + 2 * 4000);  // and is no tensor's
    graph->play();
    EXPECT_EQ(first_of(y), 9.0f);
  }
  EXPECT_EQ(fake_cuda::counters().bytes, before + 4000);
}

// A tensor that outlives its graph has its memory still.
TEST(FakeGraph, ItsMemoryIsThereWhileATensorHasIt) {
  const int64_t before = fake_cuda::counters().bytes;
  {
    at::Tensor y;
    const at::Tensor x = at::ones({1000}, kFloats);
    graph_of([&] { y = x + 1; })->play();
    EXPECT_EQ(first_of(y), 2.0f);
  }
  EXPECT_EQ(fake_cuda::counters().bytes, before);
}

TEST(FakeGraph, MemoryThatIsLeftIsUsedAgainInIt) {
  const at::Tensor x = at::ones({1000}, kFloats);
  at::Tensor y;
  const auto graph = graph_of([&] {
    y = x + 1;
    for (int i = 0; i < 10; ++i) y = y * 2;
  });
  EXPECT_EQ(graph->held_bytes(), 2 * 4000);
  for (int i = 0; i < 2; ++i) {
    graph->play();
    EXPECT_EQ(first_of(y), 2048.0f);
  }
}

// Whose order does not matter, where nobody needs what another one made: each writes all that it reads.
TEST(FakeGraph, NeighboursHaveOneMemory) {
  const at::Tensor x = at::ones({1000}, kFloats), z = at::full({1000}, 3.0, kFloats);
  at::Tensor y, kept;
  const auto one = graph_of([&] { y = (x + 1).mul(2); });
  const void* const place = y.const_data_ptr();
  const at::Tensor there = at::for_blob(y.mutable_data_ptr(), y.sizes())
                               .options(kFloats)
                               .target_device(at::Device(at::kCUDA, 0))
                               .make_tensor();
  y.reset();
  const auto other = graph_of([&] { kept = z * 5; }, one.get());
  EXPECT_EQ(one->held_bytes(), 2 * 4000);
  EXPECT_EQ(other->held_bytes(), one->held_bytes());
  const at::Tensor second = kept;
  for (int i = 0; i < 2; ++i) {
    one->play();
    EXPECT_EQ(first_of(there), 4.0f);
    other->play();
    EXPECT_EQ(first_of(second), 15.0f);
    EXPECT_EQ(first_of(there), second.const_data_ptr() == place ? 15.0f : 4.0f);
    one->play();
    one->play();
    EXPECT_EQ(first_of(there), 4.0f);
  }
}

}  // namespace
}  // namespace limbeck::test
