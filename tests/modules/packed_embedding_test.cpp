// Embeddings and heads in few bits: what packs them, one storage where they are tied, what they compute, and the
// folders that hold them. Other programs read those folders in tests/python/test_packed_embeddings.py.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "kernels/head_loss/head_loss.h"
#include "modules/adapters/merge/merge_quantized.h"
#include "modules/adapters/new_adapter.h"
#include "modules/errors.h"
#include "modules/models/weights/save_model.h"
#include "modules/precision/contract_modules.h"
#include "tests/support/operator_checks.h"
#include "tests/support/quantized_formats.h"
#include "tests/support/tiny_models.h"

namespace limbeck::models {
namespace {

namespace fs = std::filesystem;
using kernels::QuantizedFormat;

fs::path tiny_llama(bool tied) {
  const fs::path folder = test::tiny_model("llama");
  nlohmann::json config = nlohmann::json::parse(std::ifstream(folder / "config.json"));
  config["tie_word_embeddings"] = tied;
  config["intermediate_size"] = 64;  // whole groups of int4
  std::ofstream(folder / "config.json") << config.dump();
  return folder;
}

ModelRequest with_rules(const fs::path& folder, at::ScalarType dtype, const std::vector<std::string>& rules) {
  ModelRequest request;
  request.folder = folder;
  request.dtype = dtype;
  request.random_init = true;
  request.scales = dtype;
  for (const std::string& rule : rules) request.rules.push_back(precision::parse_rule(rule, "test"));
  return request;
}

std::string said_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "accepted";
}

std::vector<std::shared_ptr<ContractModule>> owners_of(const BuiltModel& built) {
  return precision::contract_modules(*built.model);
}

precision::Footprint weight_of(const BuiltModel& built) {
  precision::Footprint sum;
  for (const auto& owner : owners_of(built)) {
    sum.values += owner->footprint().values;
    sum.bytes += owner->footprint().bytes;
  }
  return sum;
}

const ContractModule& module_at(const BuiltModel& built, const std::string& path) {
  for (const auto& owner : owners_of(built)) {
    if (owner->path() == path) return *owner;
  }
  throw std::logic_error("no module " + path);
}

const Embedding& tokens_of(const BuiltModel& built) {
  return dynamic_cast<const Embedding&>(module_at(built, "model.embed_tokens"));
}
const Linear& head_of(const BuiltModel& built) {
  return dynamic_cast<const Linear&>(module_at(built, "model.lm_head"));
}

at::Tensor logits_of(const BuiltModel& built) {
  const at::NoGradGuard no_gradient;
  ModelInput input;
  input.ids = at::arange(0, 24, at::kLong).view({2, 12});
  return built.model->head(built.model->encode(input).last);
}

TEST(PackedEmbedding, ARuleForAllPacksEmbeddingsAndHeadsOfEveryFamily) {
  for (const std::string& family : test::tiny_families()) {
    SCOPED_TRACE(family);
    const fs::path folder = test::tiny_model(family);
    for (const QuantizedFormat format : test::every_static_format()) {
      const std::string rule = std::string("model.** ") + kernels::format_name(format);
      const BuiltModel built = load_model(with_rules(folder, at::kBFloat16, {rule}));
      for (const auto& owner : owners_of(built)) {
        EXPECT_TRUE(owner->violations().empty()) << owner->path();
        const bool wanted = precision::packable(owner->role());
        EXPECT_EQ(precision::storage_name(owner->precision()), wanted ? kernels::format_name(format) : "bfloat16")
            << owner->path();
        EXPECT_FALSE(wanted && owner->has_parameter("weight")) << owner->path();
      }
      const auto plain = weight_of(load_model(with_rules(folder, at::kBFloat16, {})));
      EXPECT_EQ(weight_of(built).values, plain.values);
      EXPECT_LT(weight_of(built).bytes, plain.bytes);
      const auto on_meta = weight_of(build_on_meta(with_rules(folder, at::kBFloat16, {rule})));
      EXPECT_EQ(on_meta.values, plain.values);
      EXPECT_EQ(on_meta.bytes, weight_of(load_model([&] {
                                 ModelRequest request = with_rules(folder, at::kBFloat16, {rule});
                                 request.scales = at::kFloat;
                                 return request;
                               }()))
                                   .bytes);
    }
  }
}

TEST(PackedEmbedding, ATiedHeadIsTheEmbeddingsStorageOnce) {
  for (const QuantizedFormat format : test::every_static_format()) {
    const std::string rule = std::string("model.embed_tokens ") + kernels::format_name(format);
    const BuiltModel built = load_model(with_rules(tiny_llama(true), at::kFloat, {rule}));
    EXPECT_EQ(head_of(built).packed(), tokens_of(built).packed());
    EXPECT_TRUE(head_of(built).is_quantized());
    EXPECT_TRUE(head_of(built).packed_weights().empty());
    EXPECT_EQ(precision::storage_name(head_of(built).precision()), kernels::format_name(format));
    EXPECT_EQ(head_of(built).footprint().bytes, 0);
  }
}

TEST(PackedEmbedding, LookupsAndLogitsAreThoseOfTheDequantizedWeights) {
  for (const bool tied : {false, true}) {
    for (const QuantizedFormat format : test::every_static_format()) {
      const std::string rule = std::string("model.** ") + kernels::format_name(format);
      const BuiltModel built = load_model(with_rules(tiny_llama(tied), at::kFloat, {rule}));
      const fs::path folder = built.config.folder / "saved";
      save_model(built, folder);  // as floats
      ModelRequest request = with_rules(folder, at::kFloat, {});
      request.random_init = false;
      const BuiltModel floats = load_model(request);
      const at::Tensor ids = at::arange(0, 24, at::kLong).view({4, 6});
      test::expect_same_bits(built.model->embed_tokens(ids), floats.model->embed_tokens(ids).detach(), "lookups");
      const at::Tensor ours = logits_of(built), theirs = logits_of(floats);
      EXPECT_LT((ours - theirs).abs().max().item<double>(), 1e-5 * theirs.abs().max().item<double>());
    }
  }
}

// The fused head over a packed weight that stays: value and gradient of the states against float64 of what it means.
TEST(PackedEmbedding, TheFusedHeadGivesTheStatesTheGradientOfTheDequantizedWeight) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const QuantizedFormat format : test::every_static_format()) {
      const std::string rule = std::string("model.lm_head ") + kernels::format_name(format);
      const BuiltModel built = load_model(with_rules(tiny_llama(false), dtype, {rule}));
      const Linear& head = head_of(built);
      const int64_t vocabulary = head.out_features(), width = head.in_features(), tokens = 13;
      const auto options = at::TensorOptions().dtype(dtype);
      at::Tensor states = test::random_tensor({tokens, width}, options, 3).set_requires_grad(true);
      const at::Tensor teacher = test::random_tensor({tokens, 16}, options, 4);
      const at::Tensor teacher_weight = test::random_tensor({vocabulary, 16}, options, 5);
      const at::Tensor labels = at::arange(tokens, at::kLong).remainder(vocabulary);
      const auto loss_of = [&](const at::Tensor& x, const at::Tensor& weight) {
        const auto wide = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
        const at::Tensor each = at::full({tokens}, 1.0 / tokens, at::TensorOptions().dtype(wide));
        return kernels::head_loss(x, weight, teacher.to(x.scalar_type()), teacher_weight.to(x.scalar_type()), labels,
                                  each, each, {})
            .loss;
      };
      const ProductOperands product = built.model->head_operands(states);
      EXPECT_FALSE(product.weight.requires_grad());
      const at::Tensor loss = loss_of(product.x, product.weight);
      loss.backward();
      const at::Tensor meant = head.weight_rows(0, vocabulary).to(dtype).to(at::kDouble);
      at::Tensor exact = states.detach().to(at::kDouble).set_requires_grad(true);
      const at::Tensor wanted = loss_of(exact, meant);
      wanted.backward();
      const double bar = dtype == at::kFloat ? 1e-5 : 1e-2;  // of bfloat16 half an ulp is 4e-3
      EXPECT_NEAR(loss.item<double>(), wanted.item<double>(), 1e-5 * std::abs(wanted.item<double>()));
      EXPECT_LT((states.grad().to(at::kDouble) - exact.grad()).abs().max().item<double>(),
                bar * exact.grad().abs().max().item<double>());
    }
  }
}

