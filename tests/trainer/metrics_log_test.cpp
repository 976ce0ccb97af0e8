// What a run measured is there after a kill, reads as one run after a resume, and is refused when it would lie.
#include "trainer/metrics/metrics_log.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "tests/modules/weights_files.h"
#include "tests/trainer/message_of.h"

namespace limbeck::metrics {
namespace {

namespace fs = std::filesystem;
using limbeck::test::message_of;
using limbeck::test::read_bytes;
using limbeck::test::TemporaryFolder;
using limbeck::test::write_bytes;
using nlohmann::json;

std::vector<json> lines_of(const fs::path& run) {
  std::ifstream file(run / "metrics.jsonl");
  std::vector<json> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(json::parse(line));
  return lines;
}

std::vector<int64_t> steps_of(const fs::path& run) {
  std::vector<int64_t> steps;
  for (const json& line : lines_of(run)) steps.push_back(line.at("step").get<int64_t>());
  return steps;
}

void write_steps(MetricsLog& log, int64_t from, int64_t to) {
  for (int64_t step = from; step <= to; ++step) log.write(step, {{"loss", 1.0 / static_cast<double>(step)}}, "train");
}

std::vector<fs::path> event_files(const fs::path& run) {
  std::vector<fs::path> found;
  for (const auto& entry : fs::directory_iterator(run)) {
    if (entry.path().filename().string().find("tfevents") != std::string::npos) found.push_back(entry.path());
  }
  return found;
}

TEST(MetricsLog, WritesEveryValueToTheLastBitInTheOrderGiven) {
  const TemporaryFolder folder;
  const fs::path run = folder / "runs" / "first";
  MetricsLog log(run);
  log.write(1, {{"loss", 0.1 + 0.2}, {"kd", 1e-300}, {"tokens", 1048576}, {"lr", 3e-4}}, "train");
  const std::string text = read_bytes(run / "metrics.jsonl");
  EXPECT_EQ(text,
            "{\"step\":1,\"phase\":\"train\",\"loss\":0.30000000000000004,\"kd\":1e-300,\"tokens\":1048576,"
            "\"lr\":0.0003}\n");
  EXPECT_EQ(json::parse(text).at("loss").get<double>(), 0.1 + 0.2);
}

TEST(MetricsLog, WritesWhatIsNotFiniteAsNull) {
  const TemporaryFolder folder;
  MetricsLog log(folder.path());
  const double infinity = std::numeric_limits<double>::infinity();
  log.write(3, {{"loss", std::nan("")}, {"grad_norm", infinity}, {"eval.kl", -infinity}, {"kd", 2}}, "train");
  const json line = lines_of(folder.path()).at(0);
  for (const char* name : {"loss", "grad_norm", "eval.kl"}) EXPECT_TRUE(line.at(name).is_null()) << name;
  EXPECT_EQ(line.at("kd"), 2);
}

TEST(MetricsLog, IsCompleteWhenTheProcessIsKilledAfterWrite) {
  const TemporaryFolder folder;
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    MetricsLog log(folder.path());
    write_steps(log, 1, 20);
    ::kill(::getpid(), SIGKILL);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(steps_of(folder.path()).size(), 20u);
}

TEST(MetricsLog, StartsEmptyForARunFromItsBeginning) {
  const TemporaryFolder folder;
  {
    MetricsLog log(folder.path());
    log.write(0, {{"eval.loss", 9}}, "eval");
    write_steps(log, 1, 3);
  }
  MetricsLog again(folder.path());
  EXPECT_EQ(again.dropped(), 4);
  write_steps(again, 1, 2);
  EXPECT_EQ(steps_of(folder.path()), (std::vector<int64_t>{1, 2}));
}

TEST(MetricsLog, ResumedReadsAsIfNeverInterrupted) {
  const TemporaryFolder once, twice;
  {
    MetricsLog log(once.path());
    write_steps(log, 1, 9);
  }
  {
    MetricsLog log(twice.path());
    write_steps(log, 1, 7);
  }
  // What a kill in the middle of a write leaves behind.
  write_bytes(twice / "metrics.jsonl", read_bytes(twice / "metrics.jsonl") + "{\"step\":2,\"pha");
  MetricsLog resumed(twice.path(), 5);
  EXPECT_EQ(resumed.dropped(), 3);  // steps 6 and 7, and the half line
  write_steps(resumed, 6, 9);
  EXPECT_EQ(read_bytes(twice / "metrics.jsonl"), read_bytes(once / "metrics.jsonl"));
}

TEST(MetricsLog, DropsALineThatDoesNotReadAndKeepsTheOthers) {
  const TemporaryFolder folder;
  write_bytes(folder / "metrics.jsonl",
              "{\"step\":1}\n{\"st\x80p\":2}\n[3]\n{\"step\":\"4\"}\n{\"step\":5}\n{\"step\":6}\n");
  const MetricsLog resumed(folder.path(), 5);
  EXPECT_EQ(resumed.dropped(), 4);
  EXPECT_EQ(steps_of(folder.path()), (std::vector<int64_t>{1, 5}));
}

TEST(MetricsLog, RefusesOneNameTwice) {
  const TemporaryFolder folder;
  MetricsLog log(folder.path());
  const std::string message = message_of([&] { log.write(4, {{"kd", 1}, {"loss", 2}, {"kd", 3}}, "train"); });
  EXPECT_EQ(message, "2: metrics of step 4: 'kd' came twice, wanted one value a name: rename the term");
  EXPECT_NE(message_of([&] { log.write(4, {{"step", 1}}, "train"); }).find("'step' came twice"), std::string::npos);
  EXPECT_TRUE(lines_of(folder.path()).empty());
}

TEST(MetricsLog, SaysWhichFolderCannotBeWritten) {
  const TemporaryFolder folder;
  write_bytes(folder / "file", "not a folder");
  const std::string message = message_of([&] { const MetricsLog log(folder / "file" / "run"); });
  EXPECT_EQ(message.substr(0, 3), "6: ");
  EXPECT_NE(message.find("file/run"), std::string::npos) << message;
  EXPECT_NE(message.find("--run=DIR"), std::string::npos) << message;
}

TEST(MetricsLog, SaysThatTheDiskIsFull) {
  if (!fs::exists("/dev/full")) GTEST_SKIP() << "no /dev/full on this system";
  const TemporaryFolder folder;
  fs::create_symlink("/dev/full", folder / "full");
  AppendFile full(folder / "full");
  EXPECT_EQ(full.fault(), "");
  full.write("a line\n");
  EXPECT_EQ(full.fault(), (folder / "full").string() +
                              ": cannot be written: No space left on device; its lines wait in memory: make room");
}

// A file may grow to a limit that is raised later, as a disk has room again later.
TEST(MetricsLog, LinesThatWaitedForRoomComeFirstWhenThereIsRoom) {
  const TemporaryFolder folder;
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto ignored = std::signal(SIGXFSZ, SIG_IGN);
  {
    AppendFile file(folder / "lines");
    rlimit tight = before;
    tight.rlim_cur = 9;
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &tight), 0);
    file.write("first 1\n");
    file.write("second 2\n");
    file.write("third 3\n");
    EXPECT_NE(file.fault(), "");
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
    file.write("fourth 4\n");
    EXPECT_EQ(file.fault(), "");
  }
  std::signal(SIGXFSZ, ignored);
  EXPECT_EQ(read_bytes(folder / "lines"), "first 1\nsecond 2\nthird 3\nfourth 4\n");
}

