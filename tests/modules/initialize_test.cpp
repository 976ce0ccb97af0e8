#include "modules/models/weights/initialize.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/operator/cuda_library.h"
#include "modules/errors.h"
#include "modules/models/weights/load_model.h"
#include "tests/support/tiny_models.h"

namespace limbeck::models {
namespace {

BuiltModel fresh(const std::string& family, uint64_t seed, const std::string& root = "student",
                 at::ScalarType dtype = at::kFloat) {
  ModelRequest request;
  request.folder = test::tiny_model(family);
  request.root = root;
  request.dtype = dtype;
  request.random_init = true;
  request.seed = seed;
  return load_model(request);
}

TEST(Initialize, EveryParameterOfEveryFamilyIsFilledAndFinite) {
  for (const std::string& family : test::tiny_families()) {
    const BuiltModel built = fresh(family, 1);
    EXPECT_FALSE(built.report.bindings.empty());
    for (const auto& entry : built.model->named_parameters()) {
      const at::Tensor& p = entry.value();
      ASSERT_TRUE(p.isfinite().all().item<bool>()) << family << " " << entry.key();
      const bool neutral = p.eq(0).all().item<bool>() || p.eq(1).all().item<bool>();
      EXPECT_EQ(neutral, p.dim() == 1 || entry.key().ends_with("bias")) << family << " " << entry.key();
      EXPECT_LT(p.abs().max().item<double>(), 1.01) << family << " " << entry.key();
    }
  }
}

TEST(Initialize, SeedAndPathDecideAlone) {
  const auto a = fresh("llama", 7).model->named_parameters(), b = fresh("llama", 7).model->named_parameters();
  const auto other_seed = fresh("llama", 8).model->named_parameters();
  const auto other_root = fresh("llama", 7, "teacher").model->named_parameters();
  for (const auto& entry : a) {
    EXPECT_TRUE(entry.value().equal(b[entry.key()])) << entry.key();
    if (entry.value().dim() == 1) continue;
    EXPECT_FALSE(entry.value().equal(other_seed[entry.key()])) << entry.key();
    EXPECT_FALSE(entry.value().equal(other_root[entry.key()])) << entry.key();
  }
  EXPECT_FALSE(a["layers.0.self_attn.q_proj.weight"].equal(a["layers.1.self_attn.q_proj.weight"]));
}

TEST(Initialize, HalfWeightsAreTheRoundedFloat32Ones) {
  const auto wide = fresh("qwen3_moe", 3).model->named_parameters();
  for (const at::ScalarType dtype : {at::kBFloat16, at::kHalf}) {
    for (const auto& entry : fresh("qwen3_moe", 3, "student", dtype).model->named_parameters()) {
      EXPECT_EQ(entry.value().scalar_type(), dtype);
      EXPECT_TRUE(entry.value().equal(wide[entry.key()].to(dtype))) << entry.key();
    }
  }
}

TEST(Initialize, NormsAreNeutralAndThePaddingRowIsZero) {
  const auto gemma = fresh("gemma2", 1).model->named_parameters();
  EXPECT_TRUE(gemma["norm.weight"].eq(0).all().item<bool>());  // it multiplies by 1 + weight
  const auto bert = fresh("bert", 1).model->named_parameters();
  EXPECT_TRUE(bert["embed_norm.weight"].eq(1).all().item<bool>());
  EXPECT_TRUE(bert["embed_norm.bias"].eq(0).all().item<bool>());
  EXPECT_TRUE(bert["embed_tokens.weight"][0].eq(0).all().item<bool>());
  EXPECT_FALSE(bert["embed_tokens.weight"][1].eq(0).any().item<bool>());
  EXPECT_FALSE(bert["embed_token_types.weight"][0].eq(0).any().item<bool>());
}

TEST(Initialize, DevicesThatCannotHoldWeightsAreRefusedWithTheWayOut) {
  ModelRequest request;
  request.folder = test::tiny_model("llama");
  request.random_init = true;
  const auto message = [&](const char* device) {
    request.device = c10::Device(device);
    try {
      load_model(request);
    } catch (const ContractError& error) {
      return std::string(error.what());
    }
    return std::string("nothing was thrown");
  };
  EXPECT_NE(message("meta").find("device meta for [model]: wanted cpu or cuda"), std::string::npos);
  if (kernels::cuda_available()) GTEST_SKIP() << "this machine has a GPU";
  EXPECT_NE(message("cuda:0").find("device cuda:0 for [model]: no GPU can be used"), std::string::npos);
}

TEST(Initialize, Gpt2sResidualProjectionsStartSmaller) {
  const auto gpt2 = fresh("gpt2", 1).model->named_parameters();
  const auto deviation = [&](const std::string& name) { return gpt2[name].square().mean().sqrt().item<double>(); };
  // Two layers: 0.02 / sqrt(4). 32 x 32 and more values: the estimate is within 5 / sqrt(2 * 1024) of the truth.
  EXPECT_NEAR(deviation("layers.0.self_attn.o_proj.weight") / 0.01, 1.0, 0.11);
  EXPECT_NEAR(deviation("layers.1.mlp.down_proj.weight") / 0.01, 1.0, 0.06);
  EXPECT_NEAR(deviation("layers.1.mlp.up_proj.weight") / 0.02, 1.0, 0.06);
}

}  // namespace
}  // namespace limbeck::models
