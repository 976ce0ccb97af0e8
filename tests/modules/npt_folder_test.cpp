#include "modules/adapters/folder/npt_folder.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include <nlohmann/json.hpp>

#include "modules/adapters/merge/merge.h"
#include "modules/adapters/npt/consolidate.h"
#include "tests/modules/weights_files.h"
#include "tests/support/npt_models.h"
#include "tests/support/tiny_models.h"

namespace limbeck::adapters {
namespace {

using models::BuiltModel;
using test::add_scattered_npt;
using test::frozen_model;
using test::npt_batch;
using test::npt_options;

AdapterRequest request_for(const std::filesystem::path& folder) {
  AdapterRequest request;
  request.folder = folder;
  return request;
}

TEST(NptFolder, WhatIsSavedLoadsToTheSameBitsAndLogits) {
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    for (NptOptions options : npt_options()) {
      options.curve = ModulationCurve::kLegacy;
      options.scale = 0.3;
      const test::TemporaryFolder place;
      BuiltModel built = frozen_model("phi3", dtype), again = frozen_model("phi3", dtype);
      add_scattered_npt(built, options, "mine");
      save_npt(built, "mine", place / "adapter");
      const LoadedAdapter loaded = load_adapter(again, request_for(place / "adapter"));
      EXPECT_EQ(kind_name(loaded.config), "npt");
      EXPECT_EQ(loaded.modules, 2);
      EXPECT_EQ(loaded.cast_tensors, 0);
      const auto before = npt_weights(built, "mine"), after = npt_weights(again, "default");
      ASSERT_EQ(before.size(), after.size());
      ASSERT_EQ(before.size(), loaded.weights.size());
      for (size_t i = 0; i < before.size(); ++i) {
        EXPECT_EQ(before[i].name, after[i].name);
        EXPECT_TRUE(before[i].parameter.equal(after[i].parameter)) << before[i].name;
      }
      EXPECT_TRUE(test::logits_of(built).equal(test::logits_of(again)));
      EXPECT_EQ(npt_of(again, "default")[0]->parameter("A_proj").requires_grad(), false);
    }
  }
}

TEST(NptFolder, FilesAreInTheFormOfPeftFolders) {
  const test::TemporaryFolder place;
  BuiltModel built = frozen_model("llama");
  create_npt(built, npt_options()[2], "a");
  save_npt(built, "a", place / "adapter");
  const auto config = nlohmann::json::parse(test::read_bytes(place / "adapter/adapter_config.json"));
  const nlohmann::json wanted{{"peft_type", "NPT"},
                              {"kind", "delta"},
                              {"modulation", "both"},
                              {"modulation_curve", "neutral"},
                              {"r", 3},
                              {"scale", 0.1},
                              {"base_model_name_or_path", built.config.folder.string()}};
  EXPECT_EQ(config, wanted);
  const io::SafetensorsFile file(place / "adapter/adapter_model.safetensors");
  EXPECT_EQ(file.entries().size(), 6u);
  const auto* entry = file.find("base_model.model.model.layers.1.npt.B_times.weight");
  ASSERT_NE(entry, nullptr);
  EXPECT_EQ(entry->shape, (std::vector<int64_t>{48, 3}));
  test::expect_refusal<UsageError>([&] { save_npt(built, "a", place / "adapter"); }, ExitCode::kUsage,
                                   {"is there already"});
  test::expect_refusal<UsageError>([&] { save_npt(built, "b", place / "other"); }, ExitCode::kUsage,
                                   {"has no NPT adapter b"});
  EXPECT_FALSE(std::filesystem::exists(place / "other"));
}

TEST(NptFolder, OnMetaTheFilesAreCheckedAndNoValueIsRead) {
  const test::TemporaryFolder place;
  BuiltModel built = frozen_model("llama");
  create_npt(built, npt_options()[3], "a");
  save_npt(built, "a", place / "adapter");
  models::ModelRequest request;
  request.folder = test::tiny_model("llama");
  request.dtype = at::kBFloat16;
  BuiltModel meta = models::build_on_meta(request);
  EXPECT_EQ(load_npt(meta, request_for(place / "adapter")).cast_tensors, 6);
  EXPECT_TRUE(npt_of(meta, "default")[0]->parameter("B_f").is_meta());
}

TEST(NptFolder, ARefusedFolderLeavesTheModelAsItWas) {
  const test::TemporaryFolder place;
  BuiltModel built = frozen_model("llama");
  add_scattered_npt(built, npt_options()[0], "a", 1e6);  // past float16's 65504
  save_npt(built, "a", place / "adapter");
  BuiltModel half = frozen_model("llama", at::kHalf);
  const size_t parameters = half.model->parameters().size();
  test::expect_refusal<WeightsError>([&] { load_npt(half, request_for(place / "adapter")); }, ExitCode::kWeights,
                                     {"layers.0.npt.A_proj.weight is not finite in float16"});
  EXPECT_EQ(half.model->parameters().size(), parameters);
  EXPECT_EQ(half.model->layers()[0]->adapter(), nullptr);
}

TEST(NptFolder, MergingIsRefused) {
  BuiltModel built = frozen_model("llama");
  create_npt(built, {}, "a");
  test::expect_refusal<UsageError>([&] { merge_adapter(built); }, ExitCode::kUsage,
                                   {"[model.layers.0]", "cannot be merged"});
}

struct Consolidation {
  BuiltModel built;
  NptMeans means;
  std::vector<at::Tensor> before, change;  // W_g, and what S1's formula adds to it, in float64
};

// The means of v_f and v_m are taken here token by token, in float64, over what the mask leaves.
Consolidation consolidation_of(const std::string& family, at::ScalarType dtype, double alpha) {
  Consolidation c{frozen_model(family, dtype), {}, {}, {}};
  add_scattered_npt(c.built, npt_options()[3], "a", 2.0);
  const at::NoGradGuard no_gradient;
  models::Taps taps;
  taps.keep_adapted = true;
  models::ModelInput input = npt_batch();
  input.taps = &taps;
  c.built.model->encode(input);
  c.means.add(taps, input.attention_mask);
  c.means.add(taps, input.attention_mask);  // a second batch, the same: the mean stays
  const at::Tensor valid = input.attention_mask->ne(0);
  for (size_t i = 0; i < 2; ++i) {
    const Npt& adapter = *npt_of(c.built, "a")[i];
    const at::Tensor low = taps.adapted[i].low_btr.to(at::kDouble);
    const auto mean = [&](const char* parameter) {
      return at::matmul(low, adapter.parameter(parameter).to(at::kDouble).t()).index({valid}).mean(0);
    };
    const models::Linear& gate = *c.built.model->layers()[i]->gated_mlp().gate_module();
    c.before.push_back(gate.weight().detach().clone().to(at::kDouble));
    c.change.push_back(at::outer(mean("B_f"), mean("B_m")) * alpha);
  }
  return c;
}

TEST(NptConsolidation, AddsTheOuterProductOfTheMeansToTheGateRows) {
  for (const std::string family : {"llama", "phi3"}) {
    for (const auto dtype : {at::kDouble, at::kFloat}) {
      Consolidation c = consolidation_of(family, dtype, 0.1);
      EXPECT_EQ(c.means.tokens(), 2 * 21);
      const ConsolidationReport report = consolidate_npt(c.built, "a", c.means);
      EXPECT_EQ(report.layers, 2);
      EXPECT_LT(report.worst_loss, dtype == at::kDouble ? 1e-12 : 1e-3);
      for (size_t i = 0; i < 2; ++i) {
        const models::Linear& gate = *c.built.model->layers()[i]->gated_mlp().gate_module();
        const at::Tensor after = gate.weight().detach().to(at::kDouble);
        const at::Tensor changed = after.narrow(0, 0, 48) - c.before[i].narrow(0, 0, 48);
        const double size = c.change[i].norm().item<double>();
        EXPECT_GT(size, 1e-3);
        // float32: one rounding of weights around 0.02 plus the change
        EXPECT_LT((changed - c.change[i]).norm().item<double>() / size, dtype == at::kDouble ? 1e-12 : 1e-4);
        EXPECT_TRUE(after.narrow(0, 48, after.size(0) - 48).equal(c.before[i].narrow(0, 48, after.size(0) - 48)));
      }
    }
  }
}

TEST(NptConsolidation, SaysHowMuchOfTheChangeRoundingTook) {
  Consolidation c = consolidation_of("llama", at::kBFloat16, 1e-9);
  const ConsolidationReport report = consolidate_npt(c.built, "a", c.means, 1e-9);
  EXPECT_NEAR(report.worst_loss, 1, 0.05);  // far below a unit in the last place of the weights
  EXPECT_TRUE(report.worst_layer.starts_with("model.layers."));
}

TEST(NptConsolidation, WhatCannotBeConsolidatedIsRefusedAndNothingChanges) {
  const auto refused = [](BuiltModel& built, const std::string& name, const NptMeans& means, const std::string& text) {
    test::expect_refusal<UsageError>([&] { consolidate_npt(built, name, means); }, ExitCode::kUsage, {text});
  };
  Consolidation c = consolidation_of("llama", at::kFloat, 0.1);
  refused(c.built, "a", NptMeans(), "means of 0 tokens");
  refused(c.built, "b", c.means, "has no NPT adapter b");
  create_npt(c.built, npt_options(5)[3], "wide");
  refused(c.built, "wide", c.means, "means of rank 3, but [model.layers.0.wide] has rank 5");
  create_npt(c.built, npt_options()[0], "delta");
  refused(c.built, "delta", c.means, "adapter delta is of kind delta");
  test::expect_refusal<ContractError>([&] { c.means.add(models::Taps(), std::nullopt); }, ExitCode::kUsage,
                                      {"set keep_adapted"});
  models::Taps taps;
  taps.adapted.resize(2);
  for (auto& kept : taps.adapted) kept.low_btr = at::full({1, 4, 3}, std::nan(""), at::kFloat);
  NptMeans not_numbers;
  not_numbers.add(taps, std::nullopt);
  test::expect_refusal<NumericError>([&] { consolidate_npt(c.built, "a", not_numbers); }, ExitCode::kNumeric,
                                     {"[model.layers.0.a]", "of these 4 tokens is not finite"});
  const at::Tensor first = c.built.model->layers()[0]->gated_mlp().gate_module()->weight();
  EXPECT_TRUE(first.to(at::kDouble).equal(c.before[0]));
}

TEST(NptConsolidation, AQuantizedBaseIsRefused) {
  const Consolidation c = consolidation_of("llama", at::kFloat, 0.1);
  BuiltModel quantized = test::quantized_model("llama", kernels::QuantizedFormat::kInt8, at::kFloat);
  create_npt(quantized, npt_options()[3], "a");
  test::expect_refusal<ContractError>([&] { consolidate_npt(quantized, "a", c.means); }, ExitCode::kUsage,
                                      {"[model.layers.0.mlp.gate_proj] is stored in int8", "before quantizing it"});
}

}  // namespace
}  // namespace limbeck::adapters
