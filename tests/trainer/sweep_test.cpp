// A module alone in another precision: what a recipe with that rule builds, gone without a trace afterwards, and
// measured by less than a forward to the bits of a whole one.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>

#include "modules/precision/contract_modules.h"
#include "tests/support/temporary_folder.h"
#include "tests/trainer/message_of.h"
#include "tests/trainer/tiny_distillation.h"
#include "trainer/objective/forward_pass.h"
#include "trainer/sweep/candidate_meter.h"
#include "trainer/sweep/row_measure.h"

namespace limbeck::sweep {
namespace {

constexpr int64_t kBatches = 2;
const std::vector<std::string> kFormats = {"float16", "bfloat16", "int8", "int4", "nf4"};

models::ModelRequest request_of(const std::filesystem::path& folder) {
  models::ModelRequest request;
  request.folder = folder;
  request.root = "student";
  request.dtype = at::kFloat;
  return request;
}

std::filesystem::path folder_of(const std::string& family) {
  const std::string tied = family == "qwen2" ? R"({"tie_word_embeddings": true})" : "{}";
  return test::weighted_model(family, tied, 7);
}

data::Batch batch_of(int64_t index) {
  data::Batch batch = test::random_batch({.rows = 4, .length = 12}, 100 + static_cast<uint64_t>(index));
  batch.classes = at::tensor({0, 1, 1, 0}, at::kLong);
  batch.student.masked = false;
  return batch;
}

at::Tensor logits_of(const models::BuiltModel& model) {
  const at::NoGradGuard no_gradient;
  const data::Batch batch = batch_of(0);
  return model.model->head(model.model->encode(objective::model_input(batch.student, nullptr)).last);
}

struct Case {
  explicit Case(const std::string& family)
      : folder(folder_of(family)), floats(models::load_model(request_of(folder))) {}
  std::filesystem::path folder;
  models::BuiltModel floats;
};

std::vector<std::string> modules_in(const std::vector<Candidate>& candidates, const std::string& format) {
  std::vector<std::string> found;
  for (const Candidate& one : candidates) {
    if (one.format == format) found.push_back(one.module);
  }
  return found;
}

bool holds(const std::vector<std::string>& all, const std::string& one) {
  return std::find(all.begin(), all.end(), one) != all.end();
}

TEST(SweepCandidates, AreEveryLinearNormExpertsAndLayerButNoEmbedding) {
  const auto gpt2 = modules_in(candidates_of(Case("gpt2").floats, kFormats), "float16");
  EXPECT_TRUE(holds(gpt2, "layers.0.self_attn.qkv_proj")) << "Conv1D";
  EXPECT_TRUE(holds(gpt2, "layers.1.mlp.down_proj"));
  EXPECT_TRUE(holds(gpt2, "lm_head")) << "tied";
  EXPECT_FALSE(holds(gpt2, "embed_tokens"));
  const auto moe = candidates_of(Case("qwen3_moe").floats, kFormats);
  EXPECT_TRUE(holds(modules_in(moe, "int4"), "layers.0.mlp.experts"));
  EXPECT_TRUE(holds(modules_in(moe, "float16"), "layers.0.mlp.gate")) << "the router";
  EXPECT_FALSE(holds(modules_in(moe, "int4"), "layers.0.mlp.gate")) << "which has no packed form";
  EXPECT_FALSE(holds(modules_in(moe, "int4"), "layers.0.input_layernorm"));
  EXPECT_TRUE(holds(modules_in(moe, "int4"), "layers.0"));
  const auto bert = modules_in(candidates_of(Case("distilbert").floats, {"float16"}), "float16");
  EXPECT_EQ(bert.size(), 2U * (6 + 2 + 1) + 1 + 2) << "per layer 6 linear, 2 norms and itself; embed_norm; two heads";
}

class SweepOf : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Families, SweepOf,
                         ::testing::Values("distilbert", "bert", "gpt2", "llama", "qwen2", "qwen3_moe", "gemma2"),
                         [](const auto& one) { return std::string(one.param); });

TEST_P(SweepOf, CandidateIsWhatItsRulesBuildAndLeavesNoTrace) {
  const Case one(GetParam());
  const at::Tensor before = logits_of(one.floats);
  std::vector<at::Tensor> weights;
  for (const auto& [path, tensor] : precision::path_parameters(*one.floats.model)) weights.push_back(tensor.clone());
  for (const Candidate& candidate : candidates_of(one.floats, kFormats)) {
    SCOPED_TRACE(candidate.key());
    ConvertedModules converted(one.floats, candidate.rules);
    at::Tensor inside, again;
    {
      const ConvertedModules::InPlace in_place(converted);
      inside = logits_of(one.floats);
      for (const auto& module : converted.modules()) EXPECT_EQ(module->violations(), std::vector<std::string>());
    }
    EXPECT_TRUE(at::equal(logits_of(one.floats), before));
    {
      const ConvertedModules::InPlace in_place(converted);
      again = logits_of(one.floats);
    }
    EXPECT_TRUE(at::equal(again, inside)) << "converting twice is converting once";
    EXPECT_FALSE(at::equal(inside, before)) << "nothing was converted";
    models::ModelRequest asked = request_of(one.folder);
    for (const std::string& rule : candidate.rules) asked.rules.push_back(precision::parse_rule(rule, "test"));
    const models::BuiltModel built = models::load_model(asked);
    EXPECT_TRUE(at::equal(logits_of(built), inside)) << "not what the rules build";
    EXPECT_EQ(precision::total_footprint(*built.model).bytes - precision::total_footprint(*one.floats.model).bytes,
              converted.bytes() - converted.bytes_before());
    EXPECT_LT(converted.bytes(), converted.bytes_before());
  }
  size_t next = 0;
  for (const auto& [path, tensor] : precision::path_parameters(*one.floats.model))
    EXPECT_TRUE(at::equal(tensor, weights[next++])) << path;
}

nlohmann::ordered_json identity() { return {{"test", 1}}; }

bool same_rows(const Rows& one, const Rows& other) {
  return std::equal(one.begin(), one.end(), other.begin(), other.end(), [](const RowMeasure& a, const RowMeasure& b) {
    return a.targets == b.targets && a.right == b.right && a.loss == b.loss && a.kl == b.kl && a.squares == b.squares &&
           a.values == b.values;
  });
}

// Of a candidate on a batch, by a whole forward.
Rows by_whole_forward(const models::BuiltModel& floats, const Candidate& candidate, int64_t index) {
  const at::NoGradGuard no_gradient;
  const data::Batch batch = batch_of(index);
  const models::ModelInput input = objective::model_input(batch.student, nullptr);
  const BatchBaseline baseline(floats, batch, from_stage(floats, 0, {}, input));
  ConvertedModules converted(floats, candidate.rules);
  const ConvertedModules::InPlace in_place(converted);
  return baseline.measure(floats, from_stage(floats, 0, {}, input), &converted);
}

TEST(SweepStages, OfAClassifierGiveWhatItsHeadReads) {
  const at::NoGradGuard no_gradient;
  for (const char* family : {"distilbert", "bert"}) {
    const Case one(family);
    const data::Batch batch = batch_of(0);
    const models::ModelInput input = objective::model_input(batch.student, nullptr);
    const at::Tensor read = from_stage(one.floats, 0, {}, input);
    ASSERT_EQ(read.size(1), 1) << family;
    // Products of a few rows may add up in another order: 1e-5 of numbers near one.
    EXPECT_TRUE(at::allclose(one.floats.model->head(read), logits_of(one.floats), 1e-5, 1e-5)) << family;
    // A row that is padded at its end, and one that is not.
    EXPECT_TRUE(at::allclose(read, one.floats.model->encode(input).last.narrow(1, 0, 1), 1e-5, 1e-5)) << family;
  }
}

TEST_P(SweepOf, MeasuresTheBitsOfAWholeForward) {
  const Case one(GetParam());
  const auto candidates = candidates_of(one.floats, {"float16", "int4"});
  for (const int64_t bytes : {int64_t{0}, int64_t{1} << 30}) {
    const test::TemporaryFolder folder;
    SweepFile file(folder / "rows.jsonl", identity());
    BatchStates states(one.floats, {batch_of, kBatches}, bytes);
    CandidateMeter meter(one.floats, states, file, {0, kBatches});
    meter.measure_floats();
    int64_t heard = 0, done = 0;
    meter.measure(candidates, {[&] { ++heard; }, [&](const Candidate&) { ++done; }});
    EXPECT_EQ(done, static_cast<int64_t>(candidates.size()));
    EXPECT_EQ(heard, done * kBatches);
    for (const Candidate& candidate : candidates) {
      SCOPED_TRACE(candidate.key());
      for (int64_t index = 0; index < kBatches; ++index) {
        const BatchOutcome* found = file.find(candidate.key(), index);
        ASSERT_NE(found, nullptr);
        ASSERT_EQ(found->status, Status::kMeasured) << found->reason;
        EXPECT_TRUE(same_rows(found->rows, by_whole_forward(one.floats, candidate, index)));
      }
      ASSERT_NE(file.cost(candidate.key()), nullptr);
      EXPECT_TRUE(file.cost(candidate.key())->seconds.has_value());
    }
  }
}

// Works as its host does, until that computes in half floats.
class ThrowsInHalf : public models::LinearAdapter {
 public:
  ThrowsInHalf(const precision::Scope& scope, const models::Linear& host) : LinearAdapter(scope, host.precision()) {}
  at::Tensor forward(const at::Tensor& x, const models::Linear& host, const models::Draws&) const override {
    if (host.precision().compute == at::kHalf) throw std::runtime_error("no half floats here\nsecond line");
    return host.base_forward(x);
  }
  models::MergedWeight merged(const models::Linear&) const override { throw std::logic_error("unused"); }
  models::UnmergedWeight unmerged(const models::Linear&) const override { throw std::logic_error("unused"); }
  std::string unmerge_fault() const override { return "unused"; }
  void initialize(const models::Linear&, uint64_t) override {}
  models::ProductOperands operands(const at::Tensor& x, const models::Linear& host, bool,
                                   const models::Draws&) const override {
    return {x, host.operand()};
  }
};

TEST(SweepMeter, SaysWhatThrewAndWhatOverflowedAndGoesOn) {
  const Case one("distilbert");
  const std::string throwing = "layers.0.mlp.up_proj", overflowing = "layers.1.self_attn.v_proj",
                    beyond = "layers.1.mlp.down_proj";
  for (const auto& module : precision::contract_modules(*one.floats.model)) {
    const auto linear = std::dynamic_pointer_cast<models::Linear>(module);
    if (linear == nullptr) continue;
    const at::NoGradGuard no_gradient;
    at::Tensor weight = linear->parameter("weight");
    if (linear->path() == "student." + overflowing) weight.mul_(2e5 / weight.abs().max().item<double>() / 4);
    if (linear->path() == "student." + beyond) weight.mul_(1e6);
    if (linear->path() != "student." + throwing) continue;
    const precision::Scope scope{one.floats.policy.get(), linear->path() + ".default", std::nullopt};
    linear->add_adapter("default", std::make_shared<ThrowsInHalf>(scope, *linear));
    linear->use_adapter("default");
  }
  const at::Tensor before = logits_of(one.floats);
  const test::TemporaryFolder folder;
  SweepFile file(folder / "rows.jsonl", identity());
  BatchStates states(one.floats, {batch_of, kBatches}, 1 << 30);
  CandidateMeter meter(one.floats, states, file, {0, kBatches});
  meter.measure_floats();
  const auto candidates = candidates_of(one.floats, {"float16"});
  meter.measure(candidates, {});
  EXPECT_TRUE(at::equal(logits_of(one.floats), before));
  const auto outcome = [&](const std::string& module) {
    return whole_outcome(file, module + " float16", {0, kBatches});
  };
  EXPECT_EQ(outcome(throwing).status, Status::kFailed);
  EXPECT_EQ(outcome(throwing).reason, "no half floats here");
  EXPECT_EQ(outcome(overflowing).status, Status::kOverflowed) << outcome(overflowing).reason;
  EXPECT_EQ(outcome(overflowing).reason.find("student." + overflowing), 0U) << outcome(overflowing).reason;
  EXPECT_NE(outcome(overflowing).reason.find("are not finite"), std::string::npos) << outcome(overflowing).reason;
  EXPECT_EQ(outcome(beyond).status, Status::kOverflowed);
  EXPECT_NE(outcome(beyond).reason.find("weights are beyond float16"), std::string::npos) << outcome(beyond).reason;
  EXPECT_EQ(outcome("layers.0.mlp.down_proj").status, Status::kMeasured);
  EXPECT_EQ(outcome("classifier").status, Status::kMeasured);
}

TEST(SweepMeter, GoesOnBehindTheLastWholeLineToTheSameBits) {
  const Case one("llama");
  const auto candidates = candidates_of(one.floats, {"float16"});
  const test::TemporaryFolder folder;
  const auto path = folder / "rows.jsonl";
  const auto sweep = [&](SweepFile& file) {
    BatchStates states(one.floats, {batch_of, kBatches}, 1 << 30);
    CandidateMeter meter(one.floats, states, file, {0, kBatches});
    meter.measure_floats();
    meter.measure(candidates, {});
    std::vector<Rows> rows;
    for (const Candidate& candidate : candidates)
      rows.push_back(whole_outcome(file, candidate.key(), {0, kBatches}).rows);
    return rows;
  };
  std::vector<Rows> wanted;
  {
    SweepFile file(path, identity());
    wanted = sweep(file);
  }
  const auto size = std::filesystem::file_size(path);
  for (const double share : {0.9, 0.5, 0.2, 0.01}) {
    std::filesystem::resize_file(path, static_cast<uintmax_t>(share * static_cast<double>(size)));
    SweepFile file(path, identity());
    const std::vector<Rows> found = sweep(file);
    for (size_t i = 0; i < candidates.size(); ++i)
      EXPECT_TRUE(same_rows(found[i], wanted[i])) << share << " " << candidates[i].key();
  }
  EXPECT_NE(test::message_of([&] {
              SweepFile(path, {{"test", 2}});
            }).find("holds a sweep of another test (1), wanted"),
            std::string::npos);
  std::ofstream(path, std::ios::app) << "{\"candidate\": 3}\n";
  EXPECT_NE(test::message_of([&] { SweepFile(path, identity()); }).find("is no line of a sweep"), std::string::npos);
}

TEST(SweepFormats, RefusesFloat32AndRepeats) {
  EXPECT_EQ(parse_sweep_formats("float16,nf4", "--formats"), (std::vector<std::string>{"float16", "nf4"}));
  EXPECT_NE(test::message_of([] { parse_sweep_formats("float32", "--formats"); }).find("measures against float32"),
            std::string::npos);
  EXPECT_NE(test::message_of([] { parse_sweep_formats("int8,int8", "--formats"); }).find("there twice"),
            std::string::npos);
  EXPECT_NE(test::message_of([] { parse_sweep_formats("int9", "--formats"); }).find("int9"), std::string::npos);
}

}  // namespace
}  // namespace limbeck::sweep
