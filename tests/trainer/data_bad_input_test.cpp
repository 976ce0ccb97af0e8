// Every row about data of the bad-input matrix: refused with exit code 3 before training, naming file, record, token.
#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <functional>
#include <random>

#include "modules/io/safetensors.h"
#include "tests/modules/weights_files.h"
#include "tests/support/token_shards.h"
#include "trainer/data/data_set_check.h"
#include "trainer/data/data_source.h"

namespace limbeck::data {
namespace {

using namespace limbeck::test;
using Json = nlohmann::ordered_json;

TokenSet good_set() {
  TokenSet set;
  set.end_of_sequence = 2;
  set.shards = {{{{5, 6, 2}}, {{7, 8, 9, 2}}}, {{{10, 11, 2}}}, {{{12, 13, 14, 2}}, {{15, 16, 17, 18, 2}}}};
  return set;
}

DataRequest request_of(const TemporaryFolder& folder) {
  DataRequest request;
  request.folder = folder.path();
  request.origin = "data.train (my.ini:12)";
  request.batch_size = 1;
  request.sequence_length = 4;
  request.shuffle = false;
  return request;
}

void expect_bad_data(const DataRequest& request, std::vector<std::string> parts) {
  parts.push_back("data.train (my.ini:12): ");
  expect_refusal<InputDataError>([&] { DataSource source(request); }, ExitCode::kInputData, parts);
}

void expect_bad_set(const TokenSet& set, const std::vector<std::string>& parts) {
  const TemporaryFolder folder;
  write_token_set(folder.path(), set);
  DataRequest request = request_of(folder);
  // Two tokenizers and classes are refused for packed rows before a shard is opened.
  if (set.teacher_vocabulary > 0 || set.classes > 0) request.packing = Packing::kPadded;
  expect_bad_data(request, parts);
}

void expect_bad_manifest(const std::function<void(Json&)>& change, const std::vector<std::string>& parts) {
  const TemporaryFolder folder;
  Json manifest = write_token_set(folder.path(), good_set());
  change(manifest);
  write_manifest(folder.path(), manifest);
  expect_bad_data(request_of(folder), parts);
}

// A shard changed behind its checksum, then listed with the checksum it has now: what only the content gives away.
void relist(const std::filesystem::path& folder, Json manifest, size_t shard) {
  const auto path = folder / manifest["shards"][shard]["file"].get<std::string>();
  manifest["shards"][shard]["bytes"] = std::filesystem::file_size(path);
  manifest["shards"][shard]["crc32c"] = fmt::format("{:08x}", crc_of_file(path));
  write_manifest(folder, manifest);
}

TEST(BadData, TheGoodSetIsGood) {
  const TemporaryFolder folder;
  write_token_set(folder.path(), good_set());
  const DataSource source(request_of(folder));
  EXPECT_EQ(source.samples(), 5);
  EXPECT_TRUE(source.notes().empty()) << source.notes()[0];
}

TEST(BadData, MissingManifest) {
  const TemporaryFolder folder;
  expect_bad_data(request_of(folder), {"manifest.json: no such file", "tools/prepare_data.py"});
  write_token_set(folder / "train", good_set());
  expect_bad_data(request_of(folder), {"did you mean " + (folder / "train").string() + "?"});
}

TEST(BadData, ManifestThatIsNone) {
  const TemporaryFolder folder;
  for (const char* text : {"", "{", "[1, 2]", "\xff\xfe", "{\"format\": \"limbeck-tokens\"}"}) {
    write_bytes(folder / "manifest.json", text);
    expect_bad_data(request_of(folder), {"manifest.json"});
  }
}

TEST(BadData, OtherFormatVersion) {
  expect_bad_manifest([](Json& m) { m["version"] = 3; },
                      {"manifest.json: format version 3, wanted 2", "newer limbeck"});
  expect_bad_manifest([](Json& m) { m["version"] = 1; }, {"format version 1, wanted 2", "prepare the data again"});
  expect_bad_manifest([](Json& m) { m["format"] = "arrow"; }, {"format \"arrow\", wanted \"limbeck-tokens\""});
}

TEST(BadData, ManifestChangedByHand) {
  const TemporaryFolder folder;
  write_token_set(folder.path(), good_set());
  const std::string text = read_bytes(folder / "manifest.json");
  std::string changed = text;
  changed.replace(changed.find("\"vocabulary\": 100"), 17, "\"vocabulary\": 101");
  write_bytes(folder / "manifest.json", changed);
  expect_bad_data(request_of(folder), {"manifest.json: its crc32c is", "prepare the data again"});
  write_bytes(folder / "manifest.json", text + "\n");
  expect_bad_data(request_of(folder), {"does not end with its crc32c"});
}

TEST(BadData, ManifestValuesOutOfRange) {
  expect_bad_manifest([](Json& m) { m["tokenizer"]["vocabulary"] = -1; }, {"\"vocabulary\" = -1"});
  expect_bad_manifest([](Json& m) { m["tokenizer"]["end_of_sequence"] = 100; }, {"\"end_of_sequence\" = 100"});
  expect_bad_manifest([](Json& m) { m.erase("tokens"); }, {"\"tokens\" is missing"});
  expect_bad_manifest([](Json& m) { m["tokens"] = 20; }, {"20 tokens, but its shards have 5 and 19"});
  expect_bad_manifest([](Json& m) { m.erase("shards"); }, {"\"shards\" is no list"});
  expect_bad_manifest([](Json& m) { m["shards"][1] = 7; }, {"shard 1: is no object"});
  expect_bad_manifest([](Json& m) { m["shards"][1]["crc32c"] = "12"; }, {"\"crc32c\" = \"12\""});
  expect_bad_manifest([](Json& m) { m["shards"][1]["file"] = "shard-00000.safetensors"; }, {"is listed twice"});
  for (const char* name :
       {"../shard-00000.safetensors", "/etc/passwd", "a/b.safetensors", ".safetensors", "", "x.bin"}) {
    expect_bad_manifest([&](Json& m) { m["shards"][1]["file"] = name; }, {"shard 1", "a bare name"});
  }
}

TEST(BadData, EmptySet) {
  expect_bad_set(TokenSet{}, {"holds no tokens"});
  TokenSet empty_documents;
  empty_documents.shards = {{{{}}, {{}}}};
  expect_bad_set(empty_documents, {"holds no tokens"});
}

TEST(BadData, FewerSamplesThanABatch) {
  const TemporaryFolder folder;
  write_token_set(folder.path(), good_set());
  DataRequest request = request_of(folder);
  request.batch_size = 6;
  expect_bad_data(request, {"5 samples of 4 tokens, wanted at least data.batch_size = 6", "lower data.batch_size"});
}

TEST(BadData, OneTokenHasNothingToPredict) {
  TokenSet set;
  set.shards = {{{{1}}}};
  expect_bad_set(set, {"no sample in 1 documents"});
}

TEST(BadData, NoTargetAtAll) {
  TokenSet set;
  set.shards = {{{.ids = {1, 2, 3, 4}, .mask = {0, 0, 0, 0}}}};
  expect_bad_set(set, {"none of its 4 tokens is a target", "assistant"});
}

TEST(BadData, DocumentsWithoutTargetsOrEndAreCounted) {
  const TemporaryFolder folder;
  TokenSet set = good_set();
  set.shards[0].push_back({.ids = {1, 1, 1, 1}, .mask = {0, 0, 0, 0}});
  write_token_set(folder.path(), set);
  const DataSource source(request_of(folder));
  EXPECT_EQ(source.notes(), (std::vector<std::string>{"1 of 6 documents have no target",
                                                      "1 of 6 documents do not end with the end-of-sequence token 2"}));
  EXPECT_EQ(target_count(source.batch(0).student), 2);
}

TEST(BadData, IdsOutsideTheTokenizersVocabulary) {
  TokenSet set = good_set();
  set.shards[2][1].ids[3] = 100;
  expect_bad_set(set, {"shard-00002.safetensors: record 1, token 3: id 100, wanted 0 to 99"});
  set.shards[2][1].ids[3] = -1;
  expect_bad_set(set, {"shard-00002.safetensors: record 1, token 3: id -1, wanted 0 to 99"});
}

TEST(BadData, IdsOutsideTheModelsVocabulary) {
  const TemporaryFolder folder;
  write_token_set(folder.path(), good_set());
  DataRequest request = request_of(folder);
  request.student_vocabulary = 19;
  EXPECT_EQ(DataSource(request).samples(), 5);
  request.student_vocabulary = 14;
  request.skip_bad_shards = true;  // this is no damage, and is not skipped
  expect_bad_data(request, {"shard-00002.safetensors: record 0, token 2: id 14, wanted 0 to 13, the vocabulary of the "
                            "student",
                            "student's tokenizer"});
  request.student_vocabulary = 0;
  request.teacher_vocabulary = 17;
  expect_bad_data(request, {"record 1, token 2: id 17", "the vocabulary of the teacher"});
}

TEST(BadData, IdsOfTheSecondTokenizer) {
  TokenSet set;
  set.teacher_vocabulary = 30;
  set.shards = {{{.ids = {1, 2}, .teacher_ids = {28, 30}, .position = {0, 1}}}};
  expect_bad_set(set, {"record 0, teacher's token 1: id 30, wanted 0 to 29"});
  set.shards[0][0].teacher_ids[1] = 29;
  set.shards[0][0].position = {0, 2};
  expect_bad_set(set, {"record 0, token 1: teacher's position 2, wanted 0 to 1, ascending"});
  set.shards[0][0].position = {1, 0};
  expect_bad_set(set, {"token 1: teacher's position 0, wanted 1 to 1, ascending"});
}

TEST(BadData, ClassesOutsideTheirRange) {
  TokenSet set;
  set.classes = 2;
  set.shards = {{{.ids = {1, 2}, .label = 0}, {.ids = {1, 2}, .label = 2}}};
  expect_bad_set(set, {"record 1: class 2, wanted 0 to 1, or -100"});
}

TEST(BadData, DamagedShards) {
  const std::vector<std::pair<std::function<void(std::string&)>, std::string>> damages = {
      {[](std::string& b) { b.resize(b.size() - 1); }, "bytes, wanted"},
      {[](std::string& b) { b.clear(); }, "0 bytes, wanted"},
      {[](std::string& b) { b += '\0'; }, "bytes, wanted"},
      {[](std::string& b) { b.back() = static_cast<char>(b.back() ^ 1); }, "its CRC-32C is"},
      {[](std::string& b) { b[20] = static_cast<char>(b[20] ^ 0x40); }, "its CRC-32C is"},
  };
  for (const auto& [damage, fault] : damages) {
    const TemporaryFolder folder;
    write_token_set(folder.path(), good_set());
    std::string bytes = read_bytes(folder / "shard-00001.safetensors");
    damage(bytes);
    write_bytes(folder / "shard-00001.safetensors", bytes);
    expect_bad_data(request_of(folder), {"shard-00001.safetensors: ", fault, "data.skip_bad_shards = true"});
  }
}

TEST(BadData, EveryFlippedBitOfAShardIsFound) {
  const TemporaryFolder folder;
  TokenSet set;
  set.shards = {{{{1, 2, 3}}}};
  write_token_set(folder.path(), set);
  const std::string bytes = read_bytes(folder / "shard-00000.safetensors");
  for (size_t bit = 0; bit < bytes.size() * 8; bit += 7) {
    std::string damaged = bytes;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << (bit % 8)));
    write_bytes(folder / "shard-00000.safetensors", damaged);
    EXPECT_NE(check_data_set(folder.path()).shards[0].fault.find("its CRC-32C is"), std::string::npos) << bit;
  }
}

