// What a profile is made of: numbers of many passes, placement, products counted from shapes, replays, processes.
#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <fstream>
#include <map>
#include <set>
#include <string>

#include "modules/models/network/experts.h"
#include "modules/precision/contract_modules.h"
#include "tests/support/recipe_settings.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/tiny_models.h"
#include "tests/trainer/message_of.h"
#include "tests/trainer/tiny_distillation.h"
#include "trainer/build/recipe_models.h"
#include "trainer/profile/assessment.h"
#include "trainer/profile/child_process.h"
#include "trainer/profile/latency.h"
#include "trainer/profile/module_replay.h"
#include "trainer/profile/module_times.h"
#include "trainer/profile/placement.h"
#include "trainer/profile/profile.h"
#include "trainer/profile/profiled_precision.h"
#include "trainer/profile/subject.h"

namespace limbeck::profile {
namespace {

TEST(ProfileLatency, HasTheNumbersOfAllTrials) {
  const Latency latency = summarize({{1, 2, 3, 4}, {5, 6, 7, 8, 9, 10}});
  EXPECT_EQ(latency.passes, 10);
  EXPECT_DOUBLE_EQ(latency.mean, 5.5);
  EXPECT_DOUBLE_EQ(latency.p50, 5.5);
  EXPECT_DOUBLE_EQ(latency.p95, 9.55);  // numpy.percentile(range(1, 11), 95)
  EXPECT_NEAR(latency.std, 3.0276503540974917, 1e-12);
  EXPECT_EQ(latency.trials, (std::vector<double>{2.5, 7.5}));
  EXPECT_EQ(summarize({{4}}).p95, 4);
  EXPECT_EQ(summarize({{4}}).std, 0);
}

TEST(ProfileLatency, MeasuresWhatItWasAskedForAndEndsInTime) {
  int done = 0;
  const Latency all = measure({.warmup = 3, .measured = 5, .trials = 2}, [&] { ++done; });
  EXPECT_EQ(done, 13);
  EXPECT_EQ(all.passes, 10);
  done = 0;
  const Latency some =
      measure({.warmup = 1, .measured = 1'000'000'000, .trials = 3, .most_seconds = 0.06}, [&] { ++done; });
  EXPECT_EQ(some.passes + 1, done);
  EXPECT_EQ(some.trials.size(), 3u) << "each trial has its part of the time";
}

TEST(ProfilePrecision, IsADtypeAFormatOrBoth) {
  const auto both = ProfiledPrecision::parse("int4+bfloat16", "");
  EXPECT_EQ(both.dtype, at::kBFloat16);
  EXPECT_TRUE(both.format == kernels::QuantizedFormat::kInt4);
  EXPECT_FALSE(ProfiledPrecision::parse("float16", "").format.has_value());
  EXPECT_FALSE(ProfiledPrecision::parse("nf4", "").dtype.has_value());
  EXPECT_TRUE(ProfiledPrecision::parse("recipe", "").as_recipe);
  for (const char* name : {"int9", "float16+int8", "int4+", "bfloat16+float32"}) {
    const std::string message = test::message_of([&] { ProfiledPrecision::parse(name, "(my.ini:3)"); });
    EXPECT_TRUE(
        message.starts_with("2: profile.precisions (my.ini:3): \"" + std::string(name) + "\" is unknown, wanted"))
        << message;
  }
}

recipe::Settings settings_for(const std::string& family, test::RecipeKeys more = {}) {
  more.emplace_back("student.model", test::tiny_model(family).string());
  more.emplace_back("student.init", "random");
  more.emplace_back("profile.batch", "2");
  more.emplace_back("profile.length", "8");
  return test::recipe_settings(more);
}

TEST(ProfilePrecision, DecidesModelAndDataTogetherAndLeavesTheTeacherItsRules) {
  const auto settings = settings_for("llama", {{"precision.rule", "student.layers.0.** float16"},
                                               {"precision.rule", "teacher.layers.0.** float16"},
                                               {"student.dtype", "bfloat16"},
                                               {"teacher.device", "cpu"}});
  const auto placed = placed_settings(settings, ProfiledPrecision::parse("int8-dynamic", ""), c10::Device("cuda:0"));
  for (const char* role : {"student", "teacher"}) EXPECT_EQ(placed.device_of(role), c10::Device("cuda:0")) << role;
  EXPECT_EQ(placed.text("student.quantize"), "int8-dynamic");
  EXPECT_EQ(placed.text("student.dtype"), "bfloat16");
  EXPECT_EQ(placed.list("precision.rule"), std::vector<std::string>{"teacher.layers.0.** float16"});
  const auto as_it_is = placed_settings(settings, ProfiledPrecision::parse("recipe", ""), c10::Device("cpu"));
  EXPECT_EQ(as_it_is.list("precision.rule").size(), 2u);
}

TEST(ProfilePrecision, RefusesWithWhatToDoInstead) {
  const auto refused = [](const std::string& family, const std::string& precision, Work work,
                          test::RecipeKeys more = {}) {
    const auto chosen = ProfiledPrecision::parse(precision, "");
    const auto placed = placed_settings(settings_for(family, std::move(more)), chosen, c10::Device("cpu"));
    const auto student = build::build_student(placed, /*meta=*/true);
    return refusal(placed, chosen, work, student.config.architecture, student.config.layout != nullptr);
  };
  EXPECT_EQ(refused("llama", "int4", Work::kForward), "");
  EXPECT_EQ(refused("llama", "float32", Work::kGeneration), "");
  EXPECT_NE(refused("llama", "int4", Work::kTraining).find("--adapter.kind=lora"), std::string::npos);
  EXPECT_EQ(refused("llama", "int4", Work::kTraining, {{"adapter.kind", "lora"}}), "");
  EXPECT_NE(refused("bert", "float32", Work::kGeneration).find("--work=forward,training"), std::string::npos);
}

TEST(ProfilePlacement, NamesTheTensorOfTheBatchThatIsElsewhereBeforeAForward) {
  const auto student =
      build::build_student(settings_for("llama", {{"student.quantize", "int8-dynamic"}}), /*meta=*/true);
  ProfileOptions options;
  options.batch = 2, options.length = 8;
  const data::Batch batch = random_batch(student.config.architecture, options);
  EXPECT_EQ(test::message_of([&] { require_one_device(*student.model, batch); }),
            "2: [batch.student.ids] is Long [2,8] on cpu, wanted meta, where student.embed_tokens.weight is: place the "
            "batch with the model (data::place, or a Prefetcher)");
  data::Batch placed = data::place(batch, at::kMeta);
  require_one_device(*student.model, placed);
  placed.student.attention_mask = batch.student.attention_mask;
  EXPECT_NE(test::message_of([&] {
              require_one_device(*student.model, placed);
            }).find("[batch.student.attention_mask] is Long [2,8] on cpu, wanted meta"),
            std::string::npos);
}

TEST(ProfilePlacement, NamesTheWeightThatIsElsewhereACodeOrAParameter) {
  const auto student =
      build::build_student(settings_for("llama", {{"student.quantize", "int8-dynamic"}}), /*meta=*/true);
  ProfileOptions options;
  options.batch = 2, options.length = 8;
  const data::Batch batch = data::place(random_batch(student.config.architecture, options), at::kMeta);
  for (const auto& module : precision::contract_modules(*student.model)) {
    if (module->path() != "student.layers.1.mlp.up_proj") continue;
    const auto matrix = module->packed_weight("weight")->matrix();
    module->replace_packed_weight("weight", {matrix.format, matrix.rows, matrix.columns, c10::Device(c10::kCPU)});
  }
  EXPECT_NE(test::message_of([&] {
              require_one_device(*student.model, batch);
            }).find("[student.layers.1.mlp.up_proj.weight.codes] is int8"),
            std::string::npos);
}

TEST(ProfileModules, CountsProductsFromShapes) {
  const auto settings = settings_for("llama", {{"student.dtype", "float32"}, {"teacher.kind", "none"}});
  ProfileOptions options;
  options.batch = 2, options.length = 8;
  Subject subject(settings, test::builtin_registries(), options, Work::kForward);
  ModuleTimes times(*subject.student().model, subject.device());
  {
    const precision::Observing observing(times);
    times.begin_pass();
    subject.pass();
  }
  const models::Architecture& a = subject.student().config.architecture;
  std::map<std::string, ModuleTime> found;
  for (const ModuleTime& time : times.modules()) found[time.module] = time;
  const double tokens = 2 * 8;
  const ModuleTime& up = found.at("student.layers.0.mlp.up_proj");
  EXPECT_EQ(up.flops, 2 * tokens * static_cast<double>(a.hidden * a.intermediate));
  EXPECT_EQ(up.bytes, 4 * (2 * 8 * (a.hidden + a.intermediate) + a.hidden * a.intermediate));
  EXPECT_EQ(up.calls, 1);
  EXPECT_EQ(up.role, "mlp");
  EXPECT_EQ(up.operands, "float32");
  const ModuleTime& mixer = found.at("student.layers.1.self_attn");
  EXPECT_EQ(mixer.flops, 4 * 2 * (8 * 9 / 2) * static_cast<double>(a.heads * a.head_dim)) << "of a causal mask";
  EXPECT_EQ(found.at("student.layers.0.input_layernorm").flops, 0);
  EXPECT_EQ(found.at("student").role, "model");

  // Each module's own time is in none of the others': together they are no more than the outermost spans.
  double own = 0, outermost = 0;
  for (const auto& [path, time] : found) own += time.ms;
  std::vector<TraceSpan> spans = times.spans();
  for (const TraceSpan& span : spans) {
    const bool inside = std::any_of(spans.begin(), spans.end(), [&](const TraceSpan& other) {
      return &other != &span && other.begin_us <= span.begin_us &&
             span.begin_us + span.microseconds <= other.begin_us + other.microseconds;
    });
    if (!inside) outermost += span.microseconds / 1000;
  }
  EXPECT_NEAR(own, outermost, 1e-6 * outermost);
}

TEST(ProfileModules, AttentionOfTheCacheSeesWhatCameBefore) {
  const auto settings = settings_for("llama", {{"student.dtype", "float32"}, {"teacher.kind", "none"}});
  ProfileOptions options;
  options.batch = 2, options.length = 8, options.new_tokens = 3;
  Subject subject(settings, test::builtin_registries(), options, Work::kGeneration);
  EXPECT_EQ(subject.tokens_of_a_pass(), 6);
  ModuleTimes times(*subject.student().model, subject.device());
  const precision::Observing observing(times);
  times.begin_pass();
  subject.pass();
  const models::Architecture& a = subject.student().config.architecture;
  for (const ModuleTime& time : times.modules()) {
    if (time.module != "student.layers.0.self_attn") continue;
    EXPECT_EQ(time.calls, 3);  // the prompt, then two tokens; the third is chosen and not read
    EXPECT_EQ(time.flops, 4 * 2 * (8 * 9 / 2 + 9 + 10) * static_cast<double>(a.heads * a.head_dim));
  }
}

std::map<std::string, ModuleTime> times_of(const recipe::Settings& settings, Work work, int64_t new_tokens = 3) {
  ProfileOptions options;
  options.batch = 2, options.length = 8, options.new_tokens = new_tokens;
  Subject subject(settings, test::builtin_registries(), options, work);
  ModuleTimes times(*subject.student().model, subject.device());
  const precision::Observing observing(times);
  times.begin_pass();
  subject.pass();
  std::map<std::string, ModuleTime> found;
  for (const ModuleTime& time : times.modules()) found[time.module] = time;
  return found;
}

TEST(ProfileModules, AWindowLeavesOutThePairsBeforeIt) {
  constexpr int64_t kWindow = 5, kHeads = 4, kKeyHeads = 2, kDepth = 8, kRows = 2;
  const auto sizes = [](int64_t queries, int64_t keys, bool windowed) {
    int64_t pairs = 0, first = keys;
    for (int64_t i = keys - queries; i < keys; ++i) {
      for (int64_t j = 0; j <= i; ++j) {
        if (windowed && i - j >= kWindow) continue;
        ++pairs;
        first = std::min(first, j);
      }
    }
    return std::pair(pairs, 4 * kRows * kDepth * (2 * queries * kHeads + 2 * (keys - first) * kKeyHeads));
  };
  for (const std::string family : {"mistral", "gemma2", "gemma3", "llama"}) {
    const auto settings = settings_for(family, {{"student.dtype", "float32"}, {"teacher.kind", "none"}});
    for (const int64_t layer : {0, 1}) {
      SCOPED_TRACE(family + " " + std::to_string(layer));
      const bool windowed = family == "mistral" || family == "gemma3" || (family == "gemma2" && layer == 0);
      const std::string mixer = "student.layers." + std::to_string(layer) + ".self_attn";
      const auto [pairs, bytes] = sizes(8, 8, windowed);
      const ModuleTime forward = times_of(settings, Work::kForward).at(mixer);
      EXPECT_EQ(forward.flops, static_cast<double>(4 * kRows * pairs * kHeads * kDepth));
      EXPECT_EQ(forward.bytes, bytes);
      // The prompt, then two tokens one at a time.
      const auto [ninth, ninth_bytes] = sizes(1, 9, windowed);
      const auto [tenth, tenth_bytes] = sizes(1, 10, windowed);
      const ModuleTime generation = times_of(settings, Work::kGeneration).at(mixer);
      EXPECT_EQ(generation.flops, static_cast<double>(4 * kRows * (pairs + ninth + tenth) * kHeads * kDepth));
      EXPECT_EQ(generation.bytes, bytes + ninth_bytes + tenth_bytes);
    }
  }
}

TEST(ProfileModules, ATiedHeadReadsItsWeightAsItIsStored) {
  // Generation, whose head is a product of its own: of the prompt's last tokens, and of two more.
  constexpr int64_t kRows = 2, kTimes = 3, kVocabulary = 97, kWidth = 32;
  const std::map<std::string, int64_t> stored = {{"float32", 4 * kVocabulary * kWidth},
                                                 {"int8", kVocabulary * (kWidth + 4)}};
  for (const auto& [format, bytes] : stored) {
    test::RecipeKeys keys{{"student.dtype", "float32"}, {"teacher.kind", "none"}};
    if (format == "int8")
      keys.insert(keys.end(),
                  {{"precision.rule", "student.embed_tokens int8"}, {"precision.rule", "student.lm_head int8"}});
    const ModuleTime head = times_of(settings_for("qwen2", keys), Work::kGeneration).at("student.lm_head");
    EXPECT_EQ(head.bytes, kTimes * (bytes + 4 * kRows * (kWidth + kVocabulary))) << format;
    EXPECT_EQ(head.flops, static_cast<double>(2 * kTimes * kRows * kVocabulary * kWidth)) << format;
  }
}

class ProfileReplay : public ::testing::TestWithParam<std::string> {};

// Hears what a replay gives.
class LastOutput : public precision::ModuleObserver {
 public:
  void output(const precision::ContractModule& module, const at::Tensor& y) override { last[module.path()] = y; }
  std::map<std::string, at::Tensor> last;
};

TEST_P(ProfileReplay, GivesEachModulesOutputsOfTheForwardAgain) {
  const auto settings = settings_for(GetParam(), {{"student.dtype", "float32"}, {"teacher.kind", "none"}});
  ProfileOptions options;
  options.batch = 2, options.length = 8;
  Subject subject(settings, test::builtin_registries(), options, Work::kForward);
  const c10::InferenceMode inference;
  CapturedInputs captured(*subject.student().model);
  LastOutput forward;
  {
    const precision::Observing observing(captured);
    subject.pass();
  }
  {
    const precision::Observing observing(forward);
    subject.pass();
  }
  std::set<std::string> replayed;
  for (const auto& [path, replay] : captured.replays()) {
    LastOutput again;
    const precision::Observing observing(again);
    replay();
    ASSERT_TRUE(again.last.contains(path)) << path;
    EXPECT_TRUE(at::equal(again.last.at(path), forward.last.at(path))) << path;
    replayed.insert(path);
  }
  for (const auto& [path, output] : forward.last) EXPECT_TRUE(replayed.contains(path)) << path << " is not replayed";
}

INSTANTIATE_TEST_SUITE_P(Families, ProfileReplay, ::testing::Values("llama", "bert", "mixtral"),
                         [](const auto& test) { return test.param; });

TEST(ProfileChild, GivesBackTextOrTheReason) {
  EXPECT_EQ(run_in_child([] { return std::string(300'000, 'x'); }).text.size(), 300'000u);
  const ChildOutcome refused = run_in_child([]() -> std::string { throw UsageError("such as this: do that"); });
  EXPECT_EQ(refused.text, "");
  EXPECT_EQ(refused.fault, "such as this: do that");
  const ChildOutcome killed = run_in_child([]() -> std::string {
    std::raise(SIGKILL);
    return "never";
  });
  EXPECT_EQ(killed.text, "");
  EXPECT_NE(killed.fault.find("ended by signal 9"), std::string::npos) << killed.fault;
}

// Its end comes between the start of the child and the child's wish to be killed with it.
TEST(ProfileChild, LeavesWhereItsParentDiedBeforeItCouldAskToDieWithIt) {
  static pid_t forking = 0;
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  const pid_t between = ::fork();
  ASSERT_GE(between, 0);
  if (between == 0) {
    forking = ::getpid();
    ::pthread_atfork(
        nullptr, [] { ::_exit(0); },
        [] {
          while (::getppid() == forking) ::usleep(1000);
        });
    run_in_child([&] {
      if (::write(ends[1], "x", 1) != 1) ::_exit(1);
      return std::string();
    });
    ::_exit(1);  // its own end is in pthread_atfork
  }
  ::close(ends[1]);
  int status = -1;
  EXPECT_EQ(::waitpid(between, &status, 0), between);
  EXPECT_EQ(status, 0);
  char done = 0;
  EXPECT_EQ(::read(ends[0], &done, 1), 0) << "it worked for nobody";
  ::close(ends[0]);
}

// A folder of such a name in a place that all users can write to would follow a link that another of them laid there.
TEST(ProfileAssessment, KnowsTheBytesOfFilesAndWritesNone) {
  const test::TemporaryFolder shared;
  const std::filesystem::path theirs = shared / "theirs", link = shared / fmt::format("limbeck-profile-{}", ::getpid());
  std::filesystem::create_directory(theirs);
  std::filesystem::create_directory_symlink(theirs, link);
  const char* before = std::getenv("TMPDIR");
  const std::string usual = before == nullptr ? "" : before;
  ::setenv("TMPDIR", shared.path().c_str(), 1);
  const auto settings = settings_for("llama", {{"student.dtype", "bfloat16"}, {"teacher.kind", "none"}});
  const ProfileOptions options;
  const auto found = assessment({settings, test::builtin_registries(), options, ProfiledPrecision::parse("float32", ""),
                                 c10::Device("cpu"), Work::kForward});
  before == nullptr ? ::unsetenv("TMPDIR") : ::setenv("TMPDIR", usual.c_str(), 1);
  EXPECT_GT(found.at("bytes_on_disk").get<int64_t>(), 0) << found.dump();
  EXPECT_TRUE(std::filesystem::is_symlink(link));
  EXPECT_TRUE(std::filesystem::is_empty(theirs));
  size_t entries = 0;
  for (const auto& entry : std::filesystem::directory_iterator(shared.path())) entries += entry.exists() ? 1 : 0;
  EXPECT_EQ(entries, 2u);
}

// What the kernel says of this process.
int64_t peak_resident_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmHWM:")) return std::stoll(line.substr(6)) * 1024;
  }
  return 0;
}

TEST(ProfileChild, HasAPeakOfItsOwn) {
  constexpr int64_t kMore = int64_t{96} << 20;
  const auto peak_with = [](int64_t bytes) {
    return run_in_child([bytes] {
      std::vector<char> memory(static_cast<size_t>(bytes), 'x');
      return std::to_string(peak_resident_bytes() + (memory.back() == 'x' ? 0 : 1));
    });
  };
  const ChildOutcome small = peak_with(1), large = peak_with(kMore);
  const int64_t seen = std::stoll(large.text) - std::stoll(small.text);
  EXPECT_NEAR(static_cast<double>(seen), static_cast<double>(kMore), 0.05 * static_cast<double>(kMore));
  // What the child says of itself is what the system says of the child.
  EXPECT_NEAR(static_cast<double>(large.peak_bytes), std::stod(large.text), 0.05 * std::stod(large.text));
}

TEST(ProfileCsv, QuotesReasonsAndLeavesUnknownNumbersEmpty) {
  const nlohmann::ordered_json row{{"precision", "int4"},
                                   {"device", "cpu"},
                                   {"work", "training"},
                                   {"refused", "frozen, \"so\""},
                                   {"latency_ms", nullptr},
                                   {"rows_per_second", nullptr},
                                   {"tokens_per_second", nullptr},
                                   {"passes", 6},
                                   {"passes_asked", 2500},
                                   {"cut", true},
                                   {"read", {{"from", "random ids"}}},
                                   {"bytes_on_disk", nullptr},
                                   {"bytes_of_weights", 12},
                                   {"peak_bytes", nullptr},
                                   {"peak_rss_bytes", nullptr},
                                   {"quality", nullptr},
                                   {"energy", nullptr}};
  const std::string text = csv_of({{"rows", nlohmann::ordered_json::array({row})}});
  EXPECT_NE(text.find("\nint4,cpu,training,\"frozen, \"\"so\"\"\",,,,,,,6,2500,true,random ids,,12,,,,,,,,\n"),
            std::string::npos)
      << text;
}

}  // namespace
}  // namespace limbeck::profile
