// ResNet-BK's mixer in a model: pieces of a text that go on from a cache, what it keeps of the tokens before, who sees
// whom, and its casts. Values and gradients are held against PyTorch by tests/python.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "kernels/resolvent/resolvent.h"
#include "modules/models/network/resolvent_mixer.h"
#include "modules/models/weights/load_model.h"
#include "modules/precision/casts.h"
#include "tests/support/tiny_models.h"

namespace limbeck::models {
namespace {

namespace fs = std::filesystem;

fs::path folder_of(const nlohmann::json& changes) {
  const fs::path folder = test::tiny_model("resnet_bk");
  nlohmann::json config = nlohmann::json::parse(std::ifstream(folder / "config.json"));
  config.update(changes);
  std::ofstream(folder / "config.json") << config.dump();
  return folder;
}

// With weights so large that every token matters to those behind it.
BuiltModel loud(at::ScalarType dtype, const nlohmann::json& changes = nlohmann::json::object()) {
  ModelRequest request;
  request.folder = folder_of(changes);
  request.dtype = dtype;
  request.random_init = true;
  BuiltModel built = load_model(request);
  const at::NoGradGuard no_gradient;
  for (auto& entry : built.model->named_parameters()) {
    if (entry.value().dim() > 1) entry.value().mul_(15);
  }
  return built;
}

// [2, 40]; the second row begins with padding.
ModelInput padded_ids() {
  ModelInput input;
  input.ids = (at::arange(80, at::kLong) * 37 % 89 + 3).view({2, 40});
  at::Tensor mask = at::ones({2, 40}, at::kLong);
  mask[1].narrow(0, 0, 5).zero_();
  input.attention_mask = mask;
  input.position_ids = (mask.cumsum(1) - 1).clamp_min(0);
  return input;
}

at::Tensor in_pieces(const Transformer& model, const ModelInput& whole, const std::vector<int64_t>& lengths) {
  TokenCache cache(model.architecture().layers, whole.ids.size(0), whole.ids.size(1));
  std::vector<at::Tensor> found;
  int64_t begin = 0;
  for (const int64_t length : lengths) {
    ModelInput piece;
    piece.ids = whole.ids.narrow(1, begin, length);
    piece.attention_mask = whole.attention_mask->narrow(1, begin, length);
    piece.position_ids = whole.position_ids->narrow(1, begin, length);
    piece.cache = &cache;
    found.push_back(model.encode(piece).last);
    begin += length;
  }
  return at::cat(found, 1);
}

const std::vector<std::vector<int64_t>>& cuts() {
  static const std::vector<std::vector<int64_t>> all = {{40}, {7, 1, 1, 1, 30}, std::vector<int64_t>(40, 1)};
  return all;
}

// What the biases of v are before training, of the first layer.
std::vector<float> first_biases(const nlohmann::json& changes) {
  const BuiltModel built = loud(at::kFloat, changes);
  const at::Tensor bias = built.model->named_parameters()["layers.0.bk.v_proj.bias"].contiguous();
  return {bias.const_data_ptr<float>(), bias.const_data_ptr<float>() + bias.numel()};
}

TEST(ResNetBk, BiasesBeginSpreadOverTheirMatrices) {
  EXPECT_EQ(first_biases({{"bk_heads", 3}}), (std::vector<float>{0, 0, 0}));
  EXPECT_EQ(first_biases({{"bk_heads", 3}, {"bk_bias_low", 0.5}}), (std::vector<float>{0.5F, 0.5F, 0.5F}));
  EXPECT_EQ(first_biases({{"bk_heads", 5}, {"bk_bias_low", 0.5}, {"bk_bias_high", 2.5}}),
            (std::vector<float>{0.5F, 1, 1.5F, 2, 2.5F}));
  EXPECT_EQ(first_biases({{"bk_heads", 1}, {"bk_bias_low", 0.5}, {"bk_bias_high", 2.5}}), (std::vector<float>{1.5F}));
}

TEST(ResNetBk, BiasesBeginWithinTheBoundOfThePotential) {
  const auto refusal = [](const nlohmann::json& changes) {
    try {
      loud(at::kFloat, changes);
    } catch (const WeightsError& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_NE(refusal({{"bk_bias_low", -4}}).find("\"bk_bias_low\""), std::string::npos);
  EXPECT_NE(refusal({{"bk_bias_low", 1}, {"bk_bias_high", 0.5}}).find("\"bk_bias_high\""), std::string::npos);
}

// The recurrence itself goes on to the bit, whatever the pieces, padding and the type of the stream.
TEST(ResNetBk, TheResolventGoesOnFromTheCacheWithTheBitsOfOneCall) {
  const at::NoGradGuard no_gradient;
  Architecture a;
  a.resolvent = {.heads = 3, .height = 0.2};
  for (const auto& [dtype, int8] : std::vector<std::pair<at::ScalarType, bool>>{{at::kFloat, false},
                                                                                {at::kBFloat16, false},
                                                                                {at::kHalf, false},
                                                                                {at::kDouble, false},
                                                                                {at::kFloat, true},
                                                                                {at::kBFloat16, true}}) {
    a.resolvent.int8 = int8;
    const precision::PrecisionPolicy policy(dtype, c10::kCPU, "the test");
    const ResolventCore core({&policy, "core", {}}, a, /*layer=*/0);
    core.parameter("scale").fill_(0.7);
    const at::Tensor v = (at::arange(240, at::kDouble) * 1.37).sin().mul(4).view({2, 40, 3}).to(dtype);
    LayerInput whole;
    whole.segments_q = padded_ids().attention_mask->to(at::kInt);
    const at::Tensor wanted = core.forward(v, whole);
    for (const auto& lengths : cuts()) {
      TokenCache cache(/*layers=*/1, /*batch=*/2, /*capacity=*/40);
      std::vector<at::Tensor> found;
      for (const int64_t length : lengths) {
        LayerInput piece;
        piece.cache = &cache;
        piece.segments_q = whole.segments_q->narrow(1, cache.length(), length);
        found.push_back(core.forward(v.narrow(1, cache.length(), length), piece));
        cache.advance(length);
      }
      EXPECT_TRUE(at::cat(found, 1).equal(wanted))
          << dtype << (int8 ? " codes in " : " in ") << lengths.size() << " pieces";
    }
  }
}

// A product of other many rows adds up in another order: a few roundings of the widest sum, none where halves hide
// them.
TEST(ResNetBk, PiecesGoOnFromTheCache) {
  const at::NoGradGuard no_gradient;
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble}) {
    const BuiltModel built = loud(dtype);
    const at::Tensor whole = built.model->encode(padded_ids()).last.to(at::kDouble);
    const double bar = dtype == at::kDouble ? 1e-14 : dtype == at::kFloat ? 5e-6 : 2e-2;
    for (const auto& lengths : cuts()) {
      const double error =
          (in_pieces(*built.model, padded_ids(), lengths).to(at::kDouble) - whole).abs().max().item<double>();
      EXPECT_LE(error, bar * whole.abs().max().item<double>()) << dtype << " in " << lengths.size() << " pieces";
      EXPECT_TRUE(error == 0 || lengths.size() > 1) << dtype;
    }
  }
}

TEST(ResNetBk, ACausalOneSeesTheTokensBeforeAndABidirectionalOneBothSides) {
  const at::NoGradGuard no_gradient;
  for (const bool causal : {true, false}) {
    const BuiltModel built =
        loud(at::kFloat, {{"architectures", {causal ? "ResNetBKForCausalLM" : "ResNetBKForMaskedLM"}}});
    ModelInput input;
    input.ids = padded_ids().ids;
    const at::Tensor before = built.model->head(built.model->encode(input).last);
    input.ids = input.ids.clone();
    input.ids.select(1, 20).copy_(at::full({2}, 5, at::kLong));
    const at::Tensor changed = built.model->head(built.model->encode(input).last).ne(before).any(2).any(0);
    for (int64_t t = 0; t < 20; ++t) EXPECT_TRUE(!causal || !changed[t].item<bool>()) << t;
    for (int64_t t = 12; t < 28; ++t) EXPECT_EQ(changed[t].item<bool>(), !causal || t >= 20) << t;
  }
}

TEST(ResNetBk, HalfTypesAreWidenedByNamedCastsAlone) {
  const at::NoGradGuard no_gradient;
  const BuiltModel built = loud(at::kBFloat16);
  const precision::CastLog log;
  built.model->encode(padded_ids());
  const std::string core = "model.layers.1.bk.core";
  EXPECT_TRUE(log.casts().contains({core + " (potential)", at::kBFloat16, at::kFloat}));
  EXPECT_TRUE(log.casts().contains({core + " (resolvent)", at::kFloat, at::kDouble}));
  EXPECT_TRUE(log.casts().contains({core + " (features)", at::kFloat, at::kBFloat16}));
}

// In the place of v and of both parts of G stands what rounding in float64 has, or half a step from it.
TEST(ResNetBk, Int8ActivationsAreRoundedTokenByToken) {
  const at::NoGradGuard no_gradient;
  Architecture a;
  a.resolvent = {.heads = 6, .height = 0.4, .int8 = true};
  const precision::PrecisionPolicy policy(at::kFloat, c10::kCPU, "the test");
  const ResolventCore core({&policy, "core", {}}, a, /*layer=*/0);
  core.parameter("scale").fill_(1);
  const at::Tensor v = (at::arange(240, at::kFloat) * 1.37f).sin().mul(4).view({2, 20, 6});
  const precision::CastLog log;
  const at::Tensor got = core.forward(v, {}).view({2, 20, 6, 2}).to(at::kDouble);
  EXPECT_TRUE(log.casts().contains({"core (codes)", at::kFloat, at::kChar}));
  const auto step = [](const at::Tensor& rows) { return rows.abs().amax(-1, true) / 127.0; };
  const at::Tensor clamped = v.to(at::kDouble).clamp(-3, 3);
  const at::Tensor seen = (clamped / step(clamped)).round() * step(clamped);
  const at::Tensor beside = at::ones({19}, at::kDouble).expand({2, 6, 19});
  const at::Tensor green =
      kernels::resolvent(seen.transpose(1, 2) - 2, beside, beside, at::tensor({0.0, 0.4}, at::kDouble)).transpose(1, 2);
  for (const int64_t part : {0, 1}) {
    const at::Tensor exact = green.select(-1, part), error = (got.select(-1, part) - exact).abs();
    EXPECT_LE((error / step(exact)).max().item<double>(), 0.5 + 1e-3) << part;
    EXPECT_GT((error / step(exact)).max().item<double>(), 0.3) << part;
  }
}

std::string refusal(const std::function<void()>& work) {
  try {
    work();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

TEST(ResNetBk, WhatItCannotDoIsRefusedInWords) {
  ModelRequest request;
  request.device = c10::kCPU;
  request.folder = folder_of({{"causal", false}});
  EXPECT_NE(refusal([&] { build_on_meta(request); }).find("\"causal\" = false is not supported, wanted true"),
            std::string::npos);
  const BuiltModel both_sides = loud(at::kFloat, {{"architectures", {"ResNetBKForMaskedLM"}}});
  EXPECT_NE(refusal([&] { in_pieces(*both_sides.model, padded_ids(), {40}); }).find("cannot continue a text"),
            std::string::npos);
}

}  // namespace
}  // namespace limbeck::models
