// What was saved, in whatever pieces and by however many ranks, is what is read, by however many.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <fstream>

#include "modules/io/safetensors.h"
#include "tests/modules/weights_files.h"
#include "tests/support/checkpoint_cases.h"
#include "tests/support/thread_ranks.h"
#include "tests/trainer/message_of.h"
#include "trainer/checkpoint/manifest.h"
#include "trainer/checkpoint/saver.h"
#include "trainer/checkpoint/verify.h"

namespace limbeck::checkpoint {
namespace {

namespace fs = std::filesystem;
using test::expect_holds;
using test::part_of;
using test::request_of;
using test::run_ranks;
using test::same_bits;
using test::save_alone;
using test::TemporaryFolder;

const std::vector<std::string> kNothingThrown(3);

fs::path save_by_three(const fs::path& folder, const SaveRequest& whole) {
  EXPECT_EQ(run_ranks(3,
                      [&](parallel::Communicator& ranks) {
                        Saver saver(folder, ranks);
                        saver.save(part_of(whole, ranks.rank(), 3));
                      }),
            kNothingThrown);
  return folder / step_name(kStepPrefix, whole.step);
}

TEST(Checkpoint, EveryDtypeScalarAndEmptyTensorComesBackBitForBit) {
  const TemporaryFolder run;
  const SaveRequest request = request_of(12);
  const fs::path path = save_alone(run / "checkpoints", request);
  EXPECT_EQ(path, run / "checkpoints" / "step-00000012");
  expect_holds(path, request);
  EXPECT_EQ(first_fault(verify(path)), "");
}

TEST(Checkpoint, StateKeepsUnsignedIntegersWhole) {
  const TemporaryFolder run;
  const auto saved = Checkpoint::open(save_alone(run / "checkpoints", request_of(1)));
  EXPECT_EQ(saved.state().at("cursor").get<uint64_t>(), 18446744073709551615u);
}

TEST(Checkpoint, AManifestReadBackHasTheSameText) {
  Manifest manifest{"run \"1\"", "digest", 7, {{kStateName, 9, 9, 0x1234, {}}}};
  FileRecord file{weights_file_name(Kind::kModel, 0), 8, 8, 0xffffffff, {}};
  for (const char* name : {"plain", "a \"quoted\" \\ name",
                           "gr\xc3\xb6\xc3\x9f"
                           "er"}) {
    file.chunks.push_back({name, {2, 3}, io::StoredType::kF32, 1, 5, file.bytes, 20, {0xdeadbeef}});
    file.bytes += 20;
  }
  file.chunks.push_back({"empty", {0}, io::StoredType::kBF16, 0, 0, file.bytes, 0, {}});
  file.chunks.push_back({"scalar", {}, io::StoredType::kF64, 0, 1, file.bytes, 8, {1}});
  file.bytes += 8;
  manifest.files.push_back(file);
  const Manifest found = parse_manifest(manifest.text(), "here");
  EXPECT_EQ(found.text(), manifest.text());
  ASSERT_EQ(found.files.size(), 2u);
  ASSERT_EQ(found.files[1].chunks.size(), file.chunks.size());
  for (size_t i = 0; i < file.chunks.size(); ++i) {
    EXPECT_EQ(found.files[1].chunks[i].name, file.chunks[i].name);
    EXPECT_EQ(found.files[1].chunks[i].shape, file.chunks[i].shape);
    EXPECT_EQ(found.files[1].chunks[i].crc, file.chunks[i].crc);
  }
}

TEST(Checkpoint, WholeTensorsOpenWithAnySafetensorsTool) {
  const TemporaryFolder run;
  const SaveRequest request = request_of(3);
  const fs::path path = save_alone(run / "checkpoints", request);
  const io::SafetensorsFile file(path / "model-00000.safetensors");
  for (const Piece& piece : request.model) {
    const io::TensorEntry* entry = file.find(piece.name);
    ASSERT_NE(entry, nullptr) << piece.name;
    EXPECT_EQ(entry->shape, piece.shape);
    EXPECT_TRUE(same_bits(file.read(*entry), piece.data)) << piece.name;
  }
}

TEST(Checkpoint, PartsAreOneDimensionalUnderTheirName) {
  const TemporaryFolder run;
  const fs::path path = save_by_three(run / "checkpoints", request_of(3));
  const io::SafetensorsFile file(path / "model-00001.safetensors");
  EXPECT_EQ(file.find("large")->shape, std::vector<int64_t>{100'000});
}

TEST(Checkpoint, SavedByThreeRanksIsReadByOneTwoAndFour) {
  const TemporaryFolder run;
  const SaveRequest request = request_of(40);
  const fs::path path = save_by_three(run / "checkpoints", request);
  EXPECT_EQ(first_fault(verify(path)), "");
  expect_holds(path, request);
  const auto saved = Checkpoint::open(path);
  EXPECT_EQ(saved.find(Kind::kModel, "large").parts.size(), 3u);
  for (const int readers : {1, 2, 4}) {
    for (const Piece& piece : request.model) {
      const at::Tensor flat = piece.data.reshape({-1});
      for (int reader = 0; reader < readers; ++reader) {
        const int64_t begin = flat.numel() * reader / readers, end = flat.numel() * (reader + 1) / readers;
        at::Tensor got = at::empty({end - begin}, flat.options());
        saved.read(Kind::kModel, piece.name, begin, got);
        EXPECT_TRUE(same_bits(got, flat.narrow(0, begin, end - begin))) << piece.name << " by " << readers;
      }
    }
  }
}

TEST(Checkpoint, ReadOfAPartVerifiesTheBlocksItTouchesAndOnlyThose) {
  const TemporaryFolder run;
  const fs::path path = save_alone(run / "checkpoints", request_of(5));
  const auto saved = Checkpoint::open(path);
  const LogicalTensor& large = saved.find(Kind::kModel, "large");
  const ChunkRecord& chunk = saved.manifest().files[large.parts[0].file].chunks[large.parts[0].chunk];
  std::string bytes = test::read_bytes(path / "model-00000.safetensors");
  bytes[chunk.offset + kBlockBytes + 5] ^= 1;
  test::write_bytes(path / "model-00000.safetensors", bytes);
  at::Tensor one = at::empty({1}, at::kFloat);
  saved.read(Kind::kModel, "large", 0, one);  // in the first block
  const std::string message =
      test::message_of([&] { saved.read(Kind::kModel, "large", static_cast<int64_t>(kBlockBytes) / 4 + 900, one); });
  EXPECT_NE(message.find("4: "), message.npos) << message;
  EXPECT_NE(message.find("model-00000.safetensors: tensor \"large\""), message.npos) << message;
}

TEST(Checkpoint, ReadRefusesAnotherDtypeNameOrRange) {
  const TemporaryFolder run;
  const auto saved = Checkpoint::open(save_alone(run / "checkpoints", request_of(5)));
  at::Tensor wrong = at::empty({3, 5}, at::kFloat), right = at::empty({3, 5}, at::kHalf);
  EXPECT_NE(
      test::message_of([&] { saved.read(Kind::kModel, "half", 0, wrong); }).find("was saved as F16, wanted Float"),
      std::string::npos);
  EXPECT_NE(
      test::message_of([&] { saved.read(Kind::kModel, "half", 1, right); }).find("has 15 elements, wanted 15 from 1"),
      std::string::npos);
  EXPECT_NE(test::message_of([&] { saved.read(Kind::kModel, "hal", 0, right); }).find("the nearest is \"half\""),
            std::string::npos);
}

struct BadRequest {
  const char* name;
  void (*spoil)(SaveRequest& request, int rank);
  const char* message;
};

class CheckpointRefusal : public testing::TestWithParam<BadRequest> {};

TEST_P(CheckpointRefusal, IsTheSameOnEveryRankAndLeavesNothing) {
  const TemporaryFolder run;
  const fs::path folder = run / "checkpoints";
  const auto thrown = run_ranks(3, [&](parallel::Communicator& ranks) {
    Saver saver(folder, ranks);
    SaveRequest mine = part_of(request_of(9), ranks.rank(), 3);
    GetParam().spoil(mine, ranks.rank());
    saver.save(mine);
  });
  EXPECT_NE(thrown[0].find(GetParam().message), std::string::npos) << thrown[0];
  EXPECT_EQ(thrown[1], thrown[0]);
  EXPECT_EQ(thrown[2], thrown[0]);
  EXPECT_TRUE(fs::is_empty(folder));
}

INSTANTIATE_TEST_SUITE_P(
    Requests, CheckpointRefusal,
    testing::Values(BadRequest{"Hole",
                               [](SaveRequest& r, int rank) {
                                 if (rank == 1)
                                   r.model[1].begin += 4, r.model[1].data = r.model[1].data.narrow(0, 4, 8);
                               },
                               "are in no file"},
                    BadRequest{"Overlap",
                               [](SaveRequest& r, int rank) {
                                 if (rank == 1) r.model[1].begin -= 4;
                               },
                               "as well"},
                    BadRequest{"Missing",
                               [](SaveRequest& r, int rank) {
                                 if (rank == 2) r.model.erase(r.model.begin() + 1);
                               },
                               "tensor \"large\": elements 150000 to 300000 are in no file"},
                    BadRequest{"TwoShapes",
                               [](SaveRequest& r, int rank) {
                                 if (rank == 2) r.model[1].shape = {1000, 300};
                               },
                               "is a part of F32 [1000,300], and model-00000.safetensors has one of F32 [300,1000]"},
                    BadRequest{"TwoSteps",
                               [](SaveRequest& r, int rank) {
                                 if (rank == 2) r.step = 8;
                               },
                               "rank 2 saves"},
                    BadRequest{"BadName", [](SaveRequest& r, int) { r.run_id = "../x"; }, "run id or prefix \"../x\""},
                    BadRequest{"Strided",
                               [](SaveRequest& r, int rank) {
                                 if (rank == 2) r.model[1].data = at::zeros({4, 4}).t();
                               },
                               "rank 2 of 3: checkpoint: tensor \"large\""}),
    [](const auto& instance) { return std::string(instance.param.name); });

TEST(Checkpoint, StepThatIsThereIsNeverOverwritten) {
  const TemporaryFolder run;
  const fs::path folder = run / "checkpoints", path = save_alone(folder, request_of(7));
  const std::string before = test::read_bytes(path / kManifestName);
  SaveRequest other = request_of(8);
  other.step = 7;
  const std::string message = test::message_of([&] { save_alone(folder, other); });
  EXPECT_NE(message.find("step-00000007: is there already"), message.npos) << message;
  EXPECT_EQ(test::read_bytes(path / kManifestName), before);
  EXPECT_EQ(first_fault(verify(path)), "");
}

TEST(Checkpoint, DamagedStepIsReplacedByASaveOfTheSameStep) {
  const TemporaryFolder run;
  const fs::path folder = run / "checkpoints", path = save_alone(folder, request_of(7));
  fs::resize_file(path / "model-00000.safetensors", 100);
  save_alone(folder, request_of(7));
  expect_holds(path, request_of(7));
}

TEST(Checkpoint, DivergedStepIsSavedAsideAndNeverTheLatest) {
  const TemporaryFolder run;
  const fs::path folder = run / "checkpoints", good = save_alone(folder, request_of(1), 1);
  SaveRequest diverged = request_of(2);
  diverged.prefix = kDivergedPrefix;
  const fs::path aside = save_alone(folder, diverged, 1);
  EXPECT_EQ(aside.filename(), "diverged-00000002");
  EXPECT_EQ(first_fault(verify(aside)), "");
  EXPECT_EQ(test::read_bytes(folder / "latest"), "step-00000001\n");
  ASSERT_EQ(list_checkpoints(folder).size(), 1u);
  std::vector<std::string> notes;
  EXPECT_EQ(newest_good(folder, notes), good);
}

TEST(Checkpoint, ReportTellsWhatWasWritten) {
  const TemporaryFolder run;
  const auto solo = parallel::make_solo();
  Saver saver(run / "checkpoints", *solo);
  const SaveReport report = saver.save(request_of(1));
  uint64_t bytes = 0;
  for (const auto& entry : fs::directory_iterator(report.path)) bytes += entry.file_size();
  EXPECT_EQ(report.bytes, bytes);
  EXPECT_GT(report.write_seconds, 0);
  EXPECT_GT(report.commit_seconds, 0);
  EXPECT_TRUE(report.warnings.empty());
}

}  // namespace
}  // namespace limbeck::checkpoint