TEST(BadData, MissingShardAndLinksAndFolders) {
  const TemporaryFolder folder;
  write_token_set(folder.path(), good_set());
  const auto path = folder / "shard-00001.safetensors";
  std::filesystem::rename(path, folder / "elsewhere");
  expect_bad_data(request_of(folder), {"shard-00001.safetensors: no such file"});
  std::filesystem::create_symlink(folder / "elsewhere", path);
  expect_bad_data(request_of(folder), {"shard-00001.safetensors: is a symbolic link"});
  std::filesystem::remove(path);
  std::filesystem::create_directory(path);
  expect_bad_data(request_of(folder), {"shard-00001.safetensors: is a folder"});
}

TEST(BadData, ShardsWhoseContentIsWrongBehindARightChecksum) {
  const TemporaryFolder folder;
  const Json manifest = write_token_set(folder.path(), good_set());
  const auto path = folder / "shard-00001.safetensors";
  const auto ids = at::tensor({10, 11, 2}, at::kInt), mask = at::ones({3}, at::kByte);
  const auto offsets = at::tensor({0, 3}, at::kLong);
  const std::vector<std::pair<io::NamedTensors, std::string>> cases = {
      {{{"target_mask", mask}, {"document_offsets", offsets}}, "tensor input_ids is missing, wanted I32 [N]"},
      {{{"input_ids", ids.to(at::kLong)}, {"document_offsets", offsets}}, "tensor input_ids is I64 [3], wanted I32"},
      {{{"input_ids", ids.view({1, 3})}, {"document_offsets", offsets}}, "tensor input_ids is I32 [1,3]"},
      {{{"input_ids", ids}, {"target_mask", at::ones({2}, at::kByte)}, {"document_offsets", offsets}}, "wanted U8 [3]"},
      {{{"input_ids", ids}, {"target_mask", mask * 2}, {"document_offsets", offsets}}, "token 0: target mask 2"},
      {{{"input_ids", ids}}, "tensor document_offsets is missing"},
      {{{"input_ids", ids}, {"document_offsets", at::tensor({0, 2}, at::kLong)}}, "up to the 3 tokens"},
      {{{"input_ids", ids}, {"document_offsets", at::tensor({1, 3}, at::kLong)}}, "document_offsets: wanted 0"},
      {{{"input_ids", ids}, {"document_offsets", at::tensor({0, 4, 2, 3}, at::kLong)}}, "ascending"},
      {{{"input_ids", ids}, {"document_offsets", at::empty({0}, at::kLong)}}, "document_offsets: wanted 0"},
      {{{"input_ids", ids}, {"document_offsets", at::tensor({0, 1, 3}, at::kLong)}}, "2 documents, wanted 1"},
      {{{"input_ids", ids}, {"target_mask", mask * 0}, {"document_offsets", offsets}}, "0 targets, wanted 3"},
  };
  for (const auto& [tensors, fault] : cases) {
    io::write_safetensors(path, tensors);
    relist(folder.path(), manifest, 1);
    expect_bad_data(request_of(folder), {"shard-00001.safetensors: ", fault});
  }
  write_bytes(path, "no header at all");
  relist(folder.path(), manifest, 1);
  expect_bad_data(request_of(folder), {"shard-00001.safetensors"});
}

