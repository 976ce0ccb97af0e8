// Quantized weights in the models: what they weigh, what loading needs, and what the contract says of them. Values are
// held against transformers and PEFT in tests/python/test_quantized_models.py.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "modules/adapters/low_rank/low_rank.h"
#include "modules/adapters/merge/merge.h"
#include "modules/adapters/merge/merge_quantized.h"
#include "modules/adapters/new_adapter.h"
#include "modules/errors.h"
#include "modules/models/weights/save_model.h"
#include "tests/support/cpu_memory.h"
#include "tests/support/quantized_formats.h"
#include "tests/support/tiny_models.h"

namespace limbeck::models {
namespace {

namespace fs = std::filesystem;
using kernels::QuantizedFormat;

ModelRequest request_for(const fs::path& folder, std::optional<QuantizedFormat> format, at::ScalarType dtype) {
  ModelRequest request;
  request.folder = folder;
  request.dtype = dtype;
  request.random_init = true;
  if (format) request.packing = precision::pack_all(*format, "test");
  return request;
}

std::vector<std::shared_ptr<Linear>> quantized_linears(const BuiltModel& built) {
  std::vector<std::shared_ptr<Linear>> found;
  for (const auto& module : built.model->modules()) {
    auto linear = std::dynamic_pointer_cast<Linear>(module);
    if (linear && linear->is_quantized()) found.push_back(linear);
  }
  return found;
}

precision::Footprint footprint(const BuiltModel& built) {
  precision::Footprint sum;
  for (const auto& module : built.model->modules()) {
    const auto* owner = dynamic_cast<const ContractModule*>(module.get());
    if (owner == nullptr) continue;
    sum.values += owner->footprint().values;
    sum.bytes += owner->footprint().bytes;
  }
  return sum;
}

std::vector<std::string> violations(const BuiltModel& built) {
  std::vector<std::string> found;
  for (const auto& module : built.model->modules()) {
    const auto* owner = dynamic_cast<const ContractModule*>(module.get());
    if (owner == nullptr) continue;
    for (const std::string& line : owner->violations()) found.push_back(line);
  }
  return found;
}

// Large enough that weights weigh more than anything else in the process.
fs::path larger_model() {
  const fs::path folder = test::tiny_model("llama");
  nlohmann::json config = nlohmann::json::parse(std::ifstream(folder / "config.json"));
  config.update({{"hidden_size", 512},
                 {"intermediate_size", 1024},
                 {"num_hidden_layers", 6},
                 {"head_dim", 64},
                 {"num_attention_heads", 8},
                 {"num_key_value_heads", 8},
                 {"vocab_size", 101}});
  std::ofstream(folder / "config.json") << config.dump();
  return folder;
}

TEST(QuantizedModel, LinearWeightsOfAttentionAndMlpArePackedAndNothingElse) {
  for (const std::string& family : test::tiny_families()) {
    SCOPED_TRACE(family);
    const fs::path folder = test::tiny_model(family);
    for (const QuantizedFormat format : test::every_format()) {
      const BuiltModel built = load_model(request_for(folder, format, at::kBFloat16));
      EXPECT_TRUE(violations(built).empty());
      EXPECT_FALSE(quantized_linears(built).empty() && built.config.architecture.experts.count == 0);
      for (const auto& module : built.model->modules()) {
        const auto* linear = dynamic_cast<const Linear*>(module.get());
        if (linear == nullptr) continue;
        const bool wanted = linear->role() == Role::kAttention || linear->role() == Role::kMlp;
        EXPECT_EQ(linear->is_quantized(), wanted) << linear->path();
        EXPECT_EQ(linear->has_parameter("weight"), !wanted && !linear->is_tied()) << linear->path();
        EXPECT_EQ(precision::storage_name(linear->precision()), wanted ? kernels::format_name(format) : "bfloat16");
      }
      const auto plain = footprint(load_model(request_for(folder, std::nullopt, at::kBFloat16)));
      EXPECT_EQ(footprint(built).values, plain.values);
      EXPECT_LT(footprint(built).bytes, plain.bytes);
      const auto on_meta = footprint(build_on_meta(request_for(folder, format, at::kBFloat16)));
      EXPECT_EQ(on_meta.values, plain.values);
      EXPECT_EQ(on_meta.bytes, footprint(built).bytes);
    }
  }
}

TEST(QuantizedModel, Nf4TakesLessThanThreeTenthsOfFloat16) {
  const BuiltModel built = load_model(request_for(larger_model(), QuantizedFormat::kNf4, at::kHalf));
  int64_t packed = 0, values = 0;
  for (const auto& linear : quantized_linears(built)) {
    packed += linear->packed_weight("weight")->bytes();
    values += linear->packed_weight("weight")->values();
  }
  std::cout << "nf4: " << packed << " bytes for " << values << " weights, " << 0.5 * packed / values
            << " of float16's\n";
  EXPECT_GT(values, 10'000'000);
  EXPECT_LE(packed, 0.3 * 2 * values);
}

TEST(QuantizedModel, MergingHoldsOneModuleInFloatAtATime) {
  BuiltModel quantized = load_model(request_for(larger_model(), QuantizedFormat::kNf4Double, at::kBFloat16));
  BuiltModel plain = load_model(request_for(larger_model(), std::nullopt, at::kBFloat16));
  adapters::NewAdapter lora;
  lora.config.rank = 4, lora.config.alpha = 8;
  ASSERT_EQ(adapters::create_adapter(quantized, lora), 6 * 7);
  const int64_t largest = 512 * 1024 * 4;
  const test::CpuMemory memory;
  EXPECT_EQ(adapters::merge_quantized_adapter(quantized, plain, adapters::MergeInto::kRequantized).modules, 6 * 7);
  EXPECT_LE(memory.peak(), 4 * largest);  // the sum, what is quantized again of it, and what that takes
  EXPECT_LT(memory.peak(), footprint(plain).bytes / 3);
  EXPECT_EQ(memory.live(), 0);
}

TEST(QuantizedModel, LoadingNeverHoldsTheModelInFloat) {
  ModelRequest request = request_for(larger_model(), std::nullopt, at::kFloat);
  const fs::path folder = request.folder / "saved";
  const BuiltModel whole = load_model(request);
  save_model(whole, folder);
  const int64_t all = footprint(whole).bytes;
  for (const QuantizedFormat format : test::every_format()) {
    ModelRequest quantized = request_for(folder, format, at::kFloat);
    quantized.random_init = false;
    const test::CpuMemory memory;
    const BuiltModel built = load_model(quantized);
    const int64_t kept = footprint(built).bytes, largest = 512 * 1024 * 4;
    std::cout << kernels::format_name(format) << ": peak " << memory.peak() << ", kept " << kept << ", in float32 "
              << all << "\n";
    EXPECT_EQ(built.report.packed_tensors, 6 * 7);
    EXPECT_GE(memory.live(), kept);
    EXPECT_LE(memory.live(), kept + kept / 20);  // and rope tables
    EXPECT_LE(memory.peak(), memory.live() + 3 * largest);
    EXPECT_LT(memory.peak(), all / 2);
  }
}

TEST(QuantizedModel, RandomWeightsAreTheCodesOfThoseOfAFloatModel) {
  const fs::path folder = test::tiny_model("gpt2");
  const BuiltModel plain = load_model(request_for(folder, std::nullopt, at::kFloat));
  const BuiltModel quantized = load_model(request_for(folder, QuantizedFormat::kInt4, at::kFloat));
  const auto floats = plain.model->named_parameters();
  for (const auto& linear : quantized_linears(quantized)) {
    const at::Tensor& weight = floats[linear->path().substr(std::string("model.").size()) + ".weight"];
    EXPECT_TRUE(*linear->packed_weight("weight") == precision::PackedWeight(weight, QuantizedFormat::kInt4, at::kCPU));
  }
}

TEST(QuantizedModel, WhatIsSavedIsFloatAndGivesTheSameLogits) {
  for (const std::string family : {"llama", "gpt2"}) {
    const BuiltModel built = load_model(request_for(test::tiny_model(family), QuantizedFormat::kNf4, at::kFloat));
    const fs::path folder = built.config.folder / "saved";
    save_model(built, folder);
    ModelRequest request = request_for(folder, std::nullopt, at::kFloat);
    request.random_init = false;
    const BuiltModel loaded = load_model(request);
    ModelInput input;
    input.ids = at::arange(0, 24, at::kLong).view({2, 12});
    const at::NoGradGuard no_gradient;
    const at::Tensor ours = built.model->head(built.model->encode(input).last);
    const at::Tensor theirs = loaded.model->head(loaded.model->encode(input).last);
    EXPECT_LT((ours - theirs).abs().max().item<double>(), 1e-5 * theirs.abs().max().item<double>());
  }
}

TEST(QuantizedContract, AWeightOfAnotherFormatShapeOrDeviceIsNamed) {
  const BuiltModel built = load_model(request_for(test::tiny_model("llama"), QuantizedFormat::kNf4, at::kFloat));
  const auto linear = quantized_linears(built).front();
  const int64_t out = linear->out_features(), in = linear->in_features();
  const auto put = [&](precision::PackedWeight weight) {
    linear->replace_packed_weight("weight", std::move(weight));
    const auto found = violations(built);
    EXPECT_FALSE(found.empty());
    return found.empty() ? "" : found.front();
  };
  const auto names = [&](const std::string& line, const char* part) {
    EXPECT_NE(line.find("[" + linear->path() + "]"), std::string::npos) << line;
    EXPECT_NE(line.find(part), std::string::npos) << line;
  };
  names(put({QuantizedFormat::kInt8, out, in, at::kCPU}), "stored in int8, wanted nf4");
  names(put({QuantizedFormat::kNf4, out, in + 2, at::kCPU}), "codes of the nf4 weight are Byte");
  names(put({QuantizedFormat::kNf4, out, in, at::kMeta}), "on meta, wanted cpu");
}

TEST(QuantizedContract, ARuleKeepsAModuleOutOfIt) {
  ModelRequest request = request_for(test::tiny_model("llama"), QuantizedFormat::kNf4, at::kBFloat16);
  request.rules = {precision::parse_rule("model.layers.0.** float32", "test")};
  const BuiltModel built = load_model(request);
  for (const auto& module : built.model->modules()) {
    const auto* linear = dynamic_cast<const Linear*>(module.get());
    if (linear == nullptr || linear->role() == Role::kHead) continue;
    EXPECT_EQ(linear->is_quantized(), linear->path().starts_with("model.layers.1.")) << linear->path();
  }
}

TEST(QuantizedContract, AdaptersAreFloat32BesideIt) {
  ModelRequest request = request_for(test::tiny_model("llama"), QuantizedFormat::kNf4, at::kBFloat16);
  request.rules = {precision::parse_rule("model.layers.1.self_attn.q_proj.other bfloat16", "rule 1")};
  BuiltModel built;
  EXPECT_THROW(built = load_model(request), UsageError);  // matches nothing as long as no such adapter is there
  request.rules.clear();
  built = load_model(request);
  const auto linear = quantized_linears(built).front();
  const Scope scope{built.policy.get(), linear->path() + ".default", std::nullopt, false};
  const adapters::LowRank adapter(scope, linear->precision(),
                                  {.in = linear->in_features(), .out = linear->out_features(), .rank = 2});
  const precision::Precision& p = adapter.precision();
  EXPECT_EQ(p.storage, at::kFloat);
  EXPECT_EQ(p.compute, at::kFloat);
  EXPECT_EQ(p.input, at::kBFloat16);
  EXPECT_EQ(p.output, at::kBFloat16);
  EXPECT_FALSE(p.quantized.has_value());
  EXPECT_EQ(p.source, "nf4 host (test)");

  const precision::PrecisionPolicy ruled(at::kBFloat16, at::kCPU, "test",
                                         {precision::parse_rule("model.**.default float16", "rule 1")});
  try {
    ruled.resolve("model.layers.0.self_attn.q_proj.default", Role::kAdapter, &linear->precision());
    FAIL();
  } catch (const UsageError& error) {
    EXPECT_NE(std::string(error.what()).find("belongs to a nf4 module and is float32 beside it"), std::string::npos);
  }
}

TEST(QuantizedContract, AnAdapterIsNotMergedIntoCodes) {
  BuiltModel built = load_model(request_for(test::tiny_model("llama"), QuantizedFormat::kInt8, at::kFloat));
  const auto linear = quantized_linears(built).front();
  const Scope scope{built.policy.get(), linear->path() + ".default", std::nullopt, false};
  linear->add_adapter(
      "default", std::make_shared<adapters::LowRank>(
                     scope, linear->precision(),
                     adapters::LowRankShape{.in = linear->in_features(), .out = linear->out_features(), .rank = 2}));
  linear->use_adapter("default");
  try {
    adapters::merge_adapter(built);
    FAIL();
  } catch (const UsageError& error) {
    EXPECT_NE(std::string(error.what()).find("[" + linear->path() + "] stores its weight in int8"), std::string::npos);
  }
  EXPECT_NE(linear->adapter(), nullptr);
}

TEST(QuantizedContract, Float16ActivationsAreRefusedForTrainingBeforeAnythingIsRead) {
  ModelRequest request = request_for(test::tiny_model("llama"), QuantizedFormat::kNf4, at::kHalf);
  request.random_init = false;  // there are no weights in the folder: reading any would be another error
  request.for_training = true;
  EXPECT_THROW(build_on_meta(request), UsageError);
  request.for_training = false;
  EXPECT_NO_THROW(build_on_meta(request));
}

}  // namespace
}  // namespace limbeck::models
