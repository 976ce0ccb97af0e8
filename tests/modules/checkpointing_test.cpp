// Activation checkpointing: the same bits in less memory, and nothing that the contract's recorder objects to.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "modules/errors.h"
#include "modules/memory/meta_memory.h"
#include "modules/models/network/checkpointed_layer.h"
#include "modules/models/weights/load_model.h"
#include "modules/precision/recorder.h"
#include "tests/support/tiny_models.h"

namespace limbeck::models {
namespace {

BuiltModel trainable(const std::string& family, at::ScalarType dtype) {
  ModelRequest request;
  request.folder = test::tiny_model(family);
  request.dtype = dtype;
  request.trainable = true;
  request.random_init = true;
  return load_model(request);
}

ModelInput padded_batch(c10::Device device) {
  ModelInput input;
  input.ids = at::arange(0, 24, at::kLong).view({2, 12}).remainder(97).to(device);
  at::Tensor mask = at::ones({2, 12}, at::kLong);
  mask[1].narrow(0, 9, 3).zero_();
  input.attention_mask = mask.to(device);
  return input;
}

// A loss that reaches every hidden state as well as the last.
at::Tensor loss_of(const Transformer& model, bool hidden) {
  const Encoded encoded = model.encode(padded_batch(c10::kCPU), hidden);
  at::Tensor loss = (model.has_head() ? model.head(encoded.last) : encoded.last).square().sum();
  for (const at::Tensor& state : encoded.hidden) loss = loss + state.sin().sum();
  return loss;
}

struct Outcome {
  at::Tensor loss;
  std::vector<at::Tensor> gradients;
};

Outcome run(Transformer& model, bool checkpointing, bool hidden) {
  model.set_checkpointing(checkpointing);
  for (const at::Tensor& parameter : model.parameters()) parameter.mutable_grad().reset();
  Outcome result{loss_of(model, hidden), {}};
  result.loss.backward();
  for (const at::Tensor& parameter : model.parameters()) {
    result.gradients.push_back(parameter.grad().defined() ? parameter.grad().clone() : at::Tensor());
  }
  return result;
}

void expect_same(const Outcome& plain, const Outcome& checkpointed, const Transformer& model) {
  EXPECT_TRUE(plain.loss.equal(checkpointed.loss));
  const auto names = model.named_parameters();
  for (size_t i = 0; i < plain.gradients.size(); ++i) {
    ASSERT_EQ(plain.gradients[i].defined(), checkpointed.gradients[i].defined()) << names[i].key();
    if (!plain.gradients[i].defined()) continue;
    EXPECT_TRUE(plain.gradients[i].equal(checkpointed.gradients[i])) << names[i].key();
  }
}

TEST(Checkpointing, LossAndEveryGradientHaveTheBitsOfThePlainRun) {
  for (const std::string& family : test::tiny_families()) {
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
      const BuiltModel built = trainable(family, dtype);
      for (const bool hidden : {false, true}) {
        SCOPED_TRACE(family + (hidden ? " with hidden states" : ""));
        const Outcome plain = run(*built.model, false, hidden);
        EXPECT_GT(plain.gradients.size(), 10u);
        expect_same(plain, run(*built.model, true, hidden), *built.model);
      }
    }
  }
}

// What terms keep of the inside has the plain run's values and gradients too, even when the taps are gone by then.
TEST(Checkpointing, WhatTapsKeepHasItsGradients) {
  for (const std::string family : {"llama", "gpt2", "qwen3_moe"}) {
    const BuiltModel built = trainable(family, at::kFloat);
    const auto run_with_taps = [&](bool checkpointing) {
      built.model->set_checkpointing(checkpointing);
      for (const at::Tensor& parameter : built.model->parameters()) parameter.mutable_grad().reset();
      Outcome result;
      {
        Taps taps;
        taps.keep_attention = taps.keep_router = taps.keep_mixed = true;
        ModelInput input = padded_batch(c10::kCPU);
        input.taps = &taps;
        result.loss = built.model->encode(input).last.sin().sum();
        EXPECT_EQ(taps.attention.size(), 2u);
        EXPECT_EQ(taps.mixed.size(), 2u);
        EXPECT_EQ(taps.router_logits.size(), family == "qwen3_moe" ? 2u : 0u);
        for (const at::Tensor* kept : taps.kept()) result.loss = result.loss + kept->square().mean();
      }
      result.loss.backward();
      for (const at::Tensor& parameter : built.model->parameters()) {
        result.gradients.push_back(parameter.grad().defined() ? parameter.grad().clone() : at::Tensor());
      }
      return result;
    };
    SCOPED_TRACE(family);
    const Outcome plain = run_with_taps(false);
    expect_same(plain, run_with_taps(true), *built.model);
  }
}

// The inner backward of one layer ends before that of the next begins: depth costs no stack and no further threads.
TEST(Checkpointing, AHundredLayersDoNotNest) {
  ModelRequest request;
  request.folder = test::tiny_model("llama");
  nlohmann::json config = nlohmann::json::parse(std::ifstream(request.folder / "config.json"));
  config["num_hidden_layers"] = 100;
  std::ofstream(request.folder / "config.json") << config.dump();
  request.trainable = request.random_init = true;
  const BuiltModel built = load_model(request);
  const Outcome plain = run(*built.model, false, false);
  expect_same(plain, run(*built.model, true, false), *built.model);
}

TEST(Checkpointing, GradientsAccumulateOverTwoBackwards) {
  const BuiltModel built = trainable("llama", at::kFloat);
  const Outcome once = run(*built.model, true, false);
  loss_of(*built.model, false).backward();
  const auto parameters = built.model->parameters();
  for (size_t i = 0; i < parameters.size(); ++i) {
    EXPECT_TRUE(at::allclose(parameters[i].grad(), 2 * once.gradients[i], 1e-6, 1e-6));
  }
}

TEST(Checkpointing, FrozenParametersStayWithoutGradient) {
  const BuiltModel built = trainable("llama", at::kFloat);
  for (const auto& entry : built.model->named_parameters()) {
    at::Tensor parameter = entry.value();
    parameter.set_requires_grad(entry.key() == "layers.1.mlp.up_proj.weight");
  }
  const Outcome plain = run(*built.model, false, false), checkpointed = run(*built.model, true, false);
  expect_same(plain, checkpointed, *built.model);
  int64_t trained = 0;
  for (const at::Tensor& gradient : checkpointed.gradients) trained += gradient.defined() ? 1 : 0;
  EXPECT_EQ(trained, 1);
}

TEST(Checkpointing, GradientsOfChosenTensorsLeaveTheRestAlone) {
  const BuiltModel built = trainable("qwen3", at::kFloat);
  built.model->set_checkpointing(true);
  const at::Tensor weight = built.model->named_parameters()["layers.0.mlp.down_proj.weight"];
  const at::Tensor chosen = torch::autograd::grad({loss_of(*built.model, false)}, {weight})[0];
  for (const at::Tensor& parameter : built.model->parameters()) EXPECT_FALSE(parameter.grad().defined());
  const Outcome all = run(*built.model, false, false);
  EXPECT_TRUE(chosen.equal(weight.grad()));
}

TEST(Checkpointing, WithoutGradientsItIsThePlainForward) {
  const BuiltModel built = trainable("llama", at::kFloat);
  built.model->set_checkpointing(true);
  const at::NoGradGuard no_gradient;
  EXPECT_FALSE(loss_of(*built.model, false).requires_grad());
}

TEST(Checkpointing, GradientsOfGradientsAndASecondBackwardAreRefused) {
  const BuiltModel built = trainable("llama", at::kFloat);
  built.model->set_checkpointing(true);
  const at::Tensor weight = built.model->named_parameters()["layers.0.mlp.down_proj.weight"];
  EXPECT_THROW(torch::autograd::grad({loss_of(*built.model, false)}, {weight}, {}, true, /*create_graph=*/true),
               std::exception);
  const at::Tensor loss = loss_of(*built.model, false);
  loss.backward();
  EXPECT_THROW(loss.backward(), std::exception);
}

struct MetaStep {
  int64_t kept = 0, peak = 0;
  std::vector<std::string> violations;
};

MetaStep step_on_meta(const std::string& family, bool checkpointing) {
  const memory::MetaMemory memory;
  ModelRequest request;
  request.folder = test::tiny_model(family);
  request.dtype = at::kBFloat16;
  request.trainable = true;
  const BuiltModel built = build_on_meta(request);
  built.model->set_checkpointing(checkpointing);
  const precision::OperatorRecorder recorder;
  const int64_t before = memory::MetaMemory::live_bytes();
  ModelInput input;
  input.ids = at::empty({4, 60}, at::TensorOptions().dtype(at::kLong).device(at::kMeta));
  const at::Tensor loss = built.model->encode(input).last.sum();
  MetaStep result;
  result.kept = memory::MetaMemory::live_bytes() - before;
  loss.backward();
  result.peak = memory::MetaMemory::peak_bytes() - before;
  result.violations = recorder.violations();
  return result;
}

TEST(Checkpointing, OnMetaThePeakFallsAndTheRecorderHasNoObjection) {
  for (const std::string& family : test::tiny_families()) {
    SCOPED_TRACE(family);
    const MetaStep plain = step_on_meta(family, false), checkpointed = step_on_meta(family, true);
    EXPECT_EQ(checkpointed.violations, std::vector<std::string>{});
    EXPECT_LT(checkpointed.kept, plain.kept / 3);  // two layers: two inputs instead of some twenty tensors each
    EXPECT_LT(checkpointed.peak, plain.peak * 3 / 4);
  }
}

}  // namespace
}  // namespace limbeck::models
