#include "trainer/parallel/sharing/buffer_pool.h"

#include <ATen/ops/empty.h>
#include <gtest/gtest.h>

#include <memory>
#include <thread>
#include <vector>

#include "modules/memory/meta_memory.h"
#include "trainer/parallel/communicator.h"

namespace limbeck::parallel {
namespace {

constexpr auto kFloats = at::kFloat;

TEST(BufferPool, LendsTheSameMemoryAgainToTheSameSizeAlone) {
  BufferPool pool;
  at::Tensor first = pool.tensor(1000, kFloats);
  const void* memory = first.const_data_ptr();
  first.fill_(3);
  const at::Tensor beside = pool.tensor(1000, kFloats);
  EXPECT_NE(beside.const_data_ptr(), memory);
  first.reset();
  const at::Tensor other = pool.tensor(1001, kFloats);
  EXPECT_NE(other.const_data_ptr(), memory);
  const at::Tensor again = pool.tensor(1000, kFloats);
  EXPECT_EQ(again.const_data_ptr(), memory);
  EXPECT_EQ(again.sizes(), (std::vector<int64_t>{1000}));
  EXPECT_EQ(again[999].item<float>(), 3);  // whatever the memory held
}

TEST(BufferPool, ViewsKeepALoan) {
  BufferPool pool;
  at::Tensor whole = pool.tensor(64, kFloats).fill_(1);
  const at::Tensor part = whole.narrow(0, 32, 8);
  whole.reset();
  pool.tensor(64, kFloats).fill_(2);
  EXPECT_EQ(part.sum().item<float>(), 8);
}

TEST(BufferPool, LoansOutliveThePool) {
  auto pool = std::make_unique<BufferPool>();
  at::Tensor kept = pool->tensor(64, kFloats).fill_(5);
  pool.reset();
  EXPECT_EQ(kept.sum().item<float>(), 320);
  kept.reset();  // the memory goes with the last of them: sanitizers would tell
}

TEST(BufferPool, ServesThreads) {
  BufferPool pool;
  std::vector<std::thread> threads;
  std::vector<int> wrong(4, 0);
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&, thread] {
      for (int round = 0; round < 500; ++round) {
        const at::Tensor mine = pool.tensor(256, kFloats).fill_(thread);
        std::this_thread::yield();
        wrong[static_cast<size_t>(thread)] += mine.ne(thread).any().item<bool>();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, std::vector<int>(4, 0));
}

TEST(BufferPool, OnMetaWhatItKeepsIsCounted) {
  const memory::MetaMemory memory;
  {
    BufferPool pool;
    at::Tensor lent = pool.tensor(1000, at::TensorOptions(kFloats).device(at::kMeta));
    EXPECT_EQ(memory::MetaMemory::live_bytes(), 4000);
    lent.reset();
    EXPECT_EQ(memory::MetaMemory::live_bytes(), 4000);  // as a real pool keeps it
    lent = pool.tensor(1000, at::TensorOptions(kFloats).device(at::kMeta));
    EXPECT_EQ(memory::MetaMemory::live_bytes(), 4000);
  }
  EXPECT_EQ(memory::MetaMemory::live_bytes(), 0);
}

TEST(PlannedRanks, TakeTensorsOnMetaInEqualPartsAlone) {
  const auto ranks = make_planned(4);
  EXPECT_EQ(ranks->size(), 4);
  EXPECT_EQ(ranks->all_gather("x"), (std::vector<std::string>{"x", "x", "x", "x"}));
  const auto meta = at::TensorOptions(kFloats).device(at::kMeta);
  ranks->all_gather(at::empty({40}, meta), at::empty({10}, meta), "unit")->wait();
  ranks->reduce_scatter(at::empty({10}, meta), at::empty({40}, meta), Order::kTree, "unit")->wait();
  EXPECT_THROW(ranks->all_gather(at::empty({41}, meta), at::empty({10}, meta), "unit"), std::logic_error);
  EXPECT_THROW(ranks->all_reduce(at::empty({4}, kFloats), Order::kFast, "unit"), std::logic_error);
}

}  // namespace
}  // namespace limbeck::parallel
