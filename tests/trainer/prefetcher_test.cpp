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

TEST(Prefetcher, GivesTheBatchesOfTheSourceInOrderWhateverTheDepth) {
  const TemporaryFolder folder;
  const DataSource source(twenty_rows(folder));
  for (const int depth : {0, 1, 3, 100}) {
    Prefetcher prefetcher(source, 7, 29, depth);  // into the third epoch
    for (int64_t i = 7; i < 29; ++i) {
      ASSERT_TRUE(prefetcher.next().student.ids.equal(source.batch(i).student.ids)) << depth << " " << i;
    }
    EXPECT_THROW(prefetcher.next(), std::out_of_range);
  }
}

TEST(Prefetcher, GivesTheBatchesThatItsNumbersName) {
  const TemporaryFolder folder;
  const DataSource source(twenty_rows(folder));
  for (const int depth : {0, 3}) {
    for (int64_t rank = 0; rank < 2; ++rank) {  // of two ranks, every other batch
      Prefetcher prefetcher(source, 2, 9, depth, [rank](int64_t i) { return 2 * i + rank; });
      for (int64_t i = 2; i < 9; ++i) {
        const at::Tensor ids = prefetcher.next().student.ids;
        ASSERT_TRUE(ids.equal(source.batch(2 * i + rank).student.ids)) << depth << " " << i;
        ASSERT_FALSE(ids.equal(source.batch(i).student.ids)) << depth << " " << i;
      }
      EXPECT_THROW(prefetcher.next(), std::out_of_range);
    }
  }
}

TEST(Prefetcher, EndsWhenNobodyTakesItsBatches) {
  const TemporaryFolder folder;
  const DataSource source(twenty_rows(folder));
  for (int i = 0; i < 50; ++i) {
    Prefetcher prefetcher(source, 0, int64_t{1} << 40, 2);
    if (i % 2) prefetcher.next();
  }
  const Prefetcher empty(source, 3, 3, 2);
}

TEST(Prefetcher, RethrowsWhatHappenedOnItsThread) {
  const TemporaryFolder folder;
  const DataSource source(twenty_rows(folder));
  // The file is cut while the run goes on; what was opened is still the same file.
  std::filesystem::resize_file(folder / "shard-00000.safetensors", 100);
  for (const int depth : {0, 2}) {
    Prefetcher prefetcher(source, 0, 10, depth);
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

}  // namespace
}  // namespace limbeck::data