// Adapters on packed embeddings and heads: in the fused head's operands, and merged into what the codes stand for.
TEST(PackedEmbedding, AdaptersWorkBesideCodesAndAreMergedIntoWhatTheyMean) {
  for (const QuantizedFormat format : test::every_static_format()) {
    const fs::path folder = tiny_llama(false);
    const std::string rule = std::string("model.** ") + kernels::format_name(format);
    BuiltModel quantized = load_model(with_rules(folder, at::kFloat, {rule}));
    BuiltModel plain = load_model(with_rules(folder, at::kFloat, {}));
    adapters::NewAdapter lora;
    lora.config.rank = 4, lora.config.alpha = 8;
    lora.targets = {{"embed_tokens"}, {"lm_head"}};
    ASSERT_EQ(adapters::create_adapter(quantized, lora), 2);
    const at::Tensor before = logits_of(quantized);
    uint64_t seed = 7;
    for (const auto& owner : owners_of(quantized)) {
      if (owner->role() != Role::kAdapter) continue;
      for (const at::Tensor& p : owner->parameters()) {
        const at::NoGradGuard no_gradient;
        p.copy_(test::random_tensor(p.sizes(), p.options().requires_grad(false), ++seed) * 0.3);
      }
    }
    const at::Tensor beside = logits_of(quantized);
    EXPECT_GT((beside - before).abs().max().item<double>(), 1e-3);
    const at::Tensor states = test::random_tensor({5, head_of(quantized).in_features()}, before.options(), 9);
    const at::NoGradGuard no_gradient;
    const ProductOperands product = quantized.model->head_operands(states);
    const at::Tensor made = at::linear(product.x, product.weight), wanted = quantized.model->head(states);
    EXPECT_LT((made - wanted).abs().max().item<double>(), 1e-5 * wanted.abs().max().item<double>());
    const auto report = adapters::merge_quantized_adapter(quantized, plain, adapters::MergeInto::kDequantized);
    EXPECT_EQ(report.modules, 2);
    const at::Tensor merged = logits_of(plain);
    EXPECT_LT((merged - beside).abs().max().item<double>(), 1e-5 * beside.abs().max().item<double>());
  }
}

