// Dropout of adapters: PEFT's formula, drawn by seed, token and module alone, and only where a forward brings draws.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "kernels/random/normal_values.h"
#include "modules/adapters/folder/peft_folder.h"
#include "modules/adapters/new_adapter.h"
#include "modules/errors.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/tiny_models.h"

namespace limbeck::test {
namespace {

using adapters::NewAdapter;
using models::BuiltModel;
using models::Draws;

constexpr double kRate = 0.3;

NewAdapter dropping(bool dora = false, double rate = kRate, const std::vector<std::string>& targets = {}) {
  NewAdapter wanted;
  wanted.targets.assign(targets.begin(), targets.end());
  wanted.config.rank = 4;
  wanted.config.alpha = 8;
  wanted.config.dora = dora;
  wanted.config.dropout = rate;
  return wanted;
}

BuiltModel seeded_base(const std::string& family, at::ScalarType dtype) {
  models::ModelRequest request;
  request.folder = tiny_model(family);
  request.dtype = dtype;
  request.random_init = true;
  request.seed = 5;
  return models::load_model(request);
}

// Adapter weights that change a lot.
BuiltModel scattered(const NewAdapter& wanted, at::ScalarType dtype = at::kDouble,
                     const std::string& family = "llama") {
  BuiltModel built = seeded_base(family, dtype);
  adapters::create_adapter(built, wanted);
  const at::NoGradGuard no_gradient;
  for (const auto& module : built.model->modules()) {
    const auto* adapter = dynamic_cast<precision::ContractModule*>(module.get());
    if (adapter == nullptr || adapter->role() != precision::Role::kAdapter) continue;
    for (const auto& entry : adapter->named_parameters(/*recurse=*/false)) {
      at::Tensor noise = at::empty_like(entry.value());
      kernels::fill_normal_(noise, kernels::key_of(9, adapter->path() + entry.key()), 0.2);
      at::Tensor parameter = entry.value();
      parameter.add_(noise);
    }
  }
  return built;
}

const models::Linear& host_at(const BuiltModel& built, const std::string& path) {
  for (const auto& module : built.model->modules()) {
    const auto* linear = dynamic_cast<const models::Linear*>(module.get());
    if (linear != nullptr && linear->path() == path) return *linear;
  }
  throw std::logic_error("no linear module at " + path);
}

at::Tensor two_rows() { return at::arange(24, at::kLong).reshape({2, 12}).mul(7).remainder(50); }

at::Tensor last_states(const BuiltModel& built, const Draws& draws) {
  models::ModelInput input;
  input.ids = two_rows();
  input.draws = draws;
  return built.model->encode(input).last;
}

Draws some_draws(int64_t first_row = 3, uint64_t seed = 11) {
  return models::draws_of(seed, first_row, two_rows().sizes(), c10::kCPU);
}

class AdapterDropout : public ::testing::TestWithParam<bool> {};  // DoRA

// y = W x + b + s B A x', or for DoRA W x + b + (f - 1) W x' + f s B A x' with f = m / |W + s B A|, a constant norm.
TEST_P(AdapterDropout, ValuesAndGradientsAreThoseOfTheFormula) {
  const BuiltModel built = scattered(dropping(GetParam()), at::kDouble, "qwen2");  // has biases
  const models::Linear& host = host_at(built, "model.layers.1.self_attn.q_proj");
  const auto parameter = [&](const char* name) { return host.adapter()->named_parameters()[name]; };
  kernels::fill_normal_(host.bias()->detach(), 4, 1.0);
  const at::Tensor x = at::empty({2, 12, host.in_features()}, at::kDouble);
  kernels::fill_normal_(x, 5, 1.0);
  const Draws now = some_draws();
  const at::Tensor mask = kernels::dropout(at::ones_like(x), now.mask(host.adapter()->path(), kRate));
  EXPECT_GT(mask.eq(0).sum().item<int64_t>(), 0);
  std::vector<at::Tensor> inputs = {x.requires_grad_(true), parameter("lora_A"), parameter("lora_B")};
  const at::Tensor left = x * mask, change = at::linear(at::linear(left, inputs[1]), inputs[2]) * 2.0;
  at::Tensor wanted = at::linear(x, host.weight(), *host.bias()) + change;
  if (GetParam()) {
    inputs.push_back(parameter("lora_magnitude_vector"));
    const at::Tensor sum = host.weight() + inputs[2].detach().mm(inputs[1].detach()) * 2.0;
    const at::Tensor factor = inputs[3] / sum.norm(2, 1);
    wanted =
        at::linear(x, host.weight(), *host.bias()) + at::linear(left, host.weight()) * (factor - 1) + change * factor;
  }
  const at::Tensor got = host.forward(x, now);
  EXPECT_TRUE(at::allclose(got, wanted, 1e-12, 1e-12));
  EXPECT_FALSE(at::allclose(got, host.forward(x), 1e-3, 1e-3));
  const at::Tensor cotangent = at::empty_like(wanted);
  kernels::fill_normal_(cotangent, 6, 1.0);
  const auto ours = torch::autograd::grad({got}, inputs, {cotangent});
  const auto theirs = torch::autograd::grad({wanted}, inputs, {cotangent});
  for (size_t i = 0; i < inputs.size(); ++i) EXPECT_TRUE(at::allclose(ours[i], theirs[i], 1e-11, 1e-11)) << i;
}

TEST_P(AdapterDropout, OperandsOfTheHeadHaveItToo) {
  const BuiltModel built = scattered(dropping(GetParam(), kRate, {"lm_head"}));
  const at::Tensor last = last_states(built, {});
  const Draws now = some_draws();
  const models::ProductOperands product = built.model->head_operands(last.flatten(0, 1), /*learns=*/true, now);
  const at::Tensor logits = built.model->head(last, now).flatten(0, 1);
  EXPECT_TRUE(at::allclose(at::linear(product.x, product.weight), logits, 1e-12, 1e-12));
  EXPECT_FALSE(at::allclose(logits, built.model->head(last).flatten(0, 1), 1e-3, 1e-3));
}

TEST_P(AdapterDropout, WithoutDrawsNothingIsDropped) {
  const BuiltModel with = scattered(dropping(GetParam())), without = scattered(dropping(GetParam(), 0.0));
  EXPECT_TRUE(last_states(with, {}).equal(last_states(without, {})));
  EXPECT_TRUE(last_states(without, some_draws()).equal(last_states(without, {}))) << "a rate of 0";
  EXPECT_FALSE(last_states(with, some_draws()).equal(last_states(with, {})));
}

TEST_P(AdapterDropout, TheSameTokensDrawTheSameInAnyMicroBatch) {
  const BuiltModel built = scattered(dropping(GetParam()));
  EXPECT_TRUE(last_states(built, some_draws()).equal(last_states(built, some_draws())));
  EXPECT_FALSE(last_states(built, some_draws()).equal(last_states(built, some_draws(4))));
  EXPECT_FALSE(last_states(built, some_draws()).equal(last_states(built, some_draws(3, 12))));
  const at::Tensor whole = last_states(built, some_draws());
  for (int64_t row = 0; row < 2; ++row) {
    models::ModelInput input;
    input.ids = two_rows().narrow(0, row, 1);
    input.draws = models::draws_of(11, 3 + row, input.ids.sizes(), c10::kCPU);
    EXPECT_TRUE(at::allclose(built.model->encode(input).last, whole.narrow(0, row, 1), 1e-10, 1e-10)) << row;
  }
}

// The layer that runs again draws what it drew in its forward, whatever ran in between.
TEST_P(AdapterDropout, CheckpointedLayersHaveTheBitsOfPlainOnes) {
  const BuiltModel built = scattered(dropping(GetParam()), at::kFloat);
  const auto gradients = [&](bool checkpointing) {
    built.model->set_checkpointing(checkpointing);
    for (const at::Tensor& parameter : built.model->parameters()) parameter.mutable_grad().reset();
    const at::Tensor first = last_states(built, some_draws()), second = last_states(built, some_draws(5));
    first.sin().sum().backward();
    second.square().sum().backward();
    std::vector<at::Tensor> found = {first.detach(), second.detach()};
    for (const at::Tensor& parameter : built.model->parameters()) {
      if (parameter.grad().defined()) found.push_back(parameter.grad().clone());
    }
    return found;
  };
  const auto plain = gradients(false), again = gradients(true);
  ASSERT_EQ(plain.size(), again.size());
  EXPECT_GT(plain.size(), 20u);
  for (size_t i = 0; i < plain.size(); ++i) EXPECT_TRUE(plain[i].equal(again[i])) << i;
}

TEST_P(AdapterDropout, TheFolderSaysTheRateAndARequestMayReplaceIt) {
  const TemporaryFolder folder;
  const NewAdapter wanted = dropping(GetParam(), 0.05);
  adapters::save_adapter(scattered(wanted), wanted.config, wanted.name, folder.path());
  const auto config = nlohmann::json::parse(std::ifstream(folder / "adapter_config.json"));
  EXPECT_EQ(config.at("lora_dropout"), 0.05);
  for (const std::optional<double> own : {std::optional<double>(), std::optional<double>(0.2)}) {
    BuiltModel built = seeded_base("llama", at::kDouble);
    const adapters::LoadedAdapter loaded =
        adapters::load_adapter(built, {.folder = folder.path(), .trainable = true, .dropout = own});
    EXPECT_EQ(loaded.stored_dropout, 0.05);
    EXPECT_EQ(adapters::dropout_of(loaded.config), own.value_or(0.05));
    EXPECT_TRUE(last_states(built, some_draws())
                    .equal(last_states(scattered(dropping(GetParam(), own.value_or(0.05))), some_draws())));
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, AdapterDropout, ::testing::Bool(),
                         [](const auto& test) { return test.param ? "dora" : "lora"; });

TEST(AdapterDropoutMasks, ModulesDrawTheirOwn) {
  const Draws now = some_draws();
  const at::Tensor ones = at::ones({24, 32});
  const auto mask = [&](const std::string& path) { return kernels::dropout(ones, now.mask(path, 0.5)); };
  EXPECT_TRUE(mask("model.layers.0.self_attn.q_proj.default").equal(mask("model.layers.0.self_attn.q_proj.default")));
  EXPECT_FALSE(mask("model.layers.0.self_attn.q_proj.default").equal(mask("model.layers.0.self_attn.k_proj.default")));
  EXPECT_FALSE(mask("model.layers.0.self_attn.q_proj.default").equal(mask("model.layers.1.self_attn.q_proj.default")));
}

TEST(AdapterDropoutHosts, EmbeddingsDropNothingAndStacksAreRefusedAsInPeft) {
  const BuiltModel built = scattered(dropping(false, kRate, {"embed_tokens"}));
  EXPECT_TRUE(last_states(built, some_draws()).equal(last_states(built, {})));
  BuiltModel sparse = seeded_base("qwen3_moe", at::kFloat);
  try {
    adapters::create_adapter(sparse, dropping(false, kRate, {"experts.down_proj"}));
    FAIL();
  } catch (const UsageError& error) {
    EXPECT_NE(std::string(error.what()).find("on which there is no dropout, here and in PEFT"), std::string::npos)
        << error.what();
  }
}

}  // namespace
}  // namespace limbeck::test
