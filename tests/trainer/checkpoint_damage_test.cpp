// Damage on disk is found, named and never resumed from.
#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <random>

#include "modules/io/crc32c.h"
#include "tests/modules/weights_files.h"
#include "tests/support/checkpoint_cases.h"
#include "tests/trainer/message_of.h"
#include "trainer/checkpoint/saver.h"
#include "trainer/checkpoint/verify.h"

namespace limbeck::checkpoint {
namespace {

namespace fs = std::filesystem;
using test::read_bytes;
using test::request_of;
using test::save_alone;
using test::TemporaryFolder;
using test::write_bytes;

class CheckpointDamage : public testing::Test {
 protected:
  CheckpointDamage() {
    older_ = save_alone(folder_, request_of(1));
    newest_ = save_alone(folder_, request_of(2));
    for (const auto& entry : fs::directory_iterator(newest_)) files_.push_back(entry.path());
    std::sort(files_.begin(), files_.end());
  }
  // The one fault of the newest, and that the older is found instead.
  std::string only_fault() {
    std::string fault;
    size_t faults = 0;
    for (const FileState& file : verify(newest_)) {
      if (file.fault.empty()) continue;
      fault = file.fault;
      ++faults;
    }
    EXPECT_EQ(faults, 1u);
    std::vector<std::string> notes;
    EXPECT_EQ(newest_good(folder_, notes), older_);
    EXPECT_EQ(notes.size(), 1u);
    return fault;
  }
  // The tensor that the manifest has at a byte of a file, "" for its head.
  std::string tensor_at(const fs::path& file, uint64_t byte) {
    for (const FileRecord& record : read_manifest(newest_).files) {
      if (record.name != file.filename()) continue;
      for (const ChunkRecord& chunk : record.chunks) {
        if (byte >= chunk.offset && byte < chunk.offset + chunk.bytes) return chunk.name;
      }
    }
    return "";
  }

