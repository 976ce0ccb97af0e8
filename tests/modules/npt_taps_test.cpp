// What NPT adapters say of themselves for a regulariser, and that they work beside checkpointing, caches and keepers.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "modules/adapters/hosts/use_adapter.h"
#include "modules/models/network/fetched_layer.h"
#include "modules/models/network/generator.h"
#include "tests/support/npt_models.h"

namespace limbeck::adapters {
namespace {

using models::BuiltModel;
using test::add_scattered_npt;
using test::frozen_model;
using test::kNptFamilies;
using test::npt_batch;
using test::npt_options;

models::Taps asking() {
  models::Taps taps;
  taps.keep_adapted = true;
  return taps;
}

// The logits, and the mean over tokens of every penalty that was asked for, as one number.
at::Tensor loss_of(const BuiltModel& built, bool penalties, at::Tensor* logits = nullptr) {
  models::ModelInput input = npt_batch();
  models::Taps taps = asking();  // gone before the backward
  if (penalties) input.taps = &taps;
  const at::Tensor last = built.model->head(built.model->encode(input).last);
  if (logits != nullptr) *logits = last.detach();
  at::Tensor loss = last.sin().sum();
  for (const auto& one : taps.adapted) {
    for (const auto& [name, penalty] : one.penalties) {
      loss = loss + (penalty.mean() * 0.01).to(loss.scalar_type());
    }
  }
  return loss;
}

std::vector<at::Tensor> gradients_of(const BuiltModel& built, bool checkpointing, bool penalties, at::Tensor& logits) {
  built.model->set_checkpointing(checkpointing);
  for (const at::Tensor& parameter : built.model->parameters()) parameter.mutable_grad().reset();
  loss_of(built, penalties, &logits).backward();
  std::vector<at::Tensor> found;
  for (const at::Tensor& parameter : built.model->parameters()) {
    if (parameter.requires_grad()) found.push_back(parameter.grad().clone());
  }
  return found;
}

TEST(NptTaps, PenaltiesAreTheSquaredLengthsOfTheFormulas) {
  for (const auto dtype : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf}) {
    for (const NptOptions& options : npt_options()) {
      BuiltModel built = frozen_model("llama", dtype);
      add_scattered_npt(built, options, "a");
      models::Taps taps = asking();
      models::ModelInput input = npt_batch();
      input.taps = &taps;
      built.model->encode(input);
      ASSERT_EQ(taps.adapted.size(), 2u);
      for (size_t i = 0; i < 2; ++i) {
        const Npt& adapter = *npt_of(built, "a")[i];
        const auto squared = [&](const char* parameter) {
          const at::Tensor value =
              at::matmul(taps.adapted[i].low_btr.to(at::kDouble), adapter.parameter(parameter).to(at::kDouble).t());
          return value.square().sum(-1);
        };
        std::map<std::string, at::Tensor> wanted;
        if (options.kind == NptKind::kOuter) wanted["outer"] = squared("B_m") * squared("B_f");
        if (adapter.shape().adds()) wanted["delta"] = squared("B_plus");
        if (adapter.shape().multiplies()) wanted["m_raw"] = squared("B_times");
        ASSERT_EQ(wanted.size(), taps.adapted[i].penalties.size());
        for (const auto& [name, penalty] : taps.adapted[i].penalties) {
          EXPECT_EQ(penalty.scalar_type(), dtype == at::kDouble ? at::kDouble : at::kFloat);
          EXPECT_EQ(penalty.sizes(), at::IntArrayRef({2, 12}));
          // A value is rounded once to the dtype (2^-9, 2^-12), then squared; "outer" is a product of two such sums.
          const double once = dtype == at::kBFloat16 ? 0x1p-9 : dtype == at::kHalf ? 0x1p-12 : 0;
          const double bound = dtype == at::kDouble ? 1e-12 : 4 * once + 1e-5;
          EXPECT_TRUE(at::allclose(penalty.to(at::kDouble), wanted[name], bound)) << name;
        }
      }
    }
  }
}

// d mean|B u|^2 / dB = 2/N sum (B u) u^T, and A_proj gets its share through u.
TEST(NptTaps, PenaltiesHaveTheirGradients) {
  BuiltModel built = frozen_model("llama", at::kDouble);
  add_scattered_npt(built, npt_options()[0], "a");
  models::Taps taps = asking();
  models::ModelInput input = npt_batch();
  input.taps = &taps;
  built.model->encode(input);
  taps.adapted[1].penalties.at("delta").mean().backward();
  const Npt& adapter = *npt_of(built, "a")[1];
  const at::Tensor low = taps.adapted[1].low_btr.detach().flatten(0, 1), b = adapter.parameter("B_plus").detach();
  const at::Tensor wanted = at::matmul(at::matmul(low, b.t()).t(), low) * (2.0 / 24);
  EXPECT_TRUE(at::allclose(adapter.parameter("B_plus").grad(), wanted, 1e-10));
  EXPECT_GT(adapter.parameter("A_proj").grad().abs().max().item<double>(), 0);
}

TEST(NptTaps, NothingIsKeptWhenNothingIsAsked) {
  BuiltModel built = frozen_model("llama");
  add_scattered_npt(built, npt_options()[2], "a");
  models::Taps taps;
  models::ModelInput input = npt_batch();
  input.taps = &taps;
  const at::Tensor with = built.model->encode(input).last;
  EXPECT_TRUE(taps.adapted.empty() && taps.kept().empty());
  taps.keep_adapted = true;
  EXPECT_TRUE(built.model->encode(input).last.equal(with));
  EXPECT_EQ(taps.adapted.size(), 2u);
  use_adapter(built, "");
  taps.adapted.clear();
  built.model->encode(input);
  EXPECT_TRUE(taps.adapted.empty());
}

TEST(NptTaps, CheckpointedLayersHaveTheSameBits) {
  for (const std::string& family : kNptFamilies) {
    for (const auto dtype : {at::kFloat, at::kBFloat16}) {
      for (const NptOptions& options : npt_options()) {
        BuiltModel built = frozen_model(family, dtype);
        add_scattered_npt(built, options, "a");
        for (const bool penalties : {false, true}) {
          SCOPED_TRACE(family + (penalties ? " with penalties" : ""));
          at::Tensor plain_logits, logits;
          const auto plain = gradients_of(built, false, penalties, plain_logits);
          const auto checkpointed = gradients_of(built, true, penalties, logits);
          EXPECT_TRUE(plain_logits.equal(logits));
          ASSERT_EQ(plain.size(), 2 * npt_of(built, "a")[0]->parameters().size());
          for (size_t i = 0; i < plain.size(); ++i) EXPECT_TRUE(plain[i].equal(checkpointed[i])) << i;
        }
      }
    }
  }
}

// As when the base is its own teacher: the next thing the model does is another forward, without the adapter.
TEST(NptTaps, ACheckpointedLayerRunsAgainWithTheAdapterOfItsForward) {
  BuiltModel built = frozen_model("llama");
  add_scattered_npt(built, npt_options()[2], "a");
  add_scattered_npt(built, npt_options()[3], "b");
  const auto gradients = [&](bool checkpointing, const std::string& meanwhile) {
    use_adapter(built, "a");
    built.model->set_checkpointing(checkpointing);
    for (const at::Tensor& parameter : built.model->parameters()) parameter.mutable_grad().reset();
    const at::Tensor loss = loss_of(built, true);
    use_adapter(built, meanwhile);
    loss.backward();
    std::vector<at::Tensor> found;
    for (const Npt* adapter : npt_of(built, "a")) {
      for (const at::Tensor& parameter : adapter->parameters()) found.push_back(parameter.grad().clone());
    }
    for (const Npt* adapter : npt_of(built, "b")) EXPECT_FALSE(adapter->parameter("B_f").grad().defined());
    return found;
  };
  const auto plain = gradients(false, "a");
  for (const std::string meanwhile : {"", "b"}) {
    const auto checkpointed = gradients(true, meanwhile);
    ASSERT_EQ(plain.size(), checkpointed.size());
    for (size_t i = 0; i < plain.size(); ++i) EXPECT_TRUE(plain[i].equal(checkpointed[i])) << meanwhile << i;
  }
}

TEST(NptTaps, GenerationWithACacheIsThatWithout) {
  // Not qwen2: its tied head makes a random model repeat its last token whatever the adapter does.
  for (const std::string family : {"llama", "mistral", "qwen3", "phi3"}) {
    for (const NptOptions& options : npt_options()) {
      BuiltModel built = frozen_model(family);
      const models::ModelInput prompt = npt_batch();
      models::GenerateOptions cached;
      cached.max_new_tokens = 20;
      cached.ignore_end = true;
      models::GenerateOptions uncached = cached;
      uncached.cache = false;
      const at::Tensor mask = prompt.attention_mask->flip(1);  // padding on the left
      const at::Tensor plain = models::generate(*built.model, prompt.ids, mask, cached);
      add_scattered_npt(built, options, "a", 0.6);
      const at::Tensor with = models::generate(*built.model, prompt.ids, mask, cached);
      EXPECT_TRUE(with.equal(models::generate(*built.model, prompt.ids, mask, uncached))) << family;
      EXPECT_FALSE(with.equal(plain)) << family;
    }
  }
}

// Outside of a layer's calls its weights are not to be had: they are NaN.
class Poisoner : public models::WeightKeeper {
 public:
  explicit Poisoner(const BuiltModel& built) {
    for (const auto& layer : built.model->layers()) {
      for (const at::Tensor& parameter : layer->parameters()) {
        kept_.emplace_back(calls_.size(), parameter.detach(), parameter.detach().clone());
        parameter.detach().fill_(std::numeric_limits<double>::quiet_NaN());
      }
      calls_.push_back(0);
    }
  }
  void before_forward(int64_t layer) override {
    if (layer == kOutside) return;
    ++calls_[static_cast<size_t>(layer)];
    for (auto& [owner, place, value] : kept_) {
      if (owner == static_cast<size_t>(layer)) place.copy_(value);
    }
  }
  void after_forward(int64_t layer) override {
    for (auto& [owner, place, value] : kept_) {
      if (owner == static_cast<size_t>(layer)) place.fill_(std::numeric_limits<double>::quiet_NaN());
    }
  }
  bool follows_backward() const override { return false; }
  void before_backward(int64_t) override {}
  void after_backward(int64_t) override {}
  const std::vector<int>& calls() const { return calls_; }

 private:
  std::vector<std::tuple<size_t, at::Tensor, at::Tensor>> kept_;
  std::vector<int> calls_;
};

TEST(NptTaps, AKeeperFetchesTheAdapterWithItsLayer) {
  const at::NoGradGuard no_gradient;
  for (const NptOptions& options : npt_options()) {
    BuiltModel built = frozen_model("llama");
    add_scattered_npt(built, options, "a");
    const at::Tensor wanted = test::logits_of(built);
    Poisoner keeper(built);
    EXPECT_FALSE(npt_of(built, "a")[0]->parameter("A_proj").isfinite().any().item<bool>());
    built.model->set_weight_keeper(&keeper);
    EXPECT_TRUE(test::logits_of(built).equal(wanted));
    EXPECT_EQ(keeper.calls(), (std::vector<int>{1, 1}));
  }
}

}  // namespace
}  // namespace limbeck::adapters
