// A folder's shards and index: agreement in both directions, bare names only, no links but those of the Hugging Face
// cache.
#include <ATen/ATen.h>

#include "modules/io/safetensors.h"
#include "tests/modules/weights_files.h"

namespace limbeck::io {
namespace {

using namespace limbeck::test;
namespace fs = std::filesystem;

const std::string kFirst = "model-00001-of-00002.safetensors", kSecond = "model-00002-of-00002.safetensors";

class ShardedFolder : public testing::Test {
 protected:
  void SetUp() override {
    write_bytes(folder_ / kFirst, weights_file_of({"a", "b"}));
    write_bytes(folder_ / kSecond, weights_file_of({"c"}));
    index({{"a", kFirst}, {"b", kFirst}, {"c", kSecond}});
  }
  void index(const std::vector<std::pair<std::string, std::string>>& map, const std::string& more = "") {
    write_bytes(folder_ / "model.safetensors.index.json", index_text(map, more));
  }
  void refused(const std::vector<std::string>& parts) {
    expect_refusal<WeightsError>([&] { WeightsFolder weights(folder_.path()); }, ExitCode::kWeights, parts);
  }
  TemporaryFolder folder_;
};

TEST_F(ShardedFolder, ListsAllTensorsAndTheirFiles) {
  const WeightsFolder weights(folder_.path());
  EXPECT_EQ(weights.names(), (std::vector<std::string>{"a", "b", "c"}));
  EXPECT_EQ(weights.payload_bytes(), 24u);
  EXPECT_EQ(weights.file_of("c"), folder_ / kSecond);
  EXPECT_EQ(weights.read("b").sizes(), at::IntArrayRef({2}));
  EXPECT_TRUE(weights.notes().empty());
  EXPECT_EQ(weights.find("d"), nullptr);
}

TEST_F(ShardedFolder, MissingTensorIsNamedWithNearest) {
  write_bytes(folder_ / kSecond, weights_file_of({"layers.0.mlp.up_proj.weight"}));
  index({{"a", kFirst}, {"b", kFirst}, {"layers.0.mlp.up_proj.weight", kSecond}});
  const WeightsFolder weights(folder_.path());
  expect_refusal<WeightsError>([&] { weights.read("layers.0.mlp.upproj.weight"); }, ExitCode::kWeights,
                               {folder_.path().string(), "no tensor \"layers.0.mlp.upproj.weight\"",
                                "nearest: \"layers.0.mlp.up_proj.weight\""});
}

TEST_F(ShardedFolder, MissingShardIsRefused) {
  fs::remove(folder_ / kSecond);
  refused({kSecond, "no such file", "index.json names it"});
}

TEST_F(ShardedFolder, TensorOnlyInTheIndexIsRefused) {
  index({{"a", kFirst}, {"b", kFirst}, {"c", kSecond}, {"dd", kSecond}, {"ee", kFirst}});
  refused({"names 2 tensors that its shards do not hold: \"dd\", \"ee\""});
}

TEST_F(ShardedFolder, TensorOnlyInAShardIsRefused) {
  index({{"a", kFirst}, {"c", kSecond}});
  refused({"does not name 1 tensors that its shards hold: \"b\""});
}

TEST_F(ShardedFolder, TensorInAnotherShardThanStatedIsRefused) {
  index({{"a", kFirst}, {"b", kSecond}, {"c", kSecond}});
  refused({"tensor \"b\" should be in " + kSecond + ", but is in " + kFirst});
}

TEST_F(ShardedFolder, TensorInTwoShardsIsRefused) {
  write_bytes(folder_ / kSecond, weights_file_of({"c", "b"}));
  refused({kSecond + ": tensor \"b\" is in", kFirst});
}

TEST_F(ShardedFolder, DuplicateKeyInTheIndexIsRefused) {
  index({{"a", kFirst}, {"b", kFirst}, {"c", kSecond}, {"c", kSecond}});
  refused({"key \"c\" appears twice"});
}

TEST_F(ShardedFolder, ShardNamesMustBeBare) {
  write_bytes(folder_.path().parent_path() / "limbeck-outside.safetensors", weights_file_of({"c"}));
  for (const std::string shard : {"../limbeck-outside.safetensors", "/etc/passwd.safetensors", "sub/x.safetensors",
                                  "./x.safetensors", "..", ".", "", "..\\\\x.safetensors"}) {
    index({{"a", kFirst}, {"b", kFirst}, {"c", shard}});
    refused({"weight_map", "tensor \"c\": shard"});
  }
  fs::remove(folder_.path().parent_path() / "limbeck-outside.safetensors");
}

TEST_F(ShardedFolder, PickledShardIsRefused) {
  index({{"a", "pytorch_model-00001-of-00001.bin"}});
  refused({"pytorch_model-00001-of-00001.bin", "does not end in .safetensors"});
}

TEST_F(ShardedFolder, LinkedShardIsRefused) {
  fs::rename(folder_ / kSecond, folder_ / "real");
  fs::create_symlink("real", folder_ / kSecond);
  refused({kSecond, "is a symbolic link"});
}

TEST_F(ShardedFolder, DamagedShardIsNamed) {
  fs::resize_file(folder_ / kSecond, fs::file_size(folder_ / kSecond) - 1);
  refused({kSecond, "cut short"});
}

TEST_F(ShardedFolder, MalformedIndexIsRefused) {
  for (const std::string text :
       {"", "[]", "{}", "{\"weight_map\":[]}", "{\"weight_map\":{}}", "{\"weight_map\":{\"a\":1}}",
        "{\"weight_map\":{\"a\":\"x.safetensors\"},\"metadata\":{\"total_size\":-1}}"}) {
    write_bytes(folder_ / "model.safetensors.index.json", text);
    refused({"model.safetensors.index.json"});
  }
}

TEST_F(ShardedFolder, WrongTotalSizeIsANoteAndNoError) {
  index({{"a", kFirst}, {"b", kFirst}, {"c", kSecond}}, "\"metadata\":{\"total_size\":48},");
  const WeightsFolder weights(folder_.path());
  ASSERT_EQ(weights.notes().size(), 1u);
  EXPECT_NE(weights.notes()[0].find("total_size is 48, the shards hold 24"), std::string::npos);
  index({{"a", kFirst}, {"b", kFirst}, {"c", kSecond}}, "\"metadata\":{\"total_size\":24.0},");
  EXPECT_TRUE(WeightsFolder(folder_.path()).notes().empty());
}

TEST_F(ShardedFolder, SingleFileWinsOverTheIndex) {
  write_bytes(folder_ / "model.safetensors", weights_file_of({"z"}));
  const WeightsFolder weights(folder_.path());
  EXPECT_EQ(weights.names(), std::vector<std::string>{"z"});
  ASSERT_EQ(weights.notes().size(), 1u);
}

TEST(WeightsFolder, PickleOnlyFolderIsRefusedWithTheConverter) {
  for (const std::string name : {"pytorch_model.bin", "model.pt", "model.ckpt", "weights.pth", "weights.pkl"}) {
    const TemporaryFolder folder;
    write_bytes(folder / name, "PK\x03\x04");
    expect_refusal<WeightsError>(
        [&] { WeightsFolder weights(folder.path()); }, ExitCode::kWeights,
        {folder.path().string(), name, "only pickled weights", "tools/convert_pickle.py " + folder.path().string()});
  }
}

TEST(WeightsFolder, EmptyOrAbsentFolderIsRefused) {
  const TemporaryFolder folder;
  expect_refusal<WeightsError>([&] { WeightsFolder weights(folder.path()); }, ExitCode::kWeights,
                               {"no model.safetensors"});
  expect_refusal<WeightsError>([&] { WeightsFolder weights(folder / "no"); }, ExitCode::kWeights, {"is not a folder"});
  write_bytes(folder / "adapter_model.safetensors", weights_file_of({"a"}));
  expect_refusal<WeightsError>([&] { WeightsFolder weights(folder.path()); }, ExitCode::kWeights,
                               {"there is \"adapter_model.safetensors\""});
}

class HuggingFaceCache : public testing::Test {
 protected:
  void SetUp() override {
    write_bytes(blobs_ / blob_, weights_file_of({"w"}));
    fs::create_directories(snapshot_);
  }
  TemporaryFolder folder_;
  const std::string blob_ = std::string(60, 'a') + "0123";
  const fs::path repository_ = folder_ / "models--org--name", blobs_ = repository_ / "blobs";
  const fs::path snapshot_ = repository_ / "snapshots" / "0123abcd";
};

TEST_F(HuggingFaceCache, LinksToBlobsAreFollowed) {
  fs::create_symlink("../../blobs/" + blob_, snapshot_ / "model.safetensors");
  EXPECT_EQ(WeightsFolder(snapshot_).names(), std::vector<std::string>{"w"});
  fs::create_directory_symlink(snapshot_, folder_ / "shortcut");  // the folder itself may be reached through a link
  EXPECT_EQ(WeightsFolder(folder_ / "shortcut").names(), std::vector<std::string>{"w"});
}

TEST_F(HuggingFaceCache, OtherLinksAreRefused) {
  write_bytes(folder_ / "blobs" / blob_, weights_file_of({"w"}));
  write_bytes(blobs_ / "short", weights_file_of({"w"}));
  for (const std::string& target :
       std::vector<std::string>{"../../blobs/short", "../../../blobs/" + blob_, blobs_.string() + "/" + blob_,
                                "../../blobs/../blobs/" + blob_, "../../blobs/" + std::string(64, 'Z')}) {
    fs::remove(snapshot_ / "model.safetensors");
    fs::create_symlink(target, snapshot_ / "model.safetensors");
    expect_refusal<WeightsError>([&] { WeightsFolder weights(snapshot_); }, ExitCode::kWeights, {"is a symbolic link"});
  }
}

TEST_F(HuggingFaceCache, BlobThatIsALinkIsRefused) {
  fs::rename(blobs_ / blob_, folder_ / "real");
  fs::create_symlink(folder_ / "real", blobs_ / blob_);
  fs::create_symlink("../../blobs/" + blob_, snapshot_ / "model.safetensors");
  expect_refusal<WeightsError>([&] { WeightsFolder weights(snapshot_); }, ExitCode::kWeights, {"is a symbolic link"});
}

TEST_F(HuggingFaceCache, SameLinkOutsideASnapshotIsRefused) {
  const fs::path other = repository_ / "plain" / "folder";
  fs::create_directories(other);
  fs::create_symlink("../../blobs/" + blob_, other / "model.safetensors");
  expect_refusal<WeightsError>([&] { WeightsFolder weights(other); }, ExitCode::kWeights, {"is a symbolic link"});
}

}  // namespace
}  // namespace limbeck::io
