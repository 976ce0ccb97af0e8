// Saves of what is on a device, on the fake one: how much of the host's memory is locked for them, how often the host
// waits, and that nothing reads a copy before it is there.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "fake_cuda/counters.h"
#include "modules/memory/page_locked.h"
#include "support/checkpoint_cases.h"
#include "support/temporary_folder.h"
#include "trainer/checkpoint/async_saver.h"
#include "trainer/parallel/communicator.h"

namespace limbeck::checkpoint {
namespace {

using fake_cuda::counters;
using test::expect_holds;
using test::request_of;
using test::TemporaryFolder;

const c10::Device kDevice(at::kCUDA, 0);
constexpr int64_t kPage = 4096;

SaveRequest on_device(SaveRequest request) {
  for (auto* pieces : {&request.model, &request.optimizer}) {
    for (Piece& piece : *pieces) piece.data = piece.data.to(kDevice);
  }
  return request;
}

int64_t whole_pages(int64_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

TEST(StagedSave, LocksTheBytesThatItNeedsAndUnlocksThem) {
  const TemporaryFolder run;
  const auto solo = parallel::make_solo();
  {
    AsyncSaver saver(run / "checkpoints", *solo);
    const SaveRequest first = on_device(request_of(1));
    const int64_t bytes = staged_bytes(first);
    ASSERT_GT(bytes, 3 * kPage);
    saver.start(first);
    EXPECT_EQ(counters().registered_bytes, whole_pages(bytes));
    const void* memory = saver.staging_memory();
    saver.start(on_device(request_of(2)));
    EXPECT_EQ(saver.staging_memory(), memory);
    // A larger one takes the place of the smaller, so that there are never two.
    SaveRequest larger = on_device(request_of(3));
    larger.model.push_back(whole_tensor("more", at::ones({5000}, at::TensorOptions(kDevice))));
    saver.start(larger);
    EXPECT_EQ(counters().registered_bytes, whole_pages(staged_bytes(larger)));
    EXPECT_EQ(counters().most_registered_bytes, whole_pages(staged_bytes(larger)));
    saver.drain();
    EXPECT_EQ(saver.take_error(), nullptr);
    EXPECT_TRUE(saver.take_report()->warnings.empty());
  }
  EXPECT_EQ(counters().registered_bytes, 0);
}

TEST(StagedSave, WaitsOnceAndHoldsTheValuesOfItsStep) {
  const TemporaryFolder run;
  const auto solo = parallel::make_solo();
  AsyncSaver saver(run / "checkpoints", *solo);
  for (int64_t step = 1; step <= 3; ++step) {
    const SaveRequest request = on_device(request_of(step));
    const int64_t waits = counters().host_waits;
    saver.start(request);
    for (const auto* pieces : {&request.model, &request.optimizer}) {
      for (const Piece& piece : *pieces) piece.data.fill_(3);  // training goes on
    }
    saver.drain();
    EXPECT_EQ(counters().host_waits, waits + 1);
  }
  EXPECT_EQ(saver.take_error(), nullptr);
  for (int64_t step = 1; step <= 3; ++step) expect_holds(saver.take_report()->path, request_of(step));
}

TEST(StagedSave, WhereNothingCanBeLockedItSavesAllTheSameAndSaysSoOnce) {
  ::setenv("LIMBECK_FAKE_CUDA_LOCKS_NOTHING", "1", 1);
  const TemporaryFolder run;
  const auto solo = parallel::make_solo();
  AsyncSaver saver(run / "checkpoints", *solo);
  const SaveRequest first = on_device(request_of(1));
  saver.start(first);
  EXPECT_EQ(counters().registered_bytes, 0);
  saver.start(on_device(request_of(2)));
  saver.drain();
  ::unsetenv("LIMBECK_FAKE_CUDA_LOCKS_NOTHING");
  const auto report = saver.take_report();
  ASSERT_TRUE(report);
  ASSERT_EQ(report->warnings.size(), 1u);
  const std::string& warning = report->warnings[0];
  for (const std::string& part : {std::to_string(staged_bytes(first)) + " bytes", std::string("(out of memory)"),
                                  std::string("a third of the speed"), std::string("more free memory")}) {
    EXPECT_NE(warning.find(part), std::string::npos) << warning;
  }
  EXPECT_EQ(warning.find('\n'), std::string::npos);
  EXPECT_TRUE(saver.take_report()->warnings.empty());
  expect_holds(report->path, request_of(1));
  expect_holds(run / "checkpoints" / "step-00000002", request_of(2));
}

// What a save that did not wait would do: its thread reads what the device still writes.
TEST(StagedSaveDeathTest, ACopyThatNobodyWaitedForIsNotRead) {
  const auto copied = [](bool waits) {
    const memory::PageLocked room = memory::page_locked(40, kDevice);
    at::Tensor copy = room.bytes.view(at::kFloat);
    copy.copy_(at::ones({10}, at::TensorOptions(kDevice)), /*non_blocking=*/true);
    if (waits) c10::Stream(c10::Stream::DEFAULT, kDevice).synchronize();
    return copy.sum().item<float>();
  };
  EXPECT_EQ(copied(true), 10.0f);
  EXPECT_DEATH(copied(false),
               "the host reads or writes memory that aten::copy_ on stream 0 writes, and has not waited for it");
  const auto given_back = [] {
    at::Tensor bytes = memory::page_locked(40, kDevice).bytes;
    bytes.copy_(at::ones({40}, at::TensorOptions(kDevice).dtype(at::kByte)), /*non_blocking=*/true);
  };
  EXPECT_DEATH(given_back(), "memory is unregistered that aten::copy_ on stream 0 writes");
}

}  // namespace
}  // namespace limbeck::checkpoint