TEST(TensorboardWriter, NeverTakesAFileThatIsThere) {
  const TemporaryFolder folder;
  for (int run = 0; run < 3; ++run) MetricsLog log(folder.path());
  EXPECT_EQ(event_files(folder.path()).size(), 3u);
}

// tests/python/test_metrics.py reads this run back with a reader that shares no line with the writer.
TEST(TensorboardWriter, LeavesARunForOtherReaders) {
  const TemporaryFolder temporary;
  const char* wanted = std::getenv("LIMBECK_METRICS_RUN");
  const fs::path run = wanted != nullptr ? fs::path(wanted) : temporary.path();
  const auto values = [](int64_t step) {
    const auto x = static_cast<double>(step);
    return std::vector<std::pair<std::string, double>>{{"loss", 1.0 / x}, {"kd", -x}, {"tokens", x * (1 << 20)}};
  };
  {
    MetricsLog log(run);
    for (int64_t step = 1; step <= 300; ++step) log.write(step, values(step), "train");
    log.write(300, {{"eval.perplexity", 12.5}, {"eval.kl", std::nan("")}}, "eval");
  }
  MetricsLog resumed(run, 200);
  resumed.write(201, values(201), "train");
  EXPECT_EQ(steps_of(run).size(), 201u);
  EXPECT_EQ(event_files(run).size(), 2u);
}

}  // namespace
}  // namespace limbeck::metrics