  TemporaryFolder run_;
  fs::path folder_ = run_ / "checkpoints", older_, newest_;
  std::vector<fs::path> files_;
};

TEST_F(CheckpointDamage, EverySingleFlippedBitIsFoundAndNamed) {
  ASSERT_EQ(files_.size(), 4u);
  std::mt19937_64 random(20240611);
  for (int flip = 0; flip < 200; ++flip) {
    const fs::path file = files_[static_cast<size_t>(flip) % files_.size()];
    const std::string before = read_bytes(file);
    // Every second one in the first kilobyte, where headers and small tensors are.
    const uint64_t among = flip % 8 < 4 ? std::min<uint64_t>(before.size(), 1024) : before.size();
    const uint64_t byte = random() % among;
    const std::string tensor = tensor_at(file, byte);
    std::string flipped = before;
    flipped[byte] = static_cast<char>(flipped[byte] ^ (1 << (random() % 8)));
    write_bytes(file, flipped);
    const std::string fault = only_fault();
    EXPECT_NE(fault.find(file.string()), fault.npos) << "byte " << byte << ": " << fault;
    if (!tensor.empty()) {
      EXPECT_NE(fault.find("tensor \"" + tensor + "\""), fault.npos) << "byte " << byte << ": " << fault;
    }
    write_bytes(file, before);
  }
  EXPECT_EQ(first_fault(verify(newest_)), "");
}

TEST_F(CheckpointDamage, TruncatedFileIsNamed) {
  for (const fs::path& file : files_) {
    const std::string before = read_bytes(file);
    for (const uint64_t length : {uint64_t{0}, uint64_t{7}, before.size() / 2, before.size() - 1}) {
      fs::resize_file(file, length);
      const std::string fault = only_fault();
      EXPECT_NE(fault.find(file.string()), fault.npos) << length << ": " << fault;
      write_bytes(file, before);
    }
  }
}

TEST_F(CheckpointDamage, GrownFileIsNamed) {
  for (const fs::path& file : files_) {
    const std::string before = read_bytes(file);
    write_bytes(file, before + "\n");
    const std::string fault = only_fault();
    EXPECT_NE(fault.find(file.string()), fault.npos) << fault;
    write_bytes(file, before);
  }
}

TEST_F(CheckpointDamage, MissingFileIsNamed) {
  for (const fs::path& file : files_) {
    const std::string before = read_bytes(file);
    fs::remove(file);
    const std::string fault = only_fault();
    EXPECT_NE(fault.find(file.string() + ": no such file"), fault.npos) << fault;
    write_bytes(file, before);
  }
}

TEST_F(CheckpointDamage, FileThatWasNotSavedIsNamed) {
  write_bytes(newest_ / "model-00001.safetensors", "x");
  const std::string fault = only_fault();
  EXPECT_NE(fault.find("model-00001.safetensors: is not in the manifest"), fault.npos) << fault;
}

TEST_F(CheckpointDamage, LinkInTheFilesPlaceIsRefused) {
  fs::rename(files_[1], run_ / "elsewhere");
  fs::create_symlink(run_ / "elsewhere", files_[1]);
  const std::string fault = only_fault();
  EXPECT_NE(fault.find("is a symbolic link"), fault.npos) << fault;
}

TEST_F(CheckpointDamage, StepUnderAnotherStepsNameIsRefused) {
  fs::rename(newest_, folder_ / "step-00000003");
  newest_ = folder_ / "step-00000003";
  EXPECT_NE(only_fault().find("is of step 2, its folder's name says 3"), std::string::npos);
}

// The manifest changed by someone who knows how to compute its checksum.
class CheckpointManifest : public CheckpointDamage {
 protected:
  void replace(const std::string& from, const std::string& to) {
    std::string text = read_bytes(newest_ / kManifestName);
    text.erase(text.rfind("\"crc32c\""));
    const size_t at = text.find(from);
    ASSERT_NE(at, text.npos) << from;
    text.replace(at, from.size(), to);
    write_bytes(newest_ / kManifestName,
                text + fmt::format("\"crc32c\":\"{:08x}\"}}\n", io::crc32c(text.data(), text.size())));
  }
};

TEST_F(CheckpointManifest, UnchangedButRewrittenIsAccepted) {
  replace("\"step\":2", "\"step\":2");
  EXPECT_EQ(first_fault(verify(newest_)), "");
}

TEST_F(CheckpointManifest, NewerVersionSaysSo) {
  replace("\"version\":1", "\"version\":2");
  EXPECT_NE(only_fault().find("checkpoint format 2, and this limbeck reads 1 to 1: it was saved by a newer one"),
            std::string::npos);
}

TEST_F(CheckpointManifest, OlderVersionSaysSo) {
  replace("\"version\":1", "\"version\":0");
  EXPECT_NE(only_fault().find("checkpoint format 0, and this limbeck reads 1 to 1"), std::string::npos);
}

TEST_F(CheckpointManifest, LiesAreRefused) {
  const std::vector<std::pair<std::string, std::string>> lies = {
      {"\"file\":\"model-00000.safetensors\"", "\"file\":\"../model.safetensors\""},
      {"\"file\":\"optim-00000.safetensors\"", "\"file\":\"model-00000.safetensors\""},
      {"\"shape\":[300,1000]", "\"shape\":[300,4611686018427387904]"},
      {"\"shape\":[300,1000]", "\"shape\":[300,1001]"},
      {"\"begin\":0", "\"begin\":1"},
      {"\"begin\":0", "\"begin\":-1"},
      {"\"begin\":0", "\"begin\":18446744073709551615"},
      {"\"begin\":0", "\"begin\":0.0"},
      {"\"count\":300000", "\"count\":299999"},
      {"\"offset\":", "\"offset\":9"},
      {"\"dtype\":\"F32\"", "\"dtype\":\"F31\""},
      {"\"name\":\"large\"", "\"name\":\"larger\""},
      {"\"head_bytes\":", "\"head_bytes\":1"},
      {"\"step\":2", "\"step\":2,\"step\":2"},
      {"\"step\":2", "\"step\":-2"},
      {"\"chunks\":[", "\"chunks\":[[],"},
      {"\"format\":\"limbeck-checkpoint\"", "\"format\":\"other\""}};
  const std::string honest = read_bytes(newest_ / kManifestName);
  for (const auto& [from, to] : lies) {
    replace(from, to);
    only_fault();
    const std::string message = test::message_of([&] {
      const auto saved = Checkpoint::open(newest_);
      for (const LogicalTensor& tensor : saved.tensors()) saved.read(tensor.kind, tensor.name);
    });
    EXPECT_EQ(message.substr(0, 3), "4: ") << to << ": " << message;
    EXPECT_NE(message.find(newest_.string()), message.npos) << message;
    write_bytes(newest_ / kManifestName, honest);
  }
}

TEST_F(CheckpointDamage, FallbackIsToldAndStrictRefuses) {
  fs::remove(newest_ / kStateName);
  std::vector<std::string> notes;
  EXPECT_EQ(newest_good(folder_, notes), older_);
  ASSERT_EQ(notes.size(), 1u);
  EXPECT_NE(notes[0].find("step-00000002/state.json: no such file"), std::string::npos) << notes[0];
  EXPECT_NE(notes[0].find(older_.string() + " is used instead"), std::string::npos) << notes[0];
  EXPECT_NE(test::message_of([&] { newest_good(folder_, notes, true); }).find("4: "), std::string::npos);
}

TEST_F(CheckpointDamage, AllBadIsAnErrorAndNoneIsNot) {
  fs::remove(newest_ / kManifestName);
  fs::remove(older_ / kManifestName);
  std::vector<std::string> notes;
  EXPECT_NE(test::message_of([&] { newest_good(folder_, notes); }).find("none of its 2 checkpoints is whole"),
            std::string::npos);
  EXPECT_EQ(newest_good(run_ / "nowhere", notes), std::nullopt);
}

TEST_F(CheckpointDamage, OrderIsByStepAndNotByTime) {
  fs::last_write_time(older_, fs::file_time_type::clock::now() + std::chrono::hours(48));
  fs::create_directory(folder_ / "step-2");  // not a name that a save gives
  write_bytes(folder_ / "step-00000009", "a file is no checkpoint");
  const auto listed = list_checkpoints(folder_);
  ASSERT_EQ(listed.size(), 2u);
  EXPECT_EQ(listed[0].path, newest_);
  EXPECT_EQ(listed[1].path, older_);
}

}  // namespace
}  // namespace limbeck::checkpoint
