#include "modules/text/tokenizer.h"

#include <gtest/gtest.h>

#include <chrono>
#include <fstream>
#include <random>

#include "modules/errors.h"
#include "tests/support/temporary_folder.h"

namespace limbeck::text {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

class TokenizerFile : public ::testing::Test {
 protected:
  // Llama 2's pipeline on a handful of tokens.
  static json small() {
    return json::parse(R"({
      "version": "1.0", "truncation": null, "padding": null,
      "added_tokens": [{"id": 0, "content": "<unk>", "single_word": false, "lstrip": false, "rstrip": false,
                        "normalized": false, "special": true},
                       {"id": 11, "content": "<end>", "single_word": false, "lstrip": false, "rstrip": true,
                        "normalized": false, "special": true}],
      "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "_"},
                     {"type": "Replace", "pattern": {"String": " "}, "content": "_"}]},
      "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "\\d"}, "behavior": "Isolated", "invert": false},
      "post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}},
                         {"SpecialToken": {"id": "<end>", "type_id": 0}}], "pair": [],
                         "special_tokens": {"<end>": {"id": "<end>", "ids": [11], "tokens": ["<end>"]}}},
      "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "_"}, "content": " "},
                  {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
      "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                "vocab": {"<unk>": 0, "_": 1, "a": 2, "b": 3, "ab": 4, "_ab": 5, "<0xC3>": 6, "<0xA9>": 7, "1": 8,
                          "2": 9, "abab": 10},
                "merges": ["a b", "_ ab", "ab ab"]}})");
  }

  fs::path write(const std::string& text) {
    std::ofstream(folder_ / "tokenizer.json", std::ios::binary) << text;
    return folder_.path();
  }
  Tokenizer load(const json& file) { return Tokenizer(write(file.dump())); }
  std::string refusal(const json& file) {
    try {
      load(file).encode("ab ab", SpecialTokens::kAdd, "text");
    } catch (const WeightsError& error) {
      return error.what();
    }
    return "accepted";
  }

  const test::TemporaryFolder folder_;
};

TEST_F(TokenizerFile, MergesFallsBackToBytesAndComesBack) {
  const Tokenizer tokenizer = load(small());
  // The ids and the text are what tokenizers 0.23.3 gives for this file.
  const Ids ids = tokenizer.encode("ab abab é1<end>  b", SpecialTokens::kAdd, "text");
  EXPECT_EQ(ids, (Ids{5, 5, 4, 1, 6, 7, 8, 11, 1, 3, 11}));
  EXPECT_EQ(tokenizer.decode(ids, true), "ab abab é1 b");
  EXPECT_EQ(tokenizer.encode("ab", SpecialTokens::kLeaveOut, "text"), (Ids{5}));
}

TEST_F(TokenizerFile, AStreamKeepsBackHalfACharacter) {
  const Tokenizer tokenizer = load(small());
  StreamDecoder stream(tokenizer, true);
  EXPECT_EQ(stream.push(5), "ab");
  EXPECT_EQ(stream.push(6), "");
  EXPECT_EQ(stream.push(7), "");
  EXPECT_EQ(stream.push(2), "éa");
  EXPECT_EQ(stream.push(6), "");
  EXPECT_EQ(stream.finish(), "\uFFFD");
}

TEST_F(TokenizerFile, RefusesByNameWhatItDoesNotKnow) {
  const std::pair<const char*, const char*> places[] = {{"/normalizer/normalizers/0/type", "normalizers"},
                                                        {"/pre_tokenizer/type", "pre_tokenizer"},
                                                        {"/post_processor/type", "post_processor"},
                                                        {"/decoder/decoders/2/type", "decoders"},
                                                        {"/model/type", "model"}};
  for (const auto& [place, named] : places) {
    json file = small();
    file[json::json_pointer(place)] = "Sundial";
    const std::string said = refusal(file);
    EXPECT_NE(said.find("tokenizer.json"), said.npos) << said;
    EXPECT_NE(said.find(named), said.npos) << said;
    EXPECT_NE(said.find("\"Sundial\""), said.npos) << said;
  }
}

