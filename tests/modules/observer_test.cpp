// An observer hears of the modules of one forward, in order, with shapes and times, and changes no bit.
#include "modules/precision/observer.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include <chrono>

#include "modules/models/weights/load_model.h"
#include "tests/support/tiny_models.h"

namespace limbeck::precision {
namespace {

using Clock = std::chrono::steady_clock;

// A small profile: one line a module, in the order of their begins.
class ForwardList : public ModuleObserver {
 public:
  struct Entry {
    std::string path;
    size_t depth;
    std::string input, output;
    Clock::time_point begin, end;
  };

  void begin(const std::string& path) override {
    open_.push_back(entries_.size());
    entries_.push_back({path, open_.size(), "", "", Clock::now(), {}});
  }
  void end(const std::string& path) override {
    Entry& entry = entries_[open_.back()];
    EXPECT_EQ(entry.path, path);
    entry.end = Clock::now();
    open_.pop_back();
  }
  void input(const ContractModule& module, const at::Tensor& x) override { said(module, x).input = shape(x); }
  void output(const ContractModule& module, const at::Tensor& y) override { said(module, y).output = shape(y); }

  const std::vector<Entry>& entries() const { return entries_; }
  bool all_ended() const { return open_.empty(); }
  const Entry& at(const std::string& path) const {
    for (const Entry& entry : entries_) {
      if (entry.path == path) return entry;
    }
    throw std::out_of_range(path);
  }

 private:
  static std::string shape(const at::Tensor& x) {
    return fmt::format("{} [{}]", at::isFloatingType(x.scalar_type()) ? dtype_name(x.scalar_type()) : "ids",
                       fmt::join(x.sizes(), ","));
  }
  Entry& said(const ContractModule& module, const at::Tensor&) {
    Entry& entry = entries_[open_.back()];
    EXPECT_EQ(entry.path, module.path());
    return entry;
  }

  std::vector<Entry> entries_;
  std::vector<size_t> open_;
};

models::BuiltModel tiny(const std::string& family) {
  models::ModelRequest request;
  request.folder = test::tiny_model(family);
  request.dtype = at::kBFloat16;
  request.random_init = true;
  return models::load_model(request);
}

at::Tensor logits_of(const models::BuiltModel& built) {
  models::ModelInput input;
  input.ids = at::arange(0, 12, at::kLong).view({2, 6});
  return built.model->head(built.model->encode(input).last);
}

TEST(ModuleObserver, HearsTheModulesOfAForwardInOrderWithShapesAndTimes) {
  const models::BuiltModel built = tiny("llama");
  const at::Tensor unobserved = logits_of(built);
  ForwardList list;
  at::Tensor observed;
  {
    const Observing observing(list);
    observed = logits_of(built);
  }
  EXPECT_TRUE(observed.equal(unobserved));
  EXPECT_TRUE(list.all_ended());

  std::vector<std::string> wanted{"model.embed_tokens", "model"};
  for (const std::string layer : {"model.layers.0.", "model.layers.1."}) {
    for (const char* module :
         {"input_layernorm", "self_attn", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
          "self_attn.o_proj", "post_attention_layernorm", "mlp.up_proj", "mlp.gate_proj", "mlp.down_proj"}) {
      wanted.push_back(layer + module);
    }
  }
  wanted.insert(wanted.end(), {"model.norm", "model", "model.lm_head"});
  std::vector<std::string> heard;
  for (const auto& entry : list.entries()) heard.push_back(entry.path);
  EXPECT_EQ(heard, wanted);

  EXPECT_EQ(list.at("model.embed_tokens").input, "ids [2,6]");
  EXPECT_EQ(list.at("model.embed_tokens").output, "bfloat16 [2,6,32]");
  EXPECT_EQ(list.at("model.layers.1.mlp.up_proj").input, "bfloat16 [2,6,32]");
  EXPECT_EQ(list.at("model.layers.1.mlp.up_proj").output, "bfloat16 [2,6,48]");
  EXPECT_EQ(list.at("model.lm_head").output, "bfloat16 [2,6,97]");
  EXPECT_EQ(list.at("model.layers.0.self_attn").input, "");  // it owns no parameter
  const auto &attention = list.at("model.layers.0.self_attn"), &query = list.at("model.layers.0.self_attn.q_proj");
  EXPECT_EQ(query.depth, attention.depth + 1);
  EXPECT_LE(attention.begin, query.begin);
  EXPECT_LT(query.begin, query.end);
  EXPECT_LE(query.end, attention.end);
}

TEST(ModuleObserver, TheInnerOfTwoHearsAndAfterItTheOuterAgain) {
  const models::BuiltModel built = tiny("qwen3_moe");
  ForwardList outer, inner;
  const Observing first(outer);
  {
    const Observing second(inner);
    logits_of(built);
  }
  EXPECT_TRUE(outer.entries().empty());
  logits_of(built);
  EXPECT_EQ(outer.entries().size(), inner.entries().size());
  EXPECT_EQ(outer.at("model.layers.0.mlp.experts").input, "bfloat16 [12,32]");
  EXPECT_EQ(current_observer(), &outer);
}

TEST(ModuleObserver, HearsTheEndOfWhatFails) {
  const models::BuiltModel built = tiny("llama");
  ForwardList list;
  const Observing observing(list);
  models::ModelInput input;
  input.ids = at::zeros({1, 2}, at::kFloat);
  EXPECT_ANY_THROW(built.model->encode(input));
  EXPECT_TRUE(list.all_ended());
  EXPECT_EQ(list.entries().size(), 1u);
}

}  // namespace
}  // namespace limbeck::precision