// What a hostile or half-written file can hold once its checksum is right: an Error or a usable set, never a crash.
TEST(BadData, NoChangedByteBehindARightChecksumDoesHarm) {
  const TemporaryFolder folder;
  TokenSet set = good_set();
  set.teacher_vocabulary = 40;
  for (auto& shard : set.shards) {
    for (TokenDocument& document : shard) {
      document.teacher_ids = document.ids;
      for (int32_t i = 0; i < static_cast<int32_t>(document.ids.size()); ++i) document.position.push_back(i);
    }
  }
  const Json manifest = write_token_set(folder.path(), set);
  const std::string bytes = read_bytes(folder / "shard-00000.safetensors");
  DataRequest request = request_of(folder);
  request.packing = Packing::kPadded;
  std::mt19937 random(5);
  int accepted = 0, refused = 0;
  for (int i = 0; i < 2000; ++i) {
    std::string changed = bytes;
    for (int k = 0; k < 1 + i % 3; ++k) changed[random() % changed.size()] = static_cast<char>(random());
    write_bytes(folder / "shard-00000.safetensors", changed);
    relist(folder.path(), manifest, 0);
    try {
      const DataSource source(request);
      for (int64_t batch = 0; batch < source.batches_per_epoch(); ++batch) source.batch(batch);
      ++accepted;
    } catch (const InputDataError&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 1000);
  EXPECT_GT(accepted, 10);  // an id became another id
}

TEST(BadData, NoChangedByteOfAManifestDoesHarm) {
  const TemporaryFolder folder;
  write_token_set(folder.path(), good_set());
  const std::string whole = read_bytes(folder / "manifest.json");
  const std::string body = whole.substr(0, whole.rfind("  \"crc32c\""));
  const std::string letters = "0123456789-.e\"{}[],:truefalsn\\/ \x80";
  std::mt19937 random(6);
  int refused = 0;
  for (int i = 0; i < 2000; ++i) {
    std::string changed = body;
    changed[random() % changed.size()] = letters[random() % letters.size()];
    write_bytes(folder / "manifest.json",
                changed + fmt::format("  \"crc32c\": \"{:08x}\"\n}}\n", crc_of_text(changed)));
    try {
      DataSource(request_of(folder)).batch(0);
    } catch (const InputDataError&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 1000);
}

TEST(SkipBadShards, GoesOnWithTheOthersInADeterministicOrder) {
  const TemporaryFolder folder;
  write_token_set(folder.path(), good_set());
  DataRequest request = request_of(folder);
  const std::string whole = DataSource(request).manifest().digest;
  write_bytes(folder / "shard-00001.safetensors", "");
  request.skip_bad_shards = true;
  request.shuffle = true;
  const DataSource source(request), again(request);
  ASSERT_EQ(source.notes().size(), 1u);
  EXPECT_NE(source.notes()[0].find("skipped (data.skip_bad_shards): "), std::string::npos);
  EXPECT_NE(source.notes()[0].find("shard-00001.safetensors: 0 bytes, wanted"), std::string::npos);
  EXPECT_EQ(source.samples(), 4);
  for (int64_t i = 0; i < 8; ++i) EXPECT_TRUE(source.batch(i).student.ids.equal(again.batch(i).student.ids));
  EXPECT_NE(source.manifest().digest, whole);  // a resume of the whole set would be refused
  EXPECT_EQ(source.manifest().digest, again.manifest().digest);
}

TEST(SkipBadShards, NeedsOneThatIsGood) {
  const TemporaryFolder folder;
  write_token_set(folder.path(), good_set());
  for (const char* name : {"shard-00000.safetensors", "shard-00001.safetensors", "shard-00002.safetensors"}) {
    write_bytes(folder / name, "");
  }
  DataRequest request = request_of(folder);
  request.skip_bad_shards = true;
  expect_bad_data(request, {"all 3 shards are bad, the first: ", "shard-00000.safetensors"});
}

TEST(ShardListDigest, ChangesWithTheShards) {
  const TemporaryFolder folder;
  write_token_set(folder.path(), good_set());
  const std::string first = DataSource(request_of(folder)).manifest().digest;
  EXPECT_EQ(first.rfind("3-19-", 0), 0u) << first;
  EXPECT_EQ(DataSource(request_of(folder)).manifest().digest, first);
  TokenSet other = good_set();
  other.shards[0][0].ids[0] = 20;
  write_token_set(folder.path(), other);
  EXPECT_NE(DataSource(request_of(folder)).manifest().digest, first);
}

}  // namespace
}  // namespace limbeck::data
