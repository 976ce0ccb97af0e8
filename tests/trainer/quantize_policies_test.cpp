// Which format each module gets: by importance, within a budget, repaired by measurement; and what a mix weighs.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "tests/support/temporary_folder.h"
#include "tests/support/tiny_models.h"
#include "tests/trainer/message_of.h"
#include "tests/trainer/rows_to_measure_on.h"
#include "tests/trainer/tiny_distillation.h"
#include "trainer/cli/commands/quantize_tables.h"
#include "trainer/quantize/exchange.h"
#include "trainer/quantize/importance.h"
#include "trainer/quantize/joint_measure.h"
#include "trainer/quantize/static_policy.h"
#include "trainer/quantize/sweep_scores.h"

namespace limbeck::quantize {
namespace {

models::ModelRequest request_for(const std::string& family, const nlohmann::json& changes = nlohmann::json::object()) {
  models::ModelRequest request;
  request.folder = test::tiny_model(family);
  nlohmann::json config = nlohmann::json::parse(std::ifstream(request.folder / "config.json"));
  config.update(changes);
  std::ofstream(request.folder / "config.json") << config.dump();
  request.dtype = at::kHalf;
  return request;
}

std::map<std::string, int64_t> counts(const Mix& mix) {
  std::map<std::string, int64_t> found;
  for (const auto& [module, format] : mix) ++found[format];
  return found;
}

LayerImportance ascending(int64_t count) {
  LayerImportance importance;
  for (int64_t i = 0; i < count; ++i) importance[std::to_string(100 + i)] = static_cast<double>(i);
  return importance;
}

using Counts = std::map<std::string, int64_t>;

TEST(DynamicPolicy, OfTenGivesTwoFiveThree) {
  const Mix mix = DynamicQuantizationPolicy{ascending(10), 0.2, 0.3}.mix("float", "int8", "int4");
  EXPECT_EQ(counts(mix), (Counts{{"float", 2}, {"int8", 5}, {"int4", 3}}));
  EXPECT_EQ(mix.at("109"), "float");
  EXPECT_EQ(mix.at("100"), "int4");
}

TEST(DynamicPolicy, GivesEqualModulesTheFirstFormat) {
  LayerImportance equal;
  for (int i = 0; i < 9; ++i) equal[std::to_string(i)] = 0.25;
  EXPECT_EQ(counts(DynamicQuantizationPolicy{equal}.mix("float", "int8", "int4")), (Counts{{"float", 9}}));
}

TEST(DynamicPolicy, FortyFortyTwentyIsFourTimesSmallerAndMissesTheTarget) {
  // 70 modules of 1024 x 1024; embeddings and head hardly count.
  const FormatTable table(request_for("llama", {{"hidden_size", 1024},
                                                {"intermediate_size", 1024},
                                                {"num_attention_heads", 8},
                                                {"num_key_value_heads", 8},
                                                {"head_dim", 128},
                                                {"num_hidden_layers", 10}}),
                          parse_formats("float,int8,int4-sym", "--formats"));
  ASSERT_EQ(table.modules().size(), 70U);
  LayerImportance importance;
  for (const Candidate& module : table.modules()) importance[module.path] = static_cast<double>(importance.size());
  const Mix mix = DynamicQuantizationPolicy{importance}.mix("float", "int8", "int4-sym");
  EXPECT_EQ(counts(mix), (Counts{{"float", 14}, {"int8", 28}, {"int4-sym", 28}}));
  const SizeEstimate estimate = estimate_model_size(table, mix);
  EXPECT_FALSE(estimate.meets_target);
  EXPECT_EQ(estimate.target_compression, 6.0);
  EXPECT_EQ(estimate.fp32_bytes, 4 * estimate.total_parameters);
  const std::string line = cli::estimate_line(estimate);
  EXPECT_TRUE(line.ends_with(": 4.0x (target 6.0x: not met)")) << line;
}

// A mixture of experts of the sizes of the reference configuration of systems.md: 133 million parameters, 71 % of them
// in experts, 23 % in the embedding and the head.
TEST(StaticPolicy, IsMoreThanSixTimesSmallerOnlyWithEmbeddingAndHeadInCodes) {
  const auto request = request_for("mixtral", {{"hidden_size", 512},
                                               {"intermediate_size", 640},
                                               {"num_attention_heads", 8},
                                               {"num_key_value_heads", 2},
                                               {"head_dim", 64},
                                               {"num_hidden_layers", 12},
                                               {"num_local_experts", 8},
                                               {"num_experts_per_tok", 2},
                                               {"tie_word_embeddings", false},
                                               {"vocab_size", 30000}});
  StaticQuantizationPolicy policy;
  const FormatTable plain(request, policy.formats(), Covered::kEverything);
  const SizeEstimate before = estimate_model_size(plain, policy.mix(plain));
  EXPECT_NEAR(static_cast<double>(before.total_parameters), 133e6, 1e6);
  EXPECT_FALSE(before.meets_target) << before.compression_ratio;
  policy.set("embedding int8", "--tag");
  policy.set("head int8", "--tag");
  const FormatTable table(request, policy.formats(), Covered::kEverything);
  const Mix mix = policy.mix(table);
  EXPECT_EQ(mix.at("embed_tokens"), "int8");
  EXPECT_EQ(mix.at("lm_head"), "int8");
  EXPECT_EQ(mix.at("layers.11.mlp.experts"), "int4");
  const SizeEstimate after = estimate_model_size(table, mix);
  EXPECT_TRUE(after.meets_target) << after.compression_ratio;
  const std::string line = cli::estimate_line(after);
  EXPECT_TRUE(line.ends_with(": 6.1x (target 6.0x: met)")) << line << " before: " << cli::estimate_line(before);
}

TEST(Importance, JoinsTheThreeStandardisedMeasuresByModule) {
  const FormatTable table(request_for("llama"), parse_formats("float,int8", "--formats"));
  RowScore scores;
  std::vector<double> weights;
  scores.rows = 2;
  const size_t count = table.modules().size();
  for (size_t i = 0; i < count; ++i) {
    ModuleScore module;
    module.gradient = static_cast<double>(i);
    module.count = 4;  // half of them 1 + i, half 1 - i: a variance of i squared
    module.outputs = 4;
    module.squares = 4 * (1 + static_cast<double>(i * i));
    scores.modules.push_back(module);
    weights.push_back(static_cast<double>(count - i));
  }
  const auto n = static_cast<double>(count);
  const auto deviation = std::sqrt((n * n - 1) / 12);
  double squares = 0, fourths = 0;
  for (size_t i = 0; i < count; ++i) squares += std::pow(i, 2) / n, fourths += std::pow(i, 4) / n;
  const LayerImportance importance = importance_of(table, scores, weights);
  for (size_t i = 0; i < count; ++i) {
    const double z = (static_cast<double>(i) - (n - 1) / 2) / deviation;
    const double of_variance = (static_cast<double>(i * i) - squares) / std::sqrt(fourths - squares * squares);
    EXPECT_NEAR(importance.at(table.modules()[i].path), 0.5 * z + 0.3 * of_variance - 0.2 * z, 1e-12) << i;
  }
}

TEST(LayerImportanceAnalyzer, MeasuresAsManyBatchesAsItIsAskedForInTheirOrder) {
  models::ModelRequest request;
  request.folder = test::weighted_model("llama", "{}", 3);
  request.dtype = at::kFloat;
  request.trainable = true;
  const models::BuiltModel model = models::load_model(request);
  const FormatTable table(request, parse_formats("float", "--formats"));
  const auto rows = test::rows_to_measure_on("importance_data", 12);
  const data::DataSource& source = *rows;

  const ScoreMeter meter(model, table, at::kHalf);
  const LayerImportanceAnalyzer analyzer(meter, table);
  RowScore first, all;
  for (int64_t i = 0; i < 6; ++i) {
    const RowScore row = meter.measure(source.batch(i));
    EXPECT_EQ(row.targets, 11);
    if (i < 2) first.add(row);
    all.add(row);
  }
  EXPECT_EQ(analyzer.analyze(source, 2), importance_of(table, first, meter.mean_weights()));
  EXPECT_EQ(analyzer.analyze(source, 100), importance_of(table, all, meter.mean_weights()));
  EXPECT_NE(analyzer.analyze(source, 2), analyzer.analyze(source, 100));
  double sum = 0;
  for (const auto& [module, importance] : analyzer.analyze(source, 6)) sum += importance;
  EXPECT_NEAR(sum, 0, 1e-12);  // of standardised values
  const std::string said = test::message_of([&] { analyzer.analyze(source, 0); });
  EXPECT_EQ(said, "2: importance is measured on data: there is no batch to measure it on");
}

// Scores by which every format below float loses, some modules more than others.
RowScore made_scores(const FormatTable& table) {
  RowScore scores;
  scores.rows = 1;
  scores.targets = 10;
  for (size_t i = 0; i < table.modules().size(); ++i) {
    ModuleScore module;
    for (size_t format = 0; format < table.formats().size(); ++format)
      module.losses.push_back(static_cast<double>(format * format * (1 + i % 5)));
    scores.modules.push_back(module);
  }
  return scores;
}

TEST(BudgetedPolicy, KeepsWhatOthersFuseInOneFormatAndTheBudgetToTheByte) {
  for (const char* family : {"llama", "qwen3", "gemma2"}) {
    const FormatTable table(request_for(family), parse_formats("float,int8,int4-g32", "--formats"));
    const RowScore scores = made_scores(table);
    int64_t before = std::numeric_limits<int64_t>::max();
    for (const char* text : {"1.5x", "2x", "2.2x", "2.5x"}) {
      const Budget budget = Budget::parse(text, "--budget");
      std::string said;
      try {
        const BudgetedMix found = budgeted_mix(table, Costs(table), scores, budget);
        EXPECT_LE(found.cost, budget.allowed(table.values()));
        EXPECT_LE(found.cost, before);
        before = found.cost;
        EXPECT_EQ(found.cost, estimate_model_size(table, found.mix).mixed_precision_bytes);
        for (const auto& group : table.groups()) {
          for (const size_t module : group)
            EXPECT_EQ(found.mix.at(table.modules()[module].path), found.mix.at(table.modules()[group[0]].path));
        }
      } catch (const UsageError& error) {
        said = error.what();
        EXPECT_NE(said.find("the least that this model takes is"), std::string::npos);
      }
    }
    EXPECT_LT(before, std::numeric_limits<int64_t>::max());
  }
}

TEST(BudgetedPolicy, GroupsAreQueriesWithKeysAndValuesAndGatesWithTheirUps) {
  const FormatTable table(request_for("llama"), parse_formats("float,int8", "--formats"));
  ASSERT_EQ(table.modules().size(), 14U);
  std::vector<size_t> sizes;
  for (const auto& group : table.groups()) sizes.push_back(group.size());
  EXPECT_EQ(sizes, (std::vector<size_t>{3, 1, 2, 1, 3, 1, 2, 1}));
}

TEST(BudgetedPolicy, WhatIsOfferedInPlaceOfTooLittleFits) {
  const FormatTable table(request_for("llama"), parse_formats("int8", "--formats"));
  const RowScore scores = made_scores(table);
  for (const char* text : {"1 bits", "31x", "5 bytes"}) {
    const std::string said =
        test::message_of([&] { budgeted_mix(table, Costs(table), scores, Budget::parse(text, "--budget")); });
    ASSERT_TRUE(said.starts_with("2: --budget=\"" + std::string(text) + "\" is ")) << said;
    const size_t begin = said.rfind("--budget=\"") + 10;
    const std::string offered = said.substr(begin, said.find('"', begin) - begin);
    EXPECT_NO_THROW(budgeted_mix(table, Costs(table), scores, Budget::parse(offered, "--budget"))) << offered;
    const size_t place = said.find("takes is ") + 9;
    const int64_t least = std::stoll(said.substr(place));
    const auto of = [](int64_t bytes) { return Budget::parse(std::to_string(bytes) + " bytes", "--budget"); };
    EXPECT_EQ(budgeted_mix(table, Costs(table), scores, of(least)).cost, least);
    EXPECT_THROW(budgeted_mix(table, Costs(table), scores, of(least - 1)), UsageError);
  }
}

// A profile of whole milliseconds: a module in floats takes 5, in int8 3, in int4-g32 2, and the rest of a forward 7.
nlohmann::json made_profile(const FormatTable& table) {
  nlohmann::json rows = {{{"precision", "bfloat16"}, {"work", "training"}, {"refused", nullptr}},
                         {{"precision", "int8+bfloat16"}, {"work", "forward"}, {"refused", "no such row"}}};
  const std::map<std::string, double> each = {{"bfloat16", 5}, {"int8+bfloat16", 3}, {"int4-g32+bfloat16", 2}};
  for (const auto& [precision, ms] : each) {
    nlohmann::json modules = {{{"module", "(rest)"}, {"ms", 7.0}}};
    for (const Candidate& module : table.modules())
      modules.push_back({{"module", "student." + module.path}, {"ms", ms}});
    const double whole = 7 + ms * static_cast<double>(table.modules().size());
    rows.push_back({{"precision", precision},
                    {"work", "forward"},
                    {"refused", nullptr},
                    {"latency_ms", {{"mean", whole}}},
                    {"modules", modules}});
  }
  return {{"rows", rows}};
}

TEST(BudgetedPolicy, GoesByMeasuredMillisecondsWhereTheBudgetIsOne) {
  const FormatTable table(request_for("llama"), parse_formats("float,int8,int4-g32", "--formats"));
  const RowScore scores = made_scores(table);
  const test::TemporaryFolder folder;
  const auto file = folder.path() / "profile.json";
  std::ofstream(file) << made_profile(table);
  const Costs costs(table, file, at::kBFloat16);
  ASSERT_EQ(table.modules().size(), 14U);  // two of which have no whole groups of 32
  EXPECT_EQ(costs.said(costs.rest()), "7.000 ms");
  for (const auto& [text, most] : {std::pair{"77 ms", 77}, {"50.5 ms", 50}, {"37 ms", 37}}) {
    const Budget budget = Budget::parse(text, "--budget");
    const BudgetedMix found = budgeted_mix(table, costs, scores, budget);
    int64_t cost = costs.rest();
    for (size_t i = 0; i < table.modules().size(); ++i)
      cost += costs.of(i, table.format_index(found.mix.at(table.modules()[i].path))).value();
    EXPECT_EQ(cost, found.cost);
    EXPECT_LE(found.cost, most * 1000000) << text;
    EXPECT_GT(found.cost, (most - 3) * 1000000) << text;  // no module less would fit
  }
  EXPECT_EQ(budgeted_mix(table, costs, scores, Budget::parse("77 ms", "--budget")).loss, 0);  // all floats
  const std::string little =
      test::message_of([&] { budgeted_mix(table, costs, scores, Budget::parse("36.9 ms", "")); });
  EXPECT_EQ(
      little,
      "2: --budget=\"36.9 ms\" is 36.900 ms, but the least that this model takes is 37.000 ms, 7.000 ms of them for "
      "what is not packed: --budget=\"37.000 ms\", or quicker --formats");
}

TEST(BudgetedPolicy, WhatNobodyMeasuredIsNotChosenAndSaid) {
  const FormatTable table(request_for("llama"), parse_formats("float,int8,int4-g32", "--formats"));
  const test::TemporaryFolder folder;
  const auto file = folder.path() / "profile.json";
  const auto costs_of = [&](const nlohmann::json& profile, at::ScalarType floats) {
    std::ofstream(file) << profile;
    return Costs(table, file, floats);
  };
  nlohmann::json profile = made_profile(table);
  const auto said = [&](at::ScalarType floats) { return test::message_of([&] { costs_of(profile, floats); }); };
  EXPECT_NE(said(at::kHalf).find("has no forward in float16, in which what is not packed is stored: limbeck profile"),
            std::string::npos);
  auto& of_int4 = profile["rows"].back();  // by name: bfloat16, int4-g32, int8
  ASSERT_EQ(of_int4["precision"], "int8+bfloat16");
  of_int4["modules"].erase(1);
  const Costs costs = costs_of(profile, at::kBFloat16);
  EXPECT_FALSE(costs.of(0, 1));
  EXPECT_TRUE(costs.of(0, 2) && costs.of(1, 1));
  profile["rows"][2]["modules"].erase(1);
  EXPECT_NE(said(at::kBFloat16).find("says nothing of " + table.modules().front().path), std::string::npos);
  profile["rows"][2].erase("modules");
  EXPECT_NE(said(at::kBFloat16).find("wanted the profile.json of a run of `limbeck profile`"), std::string::npos);
}

TEST(BudgetedPolicy, GoesByTheKlOfASweepAndNamesWhatItDidNotTry) {
  const FormatTable table(request_for("llama"), parse_formats("float,int8,int4-g32", "--formats"));
  nlohmann::json candidates = nlohmann::json::array();
  double kl = 0;
  for (const Candidate& module : table.modules()) {
    for (const char* format : {"int8", "int4-g32", "bfloat16"}) {
      candidates.push_back(
          {{"module", module.path}, {"format", format}, {"status", "measured"}, {"reason", ""}, {"kl", kl += 0.5}});
    }
  }
  const test::TemporaryFolder folder;
  const auto file = folder.path() / "sweep.json";
  const auto write = [&] { std::ofstream(file) << nlohmann::json{{"candidates", candidates}}; };
  const auto said = [&](at::ScalarType floats) {
    return test::message_of([&] { scores_of_sweep(table, file, floats); });
  };
  write();
  const RowScore scores = scores_of_sweep(table, file, at::kBFloat16);
  EXPECT_EQ(scores.modules[1].losses, (std::vector<double>{3.0, 2.0, 2.5}));  // as the table has the formats
  EXPECT_EQ(scores_of_sweep(table, file, at::kFloat).modules[1].losses[0], 0);
  EXPECT_EQ(budgeted_mix(table, Costs(table), scores, Budget::parse("2.2x", "")).predicted.at(table.modules()[1].path),
            scores.modules[1].losses[table.format_index(
                budgeted_mix(table, Costs(table), scores, Budget::parse("2.2x", "")).mix.at(table.modules()[1].path))]);
  EXPECT_NE(said(at::kHalf).find("has no KL of " + table.modules()[0].path + " in float16 (not tried)"),
            std::string::npos);
  candidates[3]["kl"] = nullptr, candidates[3]["status"] = "overflowed", candidates[3]["reason"] = "3 values";
  write();
  EXPECT_NE(said(at::kBFloat16).find(table.modules()[1].path + " in int8 (overflowed: 3 values)"), std::string::npos);
  candidates[3].erase("kl");
  write();
  EXPECT_NE(said(at::kBFloat16).find("wanted the sweep.json of a run of `limbeck sweep`"), std::string::npos);
}

TEST(Exchange, FindsTheMixThatMeasuresBestWhereScoresMislead) {
  const FormatTable table(request_for("llama"), parse_formats("float,int8", "--formats"));
  const RowScore scores = made_scores(table);
  const BudgetedMix first = budgeted_mix(table, Costs(table), scores, Budget::parse("2.5x", "--budget"));
  // Really, only the last layer's down_proj suffers.
  const std::string tender = table.modules().back().path;
  int64_t measured = 0;
  const auto kl = [&](const Mix& mix) {
    ++measured;
    return std::vector<RowDivergence>(8, {10, mix.at(tender) == "float" ? 0.0 : 10.0, 1, 1});
  };
  BudgetedMix worst = first;
  worst.cost += *table.modules().back().bytes[1] - *table.modules().back().bytes[table.format_index(worst.mix[tender])];
  worst.mix[tender] = "int8";
  const Exchanged found = exchange(table, Costs(table), scores, worst, 500, kl);
  EXPECT_EQ(found.mix.mix.at(tender), "float");
  EXPECT_EQ(found.kl_before, 1.0);
  EXPECT_EQ(found.kl_after, 0.0);
  EXPECT_LE(found.mix.cost, found.mix.allowed);
  EXPECT_EQ(found.mix.cost, table.bytes_of(found.mix.mix));
  EXPECT_EQ(measured, static_cast<int64_t>(found.tries.size()) + 1);
  EXPECT_EQ(exchange(table, Costs(table), scores, worst, 0, kl).mix.mix, worst.mix);
}

TEST(Exchange, KeepsNothingThatDrawingTheRowsAgainExplains) {
  const FormatTable table(request_for("llama"), parse_formats("float,int8,int4-g32", "--formats"));
  const RowScore scores = made_scores(table);
  const BudgetedMix first = budgeted_mix(table, Costs(table), scores, Budget::parse("2.2x", "--budget"));
  // No mix is better than another one: rows differ by themselves, and each mix by noise on each row.
  std::map<std::string, uint64_t> seeds;
  const auto noise = [&](const Mix& mix) {
    std::mt19937_64 random(seeds.emplace(spelled(table, mix), seeds.size()).first->second);
    std::normal_distribution<double> spread(0, 1);
    std::vector<RowDivergence> rows;
    for (int row = 0; row < 32; ++row) rows.push_back({10, 10.0 + row + spread(random), 1, 1});
    return rows;
  };
  const Exchanged found = exchange(table, Costs(table), scores, first, 60, noise);
  ASSERT_EQ(found.tries.size(), 60U);
  EXPECT_EQ(found.rows, 32);
  int64_t lower = 0, kept = 0;
  for (const ExchangeTry& one : found.tries) {
    lower += one.change.kl < 0 ? 1 : 0;
    kept += one.kept ? 1 : 0;
    EXPECT_EQ(one.kept, one.change.high < 0);
  }
  EXPECT_GT(lower, 10);  // what the mean alone would have taken for better
  EXPECT_LE(kept, 3);    // 2.5 % of 60 are 1.5
}

TEST(PairedChange, IsThatOfTheSameRowsWithAnIntervalAroundIt) {
  std::vector<RowDivergence> from, to;
  for (int i = 0; i < 60; ++i) {
    from.push_back({10 + i % 3, 5.0 * i, 1, 1});
    to.push_back({10 + i % 3, 5.0 * i - 0.1 * (i % 7), 1, 1});
  }
  double sum = 0, targets = 0, squares = 0;
  for (int i = 0; i < 60; ++i) sum -= 0.1 * (i % 7), targets += 10 + i % 3;
  for (int i = 0; i < 60; ++i) squares += std::pow(-0.1 * (i % 7) - sum / targets * (10 + i % 3), 2);
  const PairedChange change = paired_change(from, to);
  const double error = std::sqrt(squares) / targets;  // nothing of what rows have in common
  EXPECT_NEAR(change.kl, sum / targets, 1e-12);
  EXPECT_NEAR(change.low, change.kl - 1.96 * error, 0.3 * error);
  EXPECT_NEAR(change.high, change.kl + 1.96 * error, 0.3 * error);
  const PairedChange none = paired_change(from, from);
  EXPECT_EQ(none.low, 0);
  EXPECT_EQ(none.high, 0);
  to.back().targets = 1;
  EXPECT_THROW(paired_change(from, to), std::logic_error);
}

TEST(JointMeasure, IsTheMeanOverTargetsWithAnIntervalAroundIt) {
  std::vector<RowDivergence> rows;
  for (int i = 0; i < 50; ++i) rows.push_back({10 + i % 3, 0.1 * (1 + i % 7), 20.0, 22.0});
  const JointMeasure measure = joint_measure(rows);
  double kl = 0, targets = 0;
  for (const auto& row : rows) kl += row.kl, targets += static_cast<double>(row.targets);
  EXPECT_NEAR(measure.kl, kl / targets, 1e-15);
  EXPECT_NEAR(measure.perplexity, std::exp(50 * 22.0 / targets), 1e-9);
  EXPECT_NEAR(measure.float_perplexity, std::exp(50 * 20.0 / targets), 1e-9);
  // By the formula for a ratio: 1.96 standard errors each way, within what 2,000 draws show.
  double squares = 0;
  for (const auto& row : rows) squares += std::pow(row.kl - measure.kl * static_cast<double>(row.targets), 2);
  const double error = std::sqrt(squares) / targets;
  EXPECT_NEAR(measure.kl_low, measure.kl - 1.96 * error, 0.3 * error);
  EXPECT_NEAR(measure.kl_high, measure.kl + 1.96 * error, 0.3 * error);
  const JointMeasure equal = joint_measure(std::vector<RowDivergence>(5, {4, 2.0, 1.0, 1.0}));
  EXPECT_EQ(equal.kl_low, 0.5);
  EXPECT_EQ(equal.kl_high, 0.5);
}

TEST(Formats, ThatNoFolderHoldsTogetherAreRefused) {
  for (const char* text : {"int8,nf4", "int8,int8", "float,int9", ""}) {
    const std::string said = test::message_of([&] { parse_formats(text, "--formats"); });
    EXPECT_TRUE(said.starts_with("2: --formats")) << said;
  }
}

}  // namespace
}  // namespace limbeck::quantize
