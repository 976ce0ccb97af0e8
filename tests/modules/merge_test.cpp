// Merging in memory and back: the bits that were there.
#include "modules/adapters/merge/merge.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <map>

#include "modules/adapters/merge/adapted_hosts.h"
#include "modules/adapters/merge/merge_quantized.h"
#include "modules/adapters/merge/unmerge.h"
#include "modules/adapters/new_adapter.h"
#include "modules/errors.h"
#include "modules/io/crc32c.h"
#include "modules/precision/casts.h"
#include "tests/modules/weights_files.h"
#include "tests/support/npt_models.h"

namespace limbeck::adapters {
namespace {

using models::BuiltModel;
using test::frozen_model;
using test::logits_of;

NewAdapter adapter_of(const std::string& kind, const std::vector<std::string>& targets) {
  NewAdapter wanted;
  wanted.targets.assign(targets.begin(), targets.end());
  wanted.config.kind = kind == "ia3" ? PeftKind::kIa3 : PeftKind::kLora;
  wanted.config.dora = kind == "dora";
  wanted.config.rank = 4;
  wanted.config.alpha = 8;
  wanted.name = "mine";
  return wanted;
}

// With values that change a lot, and biases that are not zero.
void add_scattered(BuiltModel& built, const std::string& kind, const std::vector<std::string>& targets = {}) {
  create_adapter(built, adapter_of(kind, targets));
  const at::NoGradGuard no_gradient;
  at::manual_seed(7);
  const auto scatter = [](at::Tensor tensor) {
    precision::cast_into(tensor, at::randn(tensor.sizes(), at::kFloat).mul_(0.1).add_(tensor));
  };
  for (const auto& module : built.model->modules()) {
    const auto* owner = dynamic_cast<precision::ContractModule*>(module.get());
    if (owner == nullptr) continue;
    const bool is_adapter = owner->role() == precision::Role::kAdapter;
    for (const auto& entry : owner->named_parameters(/*recurse=*/false)) {
      if (is_adapter || entry.key() == "bias") scatter(entry.value().detach());
    }
  }
}

std::map<std::string, uint32_t> digests(const BuiltModel& built) {
  std::map<std::string, uint32_t> found;
  for (const auto& entry : built.model->named_parameters()) {
    const at::Tensor tensor = entry.value().detach().contiguous();
    found[entry.key()] = io::crc32c(tensor.const_data_ptr(), tensor.nbytes());
  }
  return found;
}

int64_t bytes_of_adapted(const BuiltModel& built) {
  int64_t bytes = 0;
  for (const AnyHost& any : adapted_hosts(built)) {
    const auto add = [&](const at::Tensor& tensor) { bytes += static_cast<int64_t>(tensor.nbytes()); };
    std::visit([&](const auto* host) { add(host->weight()), bias_of(*host) ? add(*bias_of(*host)) : void(); }, any);
  }
  return bytes;
}

models::Linear& last_linear(const BuiltModel& built) {
  models::Linear* last = nullptr;
  for (const AnyHost& any : adapted_hosts(built)) {
    if (auto* const* linear = std::get_if<models::Linear*>(&any)) last = *linear;
  }
  return *last;
}

struct Adapted {
  std::string family, kind;
  std::vector<std::string> targets = {};  // none: every linear module
};

const std::vector<Adapted> kAdapted = {{"llama", "lora"},
                                       {"llama", "dora"},
                                       {"llama", "ia3"},
                                       {"qwen2", "lora"},
                                       {"qwen2", "dora"},
                                       {"qwen2", "ia3"},
                                       {"llama", "lora", {"embed_tokens", "v_proj"}},
                                       {"llama", "dora", {"embed_tokens"}},
                                       {"qwen3_moe", "lora", {"experts.down_proj", "experts.gate_up_proj", "q_proj"}}};

class MergeUndone : public ::testing::TestWithParam<at::ScalarType> {};

TEST_P(MergeUndone, GivesBackEveryBitAndTheAdapter) {
  for (const Adapted& adapted : kAdapted) {
    SCOPED_TRACE(adapted.family + " " + adapted.kind + (adapted.targets.empty() ? "" : " " + adapted.targets.front()));
    BuiltModel built = frozen_model(adapted.family, GetParam());
    const at::NoGradGuard no_gradient;
    add_scattered(built, adapted.kind, adapted.targets);
    const auto before = digests(built);
    const at::Tensor beside = logits_of(built);
    const int64_t bytes = bytes_of_adapted(built);
    Merged merged = merge_adapter(built, KeepOriginals::kYes);
    EXPECT_EQ(merged.original_bytes(), bytes);
    EXPECT_NE(digests(built), before) << "merging changed nothing";
    EXPECT_TRUE(adapted_hosts(built).empty());
    const at::Tensor together = logits_of(built);
    EXPECT_LT((together - beside).norm().item<double>() / beside.norm().item<double>(),
              GetParam() == at::kFloat ? 1e-5 : 0.1);
    merged.undo();
    EXPECT_EQ(digests(built), before);
    EXPECT_TRUE(logits_of(built).equal(beside));
    EXPECT_EQ(merged.original_bytes(), 0);
    EXPECT_EQ(static_cast<int64_t>(adapted_hosts(built).size()), merged.report().modules);
    for (const AnyHost& any : adapted_hosts(built)) {
      std::visit([](const auto* host) { EXPECT_EQ(host->adapter_in_use(), "mine"); }, any);
    }
    test::expect_refusal<UsageError>([&] { merged.undo(); }, ExitCode::kUsage, {"cannot be undone"});
  }
}

TEST_P(MergeUndone, MergingAgainGivesTheSameBits) {
  BuiltModel built = frozen_model("llama", GetParam());
  add_scattered(built, "lora");
  Merged once = merge_adapter(built, KeepOriginals::kYes);
  const auto merged = digests(built);
  for (int i = 0; i < 5; ++i) {
    once.undo();
    once = merge_adapter(built, KeepOriginals::kYes);
    EXPECT_EQ(digests(built), merged);
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, MergeUndone, ::testing::Values(at::kFloat, at::kBFloat16, at::kHalf),
                         [](const auto& test) { return precision::dtype_name(test.param); });

TEST(Merge, KeepsNothingUnlessAsked) {
  BuiltModel built = frozen_model("llama");
  add_scattered(built, "lora");
  Merged merged = merge_adapter(built);
  EXPECT_EQ(merged.original_bytes(), 0);
  test::expect_refusal<UsageError>([&] { merged.undo(); }, ExitCode::kUsage, {"KeepOriginals::kYes"});
}

TEST(Merge, ASumBeyondTheDtypeIsRefusedByName) {
  BuiltModel built = frozen_model("llama", at::kHalf);
  add_scattered(built, "lora");
  const at::NoGradGuard no_gradient;
  models::Linear& last = last_linear(built);
  last.weight().detach().fill_(65000);
  last.adapter()->parameter("lora_A").detach().fill_(100);
  last.adapter()->parameter("lora_B").detach().fill_(100);
  const at::Tensor before = last.weight().detach().clone();
  test::expect_refusal<NumericError>([&] { merge_adapter(built); }, ExitCode::kNumeric,
                                     {"[" + last.path() + "]", "not be finite in float16", "--dtype=bfloat16"});
  EXPECT_TRUE(last.weight().equal(before));
}

TEST(Unmerge, RefusesBeforeAnythingIsChanged) {
  const at::NoGradGuard no_gradient;
  BuiltModel dora = frozen_model("llama"), ia3 = frozen_model("llama");
  add_scattered(dora, "dora", {"embed_tokens"}), add_scattered(ia3, "ia3");
  const models::Linear& last = last_linear(ia3);
  last.adapter()->parameter("ia3_l").detach().flatten().narrow(0, 3, 2).zero_();
  const auto before = digests(dora), others = digests(ia3);
  test::expect_refusal<UsageError>([&] { unmerge_adapter(dora); }, ExitCode::kUsage, {"it is DoRA", "the folder"});
  test::expect_refusal<UsageError>([&] { unmerge_adapter(ia3); }, ExitCode::kUsage,
                                   {"[" + last.path() + "]", "2 factors of zero in ia3_l, the first at 3"});
  EXPECT_EQ(digests(dora), before);
  EXPECT_EQ(digests(ia3), others);
  BuiltModel quantized = test::quantized_model("llama", kernels::QuantizedFormat::kNf4, at::kFloat);
  add_scattered(quantized, "lora");
  test::expect_refusal<UsageError>([&] { unmerge_adapter(quantized); }, ExitCode::kUsage, {"stores its weight in nf4"});
}

TEST(MergeQuantized, AnAdapterOfLayersIsRefusedAndNothingIsChanged) {
  const at::NoGradGuard no_gradient;
  BuiltModel plain = frozen_model("llama");
  BuiltModel quantized = test::quantized_model("llama", kernels::QuantizedFormat::kInt8, at::kFloat);
  create_npt(quantized, {}, "a");
  const auto before = digests(plain);
  test::expect_refusal<UsageError>([&] { merge_quantized_adapter(quantized, plain, MergeInto::kDequantized); },
                                   ExitCode::kUsage, {"[model.layers.0]", "cannot be merged"});
  EXPECT_EQ(digests(plain), before);
}

}  // namespace
}  // namespace limbeck::adapters