TEST_F(TokenizerFile, RefusesFilesThatContradictThemselves) {
  const std::tuple<const char*, json, const char*> cases[] = {
      {"/model/vocab/ab", 3, "token \"b\" has id 3, wanted"},
      {"/model/merges/1", "_ zz", "\"merges\"[1] = \"_ zz\""},
      {"/model/dropout", 0.1, "\"dropout\" draws merges by chance"},
      {"/model/unk_token", "<none>", "\"<none>\" is not in \"vocab\""},
      {"/added_tokens/0/id", 4, "\"vocab\" has this token with id 0"},
      {"/added_tokens/1/id", 4, "\"vocab\" has another token with this id"},
      {"/post_processor/special_tokens/<end>/ids/0", 77, "no token has id 77"},
      {"/pre_tokenizer/pattern/Regex", "(", "regular expression \"(\""}};
  for (const auto& [place, value, wanted] : cases) {
    json file = small();
    file[json::json_pointer(place)] = value;
    const std::string said = refusal(file);
    EXPECT_NE(said.find(wanted), said.npos) << place << ": " << said;
  }
}

TEST_F(TokenizerFile, AnExpressionThatBacktracksForEverIsStopped) {
  json file = small();
  file["pre_tokenizer"]["pattern"]["Regex"] = "(?:a|a|aa)+$Z";
  const Tokenizer tokenizer = load(file);
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_THROW(tokenizer.encode(std::string(5000, 'a') + "b", SpecialTokens::kAdd, "text"), WeightsError);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(5));
}

TEST_F(TokenizerFile, SaysWhereATextIsNotUtf8) {
  const Tokenizer tokenizer = load(small());
  try {
    tokenizer.encode("ab\xC3(", SpecialTokens::kAdd, "notes.txt:4");
    FAIL() << "accepted";
  } catch (const InputDataError& error) {
    EXPECT_STREQ(error.what(), "notes.txt:4: byte 2 (0xC3) is not UTF-8: save the text as UTF-8");
  }
}

TEST_F(TokenizerFile, SaysHowToMakeAMissingFile) {
  std::ofstream(folder_ / "vocab.txt") << "[UNK]\n";
  try {
    Tokenizer tokenizer(folder_.path());
    FAIL() << "accepted";
  } catch (const WeightsError& error) {
    EXPECT_NE(std::string(error.what()).find("has vocab.txt and no tokenizer.json"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("save_pretrained"), std::string::npos) << error.what();
  }
}

// Bytes changed, cut out and doubled: each file is read or refused in one line, soon.
TEST_F(TokenizerFile, MutatedFilesAreReadOrRefused) {
  const std::string whole = small().dump();
  std::mt19937 random(20);
  int refused = 0;
  for (int round = 0; round < 400; ++round) {
    std::string text = whole;
    for (unsigned change = 0; change < 1 + random() % 3; ++change) {
      const size_t at = random() % text.size();
      const size_t length = std::min<size_t>(random() % 12, text.size() - at);
      if (round % 4 == 0) text[at] = static_cast<char>(random() % 256);
      if (round % 4 == 1) text.erase(at, length);
      if (round % 4 == 2) text.insert(at, text.substr(at, length));
      if (round % 4 == 3) text.replace(at, 1, std::to_string(random() % 100'000));
    }
    const auto begin = std::chrono::steady_clock::now();
    try {
      const Tokenizer tokenizer(write(text));
      tokenizer.decode(tokenizer.encode("ab é 12 <end> b", SpecialTokens::kAdd, "text"), false);
    } catch (const WeightsError& error) {
      ++refused;
      EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
      EXPECT_NE(std::string(error.what()).find("tokenizer.json"), std::string::npos) << error.what();
    }
    EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(1)) << text;
  }
  EXPECT_GT(refused, 200);
}

}  // namespace
}  // namespace limbeck::text
