#include "modules/adapters/npt/npt.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <set>

#include "modules/adapters/hosts/use_adapter.h"
#include "modules/adapters/npt/create_npt.h"
#include "modules/errors.h"
#include "modules/precision/recorder.h"
#include "tests/modules/weights_files.h"
#include "tests/support/npt_models.h"
#include "tests/support/tiny_models.h"

namespace limbeck::adapters {
namespace {

using models::BuiltModel;
using test::add_scattered_npt;
using test::frozen_model;
using test::kNptFamilies;
using test::logits_of;
using test::npt_batch;
using test::npt_options;

constexpr at::ScalarType kDtypes[] = {at::kFloat, at::kBFloat16, at::kHalf};

std::set<std::string> parameters_of(const Npt& adapter) {
  std::set<std::string> names;
  for (const auto& entry : adapter.named_parameters()) names.insert(entry.key());
  return names;
}

double deviation_of(const at::Tensor& x) { return x.to(at::kDouble).square().mean().sqrt().item<double>(); }

TEST(Npt, OnlyWhatTheModulationUsesExistsWithItsFirstValues) {
  const std::vector<std::set<std::string>> wanted = {
      {"A_proj", "B_plus"}, {"A_proj", "B_times"}, {"A_proj", "B_plus", "B_times"}, {"A_proj", "B_m", "B_f"}};
  const auto options = npt_options(32);
  for (size_t i = 0; i < options.size(); ++i) {
    BuiltModel built = frozen_model("llama");
    create_npt(built, options[i], "a");
    ASSERT_EQ(npt_of(built, "a").size(), 2u);
    for (const Npt* adapter : npt_of(built, "a")) {
      EXPECT_EQ(parameters_of(*adapter), wanted[i]);
      // 32 x 32 values and more: the estimate is within 5 / sqrt(2 * 1024) of the truth.
      EXPECT_NEAR(deviation_of(adapter->parameter("A_proj")) / 0.02, 1, 0.11);
      for (const char* up : {"B_plus", "B_m", "B_f"}) {
        if (!adapter->has_parameter(up)) continue;
        EXPECT_NEAR(deviation_of(adapter->parameter(up)) / 0.001, 1, 0.11) << up;
      }
      if (!adapter->has_parameter("B_times")) continue;
      EXPECT_TRUE(adapter->parameter("B_times").eq(0).all().item<bool>());
    }
  }
}

TEST(Npt, SeedAndPathDecideFirstValuesAndHalfTypesRoundThem) {
  const auto values = [](at::ScalarType dtype, uint64_t seed, const std::string& name, size_t layer) {
    BuiltModel built = frozen_model("llama", dtype);
    NptOptions options;
    options.seed = seed;
    create_npt(built, options, name);
    return npt_of(built, name)[layer]->parameter("A_proj").detach();
  };
  const at::Tensor a = values(at::kFloat, 1, "a", 0);
  EXPECT_TRUE(a.equal(values(at::kFloat, 1, "a", 0)));
  EXPECT_FALSE(a.equal(values(at::kFloat, 2, "a", 0)));
  EXPECT_FALSE(a.equal(values(at::kFloat, 1, "b", 0)));
  EXPECT_FALSE(a.equal(values(at::kFloat, 1, "a", 1)));
  for (const auto dtype : {at::kBFloat16, at::kHalf}) EXPECT_TRUE(values(dtype, 1, "a", 0).equal(a.to(dtype)));
}

TEST(Npt, NeutralModulationStartsAtExactlyOneAndLegacyAtThreeQuarters) {
  for (const auto dtype : kDtypes) {
    const at::Tensor gate = at::randn({64, 33}).to(dtype), zero = at::zeros_like(gate);
    EXPECT_TRUE(modulated(gate, zero, ModulationCurve::kNeutral).equal(gate));
    EXPECT_TRUE(modulated(gate, zero, ModulationCurve::kLegacy).equal(gate * 0.75));
    // In a whole layer: what is left is the block without attention in its residual stream, bit for bit.
    BuiltModel built = frozen_model("llama", dtype);
    create_npt(built, npt_options()[1], "a");
    const at::NoGradGuard no_gradient;
    const auto hidden = built.model->encode(npt_batch(), /*keep_hidden=*/true).hidden;
    const models::Layer& layer = *built.model->layers()[0];
    EXPECT_TRUE(hidden[1].equal(hidden[0] + layer.gated_mlp().forward(layer.normed(hidden[0]), {})));
  }
}

TEST(Npt, SwitchingByNameHasTheBitsOfSingleRuns) {
  const at::NoGradGuard no_gradient;
  for (const std::string& family : kNptFamilies) {
    for (const auto dtype : kDtypes) {
      SCOPED_TRACE(family);
      const auto options = npt_options();
      const BuiltModel plain = frozen_model(family, dtype);
      BuiltModel one = frozen_model(family, dtype), other = frozen_model(family, dtype),
                 both = frozen_model(family, dtype);
      add_scattered_npt(one, options[2], "one");
      add_scattered_npt(other, options[3], "other");
      add_scattered_npt(both, options[2], "one");
      add_scattered_npt(both, options[3], "other");
      const at::Tensor none = logits_of(plain), first = logits_of(one), second = logits_of(other);
      ASSERT_FALSE(none.equal(first) || none.equal(second) || first.equal(second));
      for (const std::string name : {"one", "", "other", "one", "other", ""}) {
        use_adapter(both, name);
        EXPECT_TRUE(logits_of(both).equal(name.empty() ? none : name == "one" ? first : second)) << name;
      }
    }
  }
}

TEST(Npt, BaseWeightsKeepTheirBytesAndGetNoGradient) {
  for (const NptOptions& options : npt_options()) {
    BuiltModel built = frozen_model("qwen2");
    std::vector<std::pair<at::Tensor, at::Tensor>> before;
    for (const at::Tensor& parameter : built.model->parameters()) before.emplace_back(parameter, parameter.clone());
    add_scattered_npt(built, options, "a");
    logits_of(built).square().sum().backward();
    for (const auto& [parameter, copy] : before) {
      EXPECT_TRUE(parameter.equal(copy));
      EXPECT_FALSE(parameter.grad().defined());
    }
    for (const Npt* adapter : npt_of(built, "a")) {
      for (const at::Tensor& parameter : adapter->parameters())
        EXPECT_GT(parameter.grad().abs().max().item<double>(), 0);
    }
  }
}

TEST(Npt, ContractsAreThoseOfTheHostOnMetaToo) {
  for (const auto dtype : kDtypes) {
    for (const NptOptions& options : npt_options()) {
      models::ModelRequest request;
      request.folder = test::tiny_model("phi3");
      request.dtype = dtype;
      BuiltModel built = models::build_on_meta(request);
      create_npt(built, options, "a");
      for (const Npt* adapter : npt_of(built, "a")) {
        const auto& p = adapter->precision();
        for (const auto found : {p.storage, p.input, p.compute, p.output}) EXPECT_EQ(found, dtype);
        EXPECT_EQ(adapter->role(), precision::Role::kAdapter);
        EXPECT_TRUE(adapter->placement().is_meta());
        EXPECT_EQ(adapter->violations(), std::vector<std::string>{});
      }
      models::Taps taps;
      taps.keep_adapted = true;
      models::ModelInput input = npt_batch(c10::kMeta);
      input.taps = &taps;
      const precision::OperatorRecorder recorder;
      at::Tensor loss = built.model->head(built.model->encode(input).last).sum();
      loss.backward();
      EXPECT_EQ(recorder.violations(), std::vector<std::string>{});
      EXPECT_GT(recorder.operator_count(), 50);
    }
  }
}

TEST(Npt, ARuleGivesTheAdapterADtypeOfItsOwnThroughNamedCasts) {
  for (const NptOptions& options : npt_options()) {
    models::ModelRequest request;
    request.folder = test::tiny_model("llama");
    request.dtype = at::kBFloat16;
    request.random_init = true;
    BuiltModel built = models::load_model(request);
    const precision::PrecisionPolicy ruled(at::kBFloat16, c10::kCPU, "test",
                                           {precision::parse_rule("model.layers.*.a float32", "test")});
    *built.policy = ruled;
    add_scattered_npt(built, options, "a");
    const precision::OperatorRecorder recorder;
    const at::Tensor logits = logits_of(built);
    logits.sum().backward();
    EXPECT_EQ(recorder.violations(), std::vector<std::string>{});
    EXPECT_EQ(logits.scalar_type(), at::kBFloat16);
    EXPECT_EQ(npt_of(built, "a")[1]->parameter("A_proj").grad().scalar_type(), at::kFloat);
  }
}

TEST(Npt, BesideAQuantizedBaseItIsFloat32AndSpeaksItsHostsDtype) {
  using kernels::QuantizedFormat;
  for (const auto format : {QuantizedFormat::kInt8, QuantizedFormat::kInt4, QuantizedFormat::kNf4}) {
    for (const auto dtype : {at::kFloat, at::kBFloat16}) {
      for (const std::string family : {"llama", "phi3"}) {
        for (const NptOptions& options : npt_options()) {
          BuiltModel built = test::quantized_model(family, format, dtype);
          add_scattered_npt(built, options, "a");
          const precision::OperatorRecorder recorder;
          const at::Tensor logits = logits_of(built);
          logits.square().sum().backward();
          EXPECT_EQ(recorder.violations(), std::vector<std::string>{});
          EXPECT_EQ(logits.scalar_type(), dtype);
          for (const Npt* adapter : npt_of(built, "a")) {
            const auto& p = adapter->precision();
            EXPECT_TRUE(p.storage == at::kFloat && p.compute == at::kFloat && p.input == dtype && p.output == dtype);
            EXPECT_FALSE(p.quantized.has_value());
            EXPECT_EQ(adapter->violations(), std::vector<std::string>{});
            for (const at::Tensor& parameter : adapter->parameters()) {
              EXPECT_GT(parameter.grad().abs().max().item<double>(), 0);
            }
          }
        }
      }
    }
  }
}

TEST(Npt, OtherKindsOfLayersAreRefusedByName) {
  const std::pair<std::string, std::string> kinds[] = {
      {"gemma2", "[model.layers.0] has norms before and after its parts (sandwich)"},
      {"gemma3", "(sandwich)"},
      {"bert", "[model.layers.0] is post-norm"},
      {"distilbert", "is post-norm"},
      {"gpt2", "[model.layers.0] has an MLP without a gate"},
      {"mixtral", "[model.layers.0] is sparse (a mixture of experts)"},
      {"qwen3_moe", "is sparse"}};
  for (const auto& [family, message] : kinds) {
    BuiltModel built = frozen_model(family);
    test::expect_refusal<UsageError>([&] { create_npt(built, {}, "a"); }, ExitCode::kUsage, {message, "this is a "});
  }
}

TEST(Npt, NamesAndRanksThatCannotBeAreRefusedAndChangeNothing) {
  BuiltModel built = frozen_model("llama");
  const auto refused = [&](const NptOptions& options, const std::string& name, const std::string& message) {
    test::expect_refusal<UsageError>([&] { create_npt(built, options, name); }, ExitCode::kUsage, {message});
  };
  NptOptions none, many;
  none.rank = 0, many.rank = kMostNptRank + 1;
  refused(none, "a", "NPT of rank 0: wanted 1 to 65536");
  refused(many, "a", "NPT of rank 65537");
  refused({}, "mlp", "cannot have an adapter called \"mlp\"");
  refused({}, "a.b", "cannot have an adapter called \"a.b\"");
  refused({}, "", "cannot have an adapter called \"\"");
  for (const auto& layer : built.model->layers()) EXPECT_EQ(layer->adapter(), nullptr);
  create_npt(built, {}, "a");
  refused({}, "a", "[model.layers.0] has an adapter a already");
  test::expect_refusal<UsageError>([&] { use_adapter(built, "b"); }, ExitCode::kUsage,
                                   {"[model] has no adapter b: it has a"});
  EXPECT_EQ(built.model->layers()[0]->adapter(), npt_of(built, "a")[0]);
}

}  // namespace
}  // namespace limbeck::adapters
