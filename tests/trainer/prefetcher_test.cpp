// Batches made ahead on a thread: the same, in order, not too many, and an error where it happened.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <stdexcept>

#include "tests/modules/weights_files.h"
#include "tests/support/token_shards.h"
#include "trainer/data/data_source.h"

namespace limbeck::data {
namespace {

using namespace limbeck::test;

DataRequest twenty_rows(const TemporaryFolder& folder) {
  TokenSet set;
  set.shards.resize(1);
  for (int32_t i = 0; i < 20; ++i) set.shards[0].push_back({{i, 50, 51, 52}});
  write_token_set(folder.path(), set);
  DataRequest request;
  request.folder = folder.path();
  request.origin = "data.train (default)";
  request.batch_size = 2;
  request.sequence_length = 4;
  return request;
}

Prefetcher::Make batches_of(const DataSource& source) {
  return [&source](int64_t i) { return source.batch(i); };
}

TEST(Prefetcher, GivesTheBatchesOfTheSourceInOrderWhateverTheDepth) {
  const TemporaryFolder folder;
  const DataSource source(twenty_rows(folder));
  for (const int depth : {0, 1, 3, 100}) {
    Prefetcher prefetcher(batches_of(source), 7, 29, depth, at::kCPU);  // into the third epoch
    for (int64_t i = 7; i < 29; ++i) {
      ASSERT_TRUE(prefetcher.next().student.ids.equal(source.batch(i).student.ids)) << depth << " " << i;
    }
    EXPECT_THROW(prefetcher.next(), std::out_of_range);
  }
}

// Meta stands for a GPU: another device than the loader's, to which every tensor has to go.
int64_t runs_of(const at::Tensor& numbers) {
  const int64_t length = numbers.size(1);
  return numbers.size(0) + numbers.narrow(1, 1, length - 1).ne(numbers.narrow(1, 0, length - 1)).sum().item<int64_t>();
}

TEST(Prefetcher, PlacesEveryTensorOnTheModelsDeviceAndCountsTheTargetsBefore) {
  const TemporaryFolder folder;
  const DataSource source(twenty_rows(folder));
  const auto everything = [&source](int64_t i) {
    Batch batch = source.batch(i);
    batch.teacher = batch.student;
    batch.student.attention_mask = at::ones_like(batch.student.ids);
    batch.teacher_position = at::zeros_like(batch.student.ids);
    batch.classes = at::zeros({2}, at::kLong);
    return batch;
  };
  for (const int depth : {0, 2}) {
    for (const c10::Device device : {c10::Device(at::kMeta), c10::Device(at::kCPU)}) {
      Prefetcher prefetcher(everything, 0, 4, depth, device);
      for (int64_t i = 0; i < 4; ++i) {
        const Batch batch = prefetcher.next();
        const TokenStream& student = batch.student;
        for (const at::Tensor& tensor :
             {student.ids, student.labels, *student.attention_mask, *student.document_ids, batch.teacher->ids,
              batch.teacher->labels, *batch.teacher->document_ids, batch.teacher_position, batch.classes}) {
          EXPECT_EQ(tensor.device(), device) << depth << " " << i;
          EXPECT_EQ(tensor.scalar_type(), at::kLong);
        }
        EXPECT_EQ(student.runs, runs_of(*source.batch(i).student.document_ids)) << depth << " " << i;
        EXPECT_EQ(student.targets, target_count(source.batch(i).student)) << depth << " " << i;
        EXPECT_EQ(batch.teacher->targets, student.targets);
        EXPECT_GT(target_count(student), 0);
      }
    }
  }
}

TEST(Prefetcher, EndsWhenNobodyTakesItsBatches) {
  const TemporaryFolder folder;
  const DataSource source(twenty_rows(folder));
  for (int i = 0; i < 50; ++i) {
    Prefetcher prefetcher(batches_of(source), 0, int64_t{1} << 40, 2, at::kCPU);
    if (i % 2) prefetcher.next();
  }
  const Prefetcher empty(batches_of(source), 3, 3, 2, at::kCPU);
}

TEST(Prefetcher, RethrowsWhatHappenedOnItsThread) {
  const TemporaryFolder folder;
  const DataSource source(twenty_rows(folder));
  // The file is cut while the run goes on; what was opened is still the same file.
  std::filesystem::resize_file(folder / "shard-00000.safetensors", 100);
  for (const int depth : {0, 2}) {
    Prefetcher prefetcher(batches_of(source), 0, 10, depth, at::kCPU);
    for (int i = 0; i < 2; ++i) {  // and again, if asked again
      expect_refusal<InputDataError>([&] { prefetcher.next(); }, ExitCode::kInputData,
                                     {"shard-00000.safetensors", "ends at byte"});
    }
  }
}

TEST(Prefetcher, FindsAnIdThatChangedDuringTheRun) {
  const TemporaryFolder folder;
  const DataSource source(twenty_rows(folder));
  std::string bytes = read_bytes(folder / "shard-00000.safetensors");
  // The ids of document 0 begin with 0, 50, 51, 52.
  const size_t at = bytes.find(std::string("\0\0\0\0\x32\0\0\0\x33\0\0\0", 12));
  ASSERT_NE(at, std::string::npos);
  bytes[at + 7] = 1;  // 50 becomes 2^24 + 50
  write_bytes(folder / "shard-00000.safetensors", bytes);
  expect_refusal<InputDataError>(
      [&] {
        for (int64_t i = 0; i < source.batches_per_epoch(); ++i) source.batch(i);
      },
      ExitCode::kInputData, {"shard-00000.safetensors: record 0, token 1: id 16777266", "changed during the run"});
}

TEST(Prefetcher, RunsAreCountedWhereNoNumberComesBack) {
  const auto placed = [](const std::vector<int64_t>& mask, const char* which) {
    Batch batch;
    batch.student.ids = at::zeros({2, 4}, at::kLong);
    const at::Tensor numbers = at::tensor(mask, at::kLong).view({2, 4});
    (which[0] == 'm' ? batch.student.attention_mask : batch.student.document_ids) = numbers;
    return place(std::move(batch), c10::kCPU).student.runs;
  };
  for (const char* which : {"mask", "documents"}) {
    EXPECT_EQ(placed({1, 1, 1, 1, 1, 1, 1, 1}, which), 2) << which;
    EXPECT_EQ(placed({0, 1, 1, 1, 1, 1, 0, 0}, which), 4) << which;
    EXPECT_EQ(placed({1, 2, 3, 0, 1, 2, 3, 4}, which), 8) << which;
    EXPECT_EQ(placed({1, 0, 1, 1, 1, 1, 1, 1}, which), std::nullopt) << which;  // a hole: one segment in two runs
  }
  Batch plain;
  plain.student.ids = at::zeros({1, 2}, at::kLong);
  EXPECT_EQ(place(std::move(plain), c10::kCPU).student.runs, std::nullopt);
}

}  // namespace
}  // namespace limbeck::data
