// Documents as rows: what a packed and a padded batch hold, in which order, with masks, classes and a second tokenizer.
#include "trainer/data/data_source.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <set>
#include <thread>

#include "tests/modules/weights_files.h"
#include "tests/support/token_shards.h"
#include "tests/trainer/message_of.h"
#include "trainer/cli/app.h"
#include "trainer/data/data_request.h"
#include "trainer/recipe/recipe_options.h"

namespace limbeck::data {
namespace {

using namespace limbeck::test;

using Rows = std::vector<std::vector<int64_t>>;

Rows rows_of(const at::Tensor& tensor) {
  EXPECT_EQ(tensor.scalar_type(), at::kLong);
  EXPECT_TRUE(tensor.is_contiguous() && tensor.is_cpu());
  Rows out;
  for (int64_t i = 0; i < tensor.size(0); ++i) {
    const auto* begin = tensor.data_ptr<int64_t>() + i * tensor.size(1);
    out.emplace_back(begin, begin + tensor.size(1));
  }
  return out;
}

DataRequest request_of(const TemporaryFolder& folder, Packing packing, int64_t batch, int64_t length) {
  DataRequest request;
  request.folder = folder.path();
  request.origin = "data.train (my.ini:12)";
  request.packing = packing;
  request.batch_size = batch;
  request.sequence_length = length;
  request.shuffle = false;
  return request;
}

// Two shards; 12 tokens in 4 documents, one of them empty.
TokenSet small_set() {
  TokenSet set;
  set.end_of_sequence = 9;
  set.shards = {{{{1, 2, 9}}, {{}}, {{3, 4, 5, 9}, {0, 0, 1, 1}}}, {{{6, 7, 8, 10, 9}}}};
  return set;
}

TEST(PackedRows, CutTheStreamOfDocumentsAndKeepThemApart) {
  const TemporaryFolder folder;
  write_token_set(folder.path(), small_set());
  const DataSource source(request_of(folder, Packing::kPacked, 3, 4));
  EXPECT_EQ(source.samples(), 3);
  EXPECT_EQ(source.batches_per_epoch(), 1);
  const Batch batch = source.batch(0);
  EXPECT_EQ(rows_of(batch.student.ids), (Rows{{1, 2, 9, 3}, {4, 5, 9, 6}, {7, 8, 10, 9}}));
  // The first token of a document, the masked ones (3 and 4), and what a row begins with are no targets.
  EXPECT_EQ(rows_of(batch.student.labels), (Rows{{-100, 2, 9, -100}, {-100, 5, 9, -100}, {-100, 8, 10, 9}}));
  EXPECT_EQ(rows_of(*batch.student.document_ids), (Rows{{1, 1, 1, 2}, {1, 1, 1, 2}, {1, 1, 1, 1}}));
  EXPECT_FALSE(batch.student.attention_mask || batch.teacher || batch.teacher_position.defined() ||
               batch.classes.defined());
  EXPECT_EQ(target_count(batch.student), 7);
  EXPECT_EQ(source.manifest().tokens, 12);
  EXPECT_EQ(source.manifest().documents, 4);
  EXPECT_EQ(source.manifest().tokenizer_digest, "aa11");
}

TEST(PackedRows, PadTheLastRow) {
  const TemporaryFolder folder;
  write_token_set(folder.path(), small_set());
  const DataSource source(request_of(folder, Packing::kPacked, 2, 7));
  const Batch batch = source.batch(0);
  EXPECT_EQ(rows_of(batch.student.ids), (Rows{{1, 2, 9, 3, 4, 5, 9}, {6, 7, 8, 10, 9, 9, 9}}));
  EXPECT_EQ(rows_of(batch.student.labels), (Rows{{-100, 2, 9, -100, -100, 5, 9}, {-100, 7, 8, 10, 9, -100, -100}}));
  EXPECT_EQ(rows_of(*batch.student.document_ids), (Rows{{1, 1, 1, 2, 2, 2, 2}, {1, 1, 1, 1, 1, 0, 0}}));
}

TEST(PackedRows, ADocumentOfManyRowsAndManyDocumentsInARow) {
  const TemporaryFolder folder;
  TokenSet set;
  set.shards = {{{std::vector<int32_t>(10, 1)}}, {}, {{{2}}, {{}}, {{3}}, {{4}}}};
  write_token_set(folder.path(), set);
  const DataSource source(request_of(folder, Packing::kPacked, 1, 4));
  EXPECT_EQ(source.samples(), 3);  // 13 tokens: the last alone predicts nothing
  EXPECT_EQ(rows_of(source.batch(0).student.ids), (Rows{{1, 1, 1, 1}}));
  EXPECT_EQ(rows_of(*source.batch(2).student.document_ids), (Rows{{1, 1, 2, 3}}));
  EXPECT_EQ(rows_of(source.batch(2).student.labels), (Rows{{-100, 1, -100, -100}}));
  ASSERT_EQ(source.notes().size(), 1u);
  EXPECT_EQ(source.notes()[0], "the last token was left over after packing and is not used");
}

TEST(PaddedRows, OneDocumentARowAsWideAsTheLongest) {
  const TemporaryFolder folder;
  write_token_set(folder.path(), small_set());
  const DataSource source(request_of(folder, Packing::kPadded, 3, 20));
  EXPECT_EQ(source.samples(), 3);
  const Batch batch = source.batch(0);
  ASSERT_EQ(batch.student.ids.size(1), 16);  // 5 rounded up
  auto head = [](const at::Tensor& tensor) { return rows_of(tensor.slice(1, 0, 6).contiguous()); };
  EXPECT_EQ(head(batch.student.ids), (Rows{{1, 2, 9, 9, 9, 9}, {3, 4, 5, 9, 9, 9}, {6, 7, 8, 10, 9, 9}}));
  EXPECT_EQ(head(batch.student.labels),
            (Rows{{-100, 2, 9, -100, -100, -100}, {-100, -100, 5, 9, -100, -100}, {-100, 7, 8, 10, 9, -100}}));
  EXPECT_EQ(head(*batch.student.attention_mask), (Rows{{1, 1, 1, 0, 0, 0}, {1, 1, 1, 1, 0, 0}, {1, 1, 1, 1, 1, 0}}));
  EXPECT_TRUE(batch.student.labels.slice(1, 6).eq(-100).all().item<bool>());
  EXPECT_FALSE(batch.student.document_ids.has_value());
  EXPECT_EQ(source.notes(), std::vector<std::string>{"1 empty documents were skipped"});
}

TEST(PaddedRows, TruncateOrSplitLongDocumentsAndSaySo) {
  const TemporaryFolder folder;
  TokenSet set;
  set.padding = 0;
  set.shards = {{{{1, 2, 3, 4, 5, 6, 7}}, {{8, 9}}}};
  write_token_set(folder.path(), set);
  DataRequest request = request_of(folder, Packing::kPadded, 1, 3);
  const DataSource truncated(request);
  EXPECT_EQ(truncated.samples(), 2);
  EXPECT_EQ(rows_of(truncated.batch(0).student.ids), (Rows{{1, 2, 3}}));
  EXPECT_EQ(truncated.notes()[0],
            "1 documents are longer than a row of 3 tokens and are truncated: 4 tokens are not used "
            "(data.long_documents = split keeps them)");
  request.long_documents = LongDocuments::kSplit;
  const DataSource split(request);
  ASSERT_EQ(split.samples(), 4);
  EXPECT_EQ(rows_of(split.batch(1).student.ids), (Rows{{4, 5, 6}}));
  EXPECT_EQ(rows_of(split.batch(2).student.ids), (Rows{{7, 0, 0}}));
  EXPECT_EQ(rows_of(split.batch(3).student.labels), (Rows{{-100, 9, -100}}));
  EXPECT_EQ(split.notes()[0], "1 documents are longer than a row of 3 tokens and are split into rows");
}

TEST(PaddedRows, CarryTheClasses) {
  const TemporaryFolder folder;
  TokenSet set;
  set.classes = 3;
  set.shards = {{{.ids = {1, 2}, .label = 2}, {.ids = {3}, .label = -100}}, {{.ids = {4}, .label = 0}}};
  write_token_set(folder.path(), set);
  const DataSource source(request_of(folder, Packing::kPadded, 3, 8));
  EXPECT_EQ(source.manifest().classes, 3);
  EXPECT_TRUE(source.batch(0).classes.equal(at::tensor({2, -100, 0}, at::kLong)));
  expect_refusal<UsageError>([&] { DataSource(request_of(folder, Packing::kPacked, 1, 8)); }, ExitCode::kUsage,
                             {"data.train (my.ini:12)", "classes", "data.packing = padded"});
}

TokenSet two_tokenizers() {
  TokenSet set;
  set.padding = 0;
  set.teacher_vocabulary = 50;
  set.shards = {{{.ids = {1, 2, 3}, .teacher_ids = {11, 12, 13, 14}, .position = {0, 2, 3}},
                 {.ids = {4, 5, 6, 7, 8}, .teacher_ids = {15, 16}, .position = {-1, 0, 0, 0, 1}}}};
  return set;
}

TEST(TwoTokenizers, HaveAStreamEachAndTheirAlignment) {
  const TemporaryFolder folder;
  write_token_set(folder.path(), two_tokenizers());
  const DataSource source(request_of(folder, Packing::kPadded, 2, 5));
  const Batch batch = source.batch(0);
  ASSERT_TRUE(batch.teacher.has_value());
  EXPECT_EQ(rows_of(batch.student.ids), (Rows{{1, 2, 3, 0, 0}, {4, 5, 6, 7, 8}}));
  EXPECT_EQ(rows_of(batch.teacher->ids), (Rows{{11, 12, 13, 14, 0}, {15, 16, 0, 0, 0}}));
  EXPECT_EQ(rows_of(*batch.teacher->attention_mask), (Rows{{1, 1, 1, 1, 0}, {1, 1, 0, 0, 0}}));
  EXPECT_EQ(rows_of(batch.teacher->labels), (Rows{{-100, 12, 13, 14, -100}, {-100, 16, -100, -100, -100}}));
  EXPECT_EQ(rows_of(batch.teacher_position), (Rows{{0, 2, 3, -1, -1}, {-1, 0, 0, 0, 1}}));
  EXPECT_EQ(source.manifest().teacher_tokenizer_digest, "bb22");
  EXPECT_EQ(source.manifest().teacher_vocabulary, 50);
}

TEST(TwoTokenizers, AreTruncatedAtTheSameCharacter) {
  const TemporaryFolder folder;
  write_token_set(folder.path(), two_tokenizers());
  DataRequest request = request_of(folder, Packing::kPadded, 2, 2);
  request.teacher_sequence_length = 8;
  const Batch by_student = DataSource(request).batch(0);
  EXPECT_EQ(rows_of(by_student.student.ids), (Rows{{1, 2}, {4, 5}}));
  EXPECT_EQ(rows_of(by_student.teacher->attention_mask->slice(1, 0, 5).contiguous()),
            (Rows{{1, 1, 1, 0, 0}, {1, 0, 0, 0, 0}}));
  request.sequence_length = 8;
  request.teacher_sequence_length = 3;
  const DataSource source(request);
  const Batch by_teacher = source.batch(0);
  EXPECT_EQ(rows_of(by_teacher.student.attention_mask->slice(1, 0, 6).contiguous()),
            (Rows{{1, 1, 0, 0, 0, 0}, {1, 1, 1, 1, 1, 0}}));
  EXPECT_EQ(rows_of(by_teacher.teacher->ids), (Rows{{11, 12, 13}, {15, 16, 0}}));
  EXPECT_NE(source.notes()[0].find("1 documents are longer"), std::string::npos) << source.notes()[0];
}

TEST(TwoTokenizers, ArePaddedOnly) {
  const TemporaryFolder folder;
  write_token_set(folder.path(), two_tokenizers());
  expect_refusal<UsageError>([&] { DataSource(request_of(folder, Packing::kPacked, 1, 4)); }, ExitCode::kUsage,
                             {"data.train (my.ini:12)", "two tokenizers", "data.packing = padded"});
}

// 40 documents of 4 tokens: the first token tells the document.
TokenSet forty_documents() {
  TokenSet set;
  set.shards.resize(3);
  for (int32_t i = 0; i < 40; ++i) set.shards[static_cast<size_t>(i % 3)].push_back({{i, 97, 98, 99}});
  return set;
}

std::vector<int64_t> epoch_of(const DataSource& source, int64_t epoch) {
  std::vector<int64_t> seen;
  for (int64_t i = 0; i < source.batches_per_epoch(); ++i) {
    const Batch batch = source.batch(epoch * source.batches_per_epoch() + i);
    for (const auto& row : rows_of(batch.student.ids)) seen.push_back(row[0]);
  }
  return seen;
}

TEST(DataSource, OrderIsAFunctionOfSeedEpochAndIndexAlone) {
  const TemporaryFolder folder;
  write_token_set(folder.path(), forty_documents());
  DataRequest request = request_of(folder, Packing::kPacked, 8, 4);
  request.shuffle = true;
  request.seed = 3;
  const DataSource source(request), again(request);
  const auto first = epoch_of(source, 0), second = epoch_of(source, 1);
  EXPECT_EQ(std::set<int64_t>(first.begin(), first.end()).size(), 40u);
  EXPECT_EQ(std::set<int64_t>(second.begin(), second.end()).size(), 40u);
  EXPECT_NE(first, second);
  EXPECT_EQ(epoch_of(again, 1), second);  // a resume that starts in the second epoch
  request.seed = 4;
  EXPECT_NE(epoch_of(DataSource(request), 0), first);
  request.shuffle = false;
  const auto stored = epoch_of(DataSource(request), 5);
  EXPECT_EQ((std::vector<int64_t>{stored.begin(), stored.begin() + 3}), (std::vector<int64_t>{0, 3, 6}));
}

TEST(DataSource, BatchesOfManyThreadsAreThoseOfOne) {
  const TemporaryFolder folder;
  write_token_set(folder.path(), forty_documents());
  DataRequest request = request_of(folder, Packing::kPadded, 4, 8);
  request.shuffle = true;
  const DataSource source(request);
  std::vector<at::Tensor> alone, together(60);
  for (int64_t i = 0; i < 60; ++i) alone.push_back(source.batch(i).student.ids);
  std::vector<std::thread> threads;
  for (size_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (size_t i = t; i < 60; i += 4) together[i] = source.batch(static_cast<int64_t>(i)).student.ids;
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (size_t i = 0; i < 60; ++i) EXPECT_TRUE(alone[i].equal(together[i])) << i;
}

// The limit is the process's: a source refuses, and says what to type; the program asks for what it may have.
TEST(DataSource, LeavesTheLimitOfOpenFilesToTheProgram) {
  const TemporaryFolder folder;
  TokenSet set;
  for (int32_t i = 0; i < 70; ++i) set.shards.push_back({{{i, i, i, i}}});
  write_token_set(folder.path(), set);
  rlimit before{}, low{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  low = {64, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &low), 0);
  const std::string refused = message_of([&] { DataSource(request_of(folder, Packing::kPacked, 1, 4)); });
  rlimit after{};
  EXPECT_EQ(::getrlimit(RLIMIT_NOFILE, &after), 0);
  EXPECT_EQ(after.rlim_cur, 64U);
  testing::internal::CaptureStdout();
  EXPECT_EQ(cli::App({"verify", folder.path().string()}).run(), 0);
  const std::string out = testing::internal::GetCapturedStdout();
  EXPECT_EQ(DataSource(request_of(folder, Packing::kPacked, 1, 4)).samples(), 70);
  EXPECT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_NE(refused.find("Too many open files: raise the limit (ulimit -n)"), refused.npos) << refused;
  EXPECT_NE(out.find("70"), out.npos) << out;
}

TEST(DataSource, TrainingDropsTheRestOfAnEpochAndEvaluationDoesNot) {
  const TemporaryFolder folder;
  write_token_set(folder.path(), forty_documents());
  DataRequest request = request_of(folder, Packing::kPacked, 16, 4);
  EXPECT_EQ(DataSource(request).batches_per_epoch(), 2);
  request.whole_epoch = true;
  const DataSource source(request);
  EXPECT_EQ(source.batches_per_epoch(), 3);
  EXPECT_EQ(source.batch(2).student.ids.size(0), 8);
  EXPECT_EQ(epoch_of(source, 0).size(), 40u);
  request.batch_size = 1000;
  EXPECT_EQ(DataSource(request).batch(0).student.ids.size(0), 40);
}

TEST(DataRequest, IsWhatTheRecipeSays) {
  recipe::OptionTable table;
  recipe::declare_recipe_options(table);
  const recipe::RecipeFile file(
      "seed = 5\n[data]\ntrain = a\nvalidation = b\nbatch_size = 3\nsequence_length = 7\n"
      "teacher_sequence_length = 9\npacking = padded\nlong_documents = split\nskip_bad_shards = yes\n",
      "/tmp/my.ini");
  const recipe::Settings settings(table, &file, {});
  const DataRequest train = training_data(settings), validation = validation_data(settings);
  EXPECT_EQ(train.folder, "/tmp/a");
  EXPECT_EQ(train.origin, "data.train (/tmp/my.ini:3)");
  EXPECT_EQ(train.batch_size, 3);
  EXPECT_EQ(train.sequence_length, 7);
  EXPECT_EQ(train.teacher_sequence_length, 9);
  EXPECT_EQ(train.seed, 5);
  EXPECT_TRUE(train.packing == Packing::kPadded && train.long_documents == LongDocuments::kSplit);
  EXPECT_TRUE(train.skip_bad_shards && train.shuffle && !train.whole_epoch);
  EXPECT_EQ(validation.folder, "/tmp/b");
  EXPECT_TRUE(!validation.shuffle && validation.whole_epoch);
}

}  // namespace
}  // namespace limbeck::data