TEST(PackedEmbedding, ATiedHeadIsNotStoredOtherwiseThanItsEmbedding) {
  const auto message = [](const std::vector<std::string>& rules) {
    return said_of([&] { build_on_meta(with_rules(tiny_llama(true), at::kFloat, rules)); });
  };
  for (const std::vector<std::string>& rules : {std::vector<std::string>{"model.lm_head int8"},
                                                {"model.embed_tokens int8", "model.lm_head int4"},
                                                {"model.embed_tokens int8", "model.lm_head float32"}}) {
    const std::string said = message(rules);
    EXPECT_NE(said.find("[model.lm_head] is tied to an embedding stored in"), std::string::npos) << said;
    EXPECT_NE(said.find("one rule must cover both, or name [model.embed_tokens] alone"), std::string::npos) << said;
  }
  EXPECT_EQ(message({"model.embed_tokens int8", "model.lm_head int8"}), "accepted");
}

int64_t payload_bytes(const fs::path& folder) {
  const io::WeightsFolder weights(folder);
  int64_t bytes = 0;
  for (const std::string& name : weights.names()) {
    bytes += static_cast<int64_t>(weights.find(name)->end - weights.find(name)->begin);
  }
  return bytes;
}

TEST(PackedEmbedding, FoldersWeighWhatWasPlannedAndAreReadWithTheSameBits) {
  const std::vector<std::string> all = {"model.** int8"}, tokens = {"model.embed_tokens int8"};
  const std::vector<std::string> head = {"model.lm_head int4-sym-g32"};
  const std::vector<std::string> mixed = {"model.layers.** int4-g32", "model.embed_tokens int8",
                                          "model.lm_head int4-sym-g32"};
  const std::vector<std::string> tied_mix = {"model.layers.** int4-g32", "model.embed_tokens int8"};
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const auto& [tied, rules] :
         {std::pair{false, all}, {false, tokens}, {false, head}, {false, mixed}, {true, all}, {true, tied_mix}}) {
      const BuiltModel floats = load_model(with_rules(tiny_llama(tied), dtype, {}));
      save_model(floats, floats.config.folder / "floats");
      ModelRequest request = with_rules(floats.config.folder / "floats", dtype, rules);
      request.random_init = false;  // codes chosen by the scales that the folder holds
      const BuiltModel built = load_model(request);
      const fs::path folder = built.config.folder / "packed";
      const int64_t planned = plan_packed(build_on_meta(request)).bytes();
      save_model(built, folder, {.packed = true});
      EXPECT_EQ(payload_bytes(folder), planned);
      ModelRequest again = with_rules(folder, dtype, {});
      again.random_init = false;
      const BuiltModel read = load_model(again);
      const auto there = owners_of(built), here = owners_of(read);
      ASSERT_EQ(there.size(), here.size());
      for (size_t i = 0; i < there.size(); ++i) {
        EXPECT_EQ(there[i]->packed_weights() == here[i]->packed_weights(), true) << there[i]->path();
        EXPECT_TRUE(here[i]->violations().empty()) << here[i]->path();
      }
      test::expect_same_bits(logits_of(built), logits_of(read), "logits");
    }
  }
}

TEST(PackedEmbedding, WhatALayoutCannotHoldIsRefusedBeforeAnythingIsWritten) {
  const auto message = [](bool tied, const std::vector<std::string>& rules) {
    return said_of([&] { plan_packed(build_on_meta(with_rules(tiny_llama(tied), at::kFloat, rules))); });
  };
  const auto expect = [](const std::string& said, const char* part) {
    EXPECT_NE(said.find(part), std::string::npos) << said;
  };
  expect(message(false, {"model.embed_tokens int4"}), "model.embed_tokens is in int4, and transformers loads packed");
  expect(message(true, {"model.embed_tokens int4-sym"}), "embeddings in int8 alone: say int8 for it in the rule");
  expect(message(false, {"model.lm_head nf4"}), "[model.lm_head] is in nf4, and bitsandbytes, which alone has that");
  expect(message(false, {"model.** nf4"}), "[model.embed_tokens] is in nf4");
  expect(message(false, {"model.layers.** nf4", "model.embed_tokens int8"}), "have no folder in common");
}

}  // namespace
}  // namespace limbeck::models
