// What is hidden from a masked language model: words whole, special tokens never, shares as asked, the same numbers
// whatever the batch.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>

#include "modules/errors.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/token_shards.h"
#include "tests/trainer/message_of.h"
#include "trainer/data/data_source.h"

namespace limbeck::data {
namespace {

constexpr int64_t kVocabulary = 100, kBegin = 1, kEnd = 2, kMask = 3, kLength = 50, kRows = 400;
constexpr int64_t kFirstPiece = 60;  // ids from here on go on with the word before them

class DataMasking : public testing::Test {
 protected:
  // Documents [CLS] w w ## w ... [SEP], every third word of two or three pieces.
  DataMasking() {
    test::TokenSet set;
    set.shards.resize(1), set.vocabulary = kVocabulary, set.padding = 0;
    std::srand(7);
    for (int64_t row = 0; row < kRows; ++row) {
      test::TokenDocument document;
      document.ids = {kBegin};
      while (document.ids.size() < kLength - 4) {
        document.ids.push_back(4 + std::rand() % 56);
        for (int pieces = std::rand() % 3; pieces > 0 && std::rand() % 2; --pieces)
          document.ids.push_back(kFirstPiece + std::rand() % 40);
      }
      document.ids.push_back(kEnd);
      set.shards[0].push_back(document);
    }
    manifest_ = test::write_token_set(folder_.path(), set);
    manifest_["tokenizer"]["special"] = "0-3";
    manifest_["tokenizer"]["mask"] = kMask;
    manifest_["tokenizer"]["continuing"] = "60-99";
    test::write_manifest(folder_.path(), manifest_);
  }

  DataRequest request(int64_t batch = 8, MaskUnit unit = MaskUnit::kWord) const {
    DataRequest request;
    request.folder = folder_.path(), request.origin = "data.train", request.batch_size = batch;
    request.sequence_length = kLength, request.packing = Packing::kPadded, request.shuffle = false;
    request.masking.unit = unit, request.mask_seed = 5;
    return request;
  }

  at::Tensor plain(int64_t batch) const { return DataSource(request(batch, MaskUnit::kNone)).batch(0).student.ids; }

  test::TemporaryFolder folder_;
  nlohmann::ordered_json manifest_;
};

TEST_F(DataMasking, SharesAreAsAskedWordsAreWholeAndSpecialTokensStay) {
  const at::Tensor before = plain(kRows);
  const TokenStream after = DataSource(request(kRows)).batch(0).student;
  EXPECT_TRUE(after.masked);
  const at::Tensor hidden = after.labels.ne(-100);
  EXPECT_TRUE(at::equal(after.labels.masked_select(hidden), before.masked_select(hidden)));
  EXPECT_TRUE(at::equal(after.ids.masked_select(hidden.logical_not()), before.masked_select(hidden.logical_not())));
  EXPECT_FALSE(hidden.logical_and(before.lt(4)).any().item<bool>()) << "a special token is hidden";
  // A piece is hidden exactly when the token before it is.
  const at::Tensor piece = before.ge(kFirstPiece).slice(1, 1);
  EXPECT_TRUE(at::equal(hidden.slice(1, 1).masked_select(piece), hidden.slice(1, 0, -1).masked_select(piece)));
  // Each share within four standard deviations of its binomial distribution.
  const auto expect_share = [](const at::Tensor& these, const at::Tensor& among, double wanted, const char* what) {
    const double n = among.sum().item<double>(), share = these.logical_and(among).sum().item<double>() / n;
    EXPECT_NEAR(share, wanted, 4 * std::sqrt(wanted * (1 - wanted) / n)) << what;
  };
  const at::Tensor begins = before.ge(4).logical_and(before.lt(kFirstPiece));
  expect_share(hidden, begins, 0.15, "words");
  expect_share(after.ids.eq(kMask), hidden, 0.8, "the mask token");
  const at::Tensor changed = after.ids.ne(before).logical_and(after.ids.ne(kMask));
  expect_share(changed, hidden, 0.1 * 95 / 96, "another token");  // one draw in 96 is the token itself
  EXPECT_TRUE(after.ids.masked_select(changed).ge(4).all().item<bool>()) << "replaced by a special token";
}

TEST_F(DataMasking, IsAFunctionOfSeedEpochRowAndPositionAlone) {
  const at::Tensor whole = DataSource(request(kRows)).batch(0).student.ids;
  const DataSource by_eight(request(8));
  for (const int64_t index : {3, 0, 49, 3}) {  // in any order, any time
    const at::Tensor rows = whole.narrow(0, index * 8, 8);
    const at::Tensor part = by_eight.batch(index).student.ids;
    EXPECT_TRUE(at::equal(part, rows.narrow(1, 0, part.size(1)))) << index;
  }
  EXPECT_FALSE(at::equal(by_eight.batch(50).student.ids, by_eight.batch(0).student.ids))
      << "a second epoch, other words";
  auto other = request(kRows);
  other.mask_seed = 6;
  EXPECT_FALSE(at::equal(DataSource(other).batch(0).student.ids, whole));
}

TEST_F(DataMasking, TokensEachForItselfSplitWords) {
  const at::Tensor before = plain(kRows);
  const at::Tensor hidden = DataSource(request(kRows, MaskUnit::kToken)).batch(0).student.labels.ne(-100);
  const at::Tensor piece = before.ge(kFirstPiece).slice(1, 1);
  EXPECT_FALSE(at::equal(hidden.slice(1, 1).masked_select(piece), hidden.slice(1, 0, -1).masked_select(piece)));
  EXPECT_FALSE(hidden.logical_and(before.lt(4)).any().item<bool>());
}

TEST_F(DataMasking, PackedRowsKeepWordsOfTwoDocumentsApart) {
  auto packed = request(4);
  packed.packing = Packing::kPacked;
  const TokenStream stream = DataSource(packed).batch(0).student;
  EXPECT_GT(target_count(stream), 0);
  EXPECT_TRUE(stream.masked);
}

TEST_F(DataMasking, RefusesDataWhoseTokenizerDoesNotSay) {
  manifest_["tokenizer"].erase("continuing");
  test::write_manifest(folder_.path(), manifest_);
  EXPECT_NE(test::message_of([&] { DataSource source(request()); }).find("set data.masking = token"),
            std::string::npos);
  EXPECT_NO_THROW(DataSource(request(8, MaskUnit::kToken)));
  manifest_["tokenizer"].erase("mask");
  test::write_manifest(folder_.path(), manifest_);
  EXPECT_NE(test::message_of([&] { DataSource source(request(8, MaskUnit::kToken)); }).find("mask token"),
            std::string::npos);
  for (const char* bad : {"7-5", "5,5", "-1", "1-100", "4,", "a"}) {
    manifest_["tokenizer"]["special"] = bad;
    test::write_manifest(folder_.path(), manifest_);
    EXPECT_NE(test::message_of([&] { DataSource source(request()); }).find("ascending ids below 100"),
              std::string::npos)
        << bad;
  }
}

}  // namespace
}  // namespace limbeck::data
