// Several adapters on one base, used by name: the bits of each alone, nothing read or converted again.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <tuple>
#include <vector>

#include "modules/adapters/folder/peft_folder.h"
#include "modules/adapters/hosts/use_adapter.h"
#include "modules/adapters/new_adapter.h"
#include "modules/errors.h"
#include "modules/precision/casts.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/tiny_models.h"

namespace limbeck::test {
namespace {

using adapters::NewAdapter;
using adapters::PeftKind;
using models::BuiltModel;

using Row = std::tuple<at::ScalarType, std::string>;

class AdapterSwitch : public ::testing::TestWithParam<Row> {
 protected:
  BuiltModel base() const {
    models::ModelRequest request;
    request.folder = model_;
    request.dtype = dtype();
    request.random_init = true;
    request.seed = 5;
    return models::load_model(request);
  }

  // An adapter that changes a lot, in a folder.
  std::filesystem::path saved(const NewAdapter& wanted, const std::string& name) const {
    BuiltModel built = base();
    adapters::create_adapter(built, wanted);
    const at::NoGradGuard no_gradient;
    at::manual_seed(wanted.seed);
    for (const auto& module : built.model->modules()) {
      const auto* adapter = dynamic_cast<precision::ContractModule*>(module.get());
      if (adapter == nullptr || adapter->role() != precision::Role::kAdapter) continue;
      for (at::Tensor& tensor : adapter->parameters()) {
        precision::cast_into(tensor, at::randn(tensor.sizes(), at::kFloat).mul_(0.1).add_(tensor));
      }
    }
    std::filesystem::create_directories(folder_ / name);
    adapters::save_adapter(built, wanted.config, wanted.name, folder_ / name);
    return folder_ / name;
  }

  at::Tensor answer(const BuiltModel& built, const at::Tensor& ids) const {
    const at::NoGradGuard no_gradient;
    models::ModelInput input;
    input.ids = ids;
    return built.model->head(built.model->encode(input).last);
  }

  static at::ScalarType dtype() { return std::get<0>(GetParam()); }
  static bool sparse() { return std::get<1>(GetParam()) == "qwen3_moe"; }

  const std::filesystem::path model_ = tiny_model(std::get<1>(GetParam()));
  const TemporaryFolder folder_;
};

NewAdapter lora(uint64_t seed, const std::vector<std::string>& targets = {}) {
  NewAdapter wanted;
  wanted.targets.assign(targets.begin(), targets.end());
  wanted.config.rank = 4;
  wanted.config.alpha = 8;
  wanted.seed = seed;
  return wanted;
}

NewAdapter ia3(uint64_t seed) {
  NewAdapter wanted;
  wanted.config.kind = PeftKind::kIa3;
  wanted.seed = seed;
  return wanted;
}

// Where every tensor of the model lives, and in which dtype.
std::map<const void*, at::ScalarType> storage_of(const BuiltModel& built) {
  std::map<const void*, at::ScalarType> found;
  for (const at::Tensor& tensor : built.model->parameters()) found[tensor.const_data_ptr()] = tensor.scalar_type();
  return found;
}

TEST_P(AdapterSwitch, HundredRequestsInTurnHaveTheBitsOfEachAlone) {
  NewAdapter second = lora(2);
  second.config.dora = true;
  const std::map<std::string, std::filesystem::path> folders = {
      {"first", saved(lora(1), "first")},
      {"second", saved(second, "second")},
      {"third", saved(ia3(3), "third")},
      {"fourth", saved(lora(4, {"embed_tokens"}), "fourth")},
      {"fifth", saved(lora(5, {sparse() ? "experts.down_proj" : "o_proj"}), "fifth")},
      {"sixth", saved(lora(6, {sparse() ? "experts.gate_up_proj" : "embed_tokens", "v_proj"}), "sixth")}};
  std::map<std::string, BuiltModel> alone;
  BuiltModel together = base();
  for (const auto& [name, folder] : folders) {
    alone[name] = base();
    adapters::load_adapter(alone[name], {.folder = folder});
    adapters::load_adapter(together, {.folder = folder, .name = name});
    std::filesystem::remove_all(folder);  // whoever reads it again fails
  }
  alone[""] = base();
  const auto before = storage_of(together);
  const std::vector<std::string> turns = {"first",  "second", "",      "third",  "first", "fourth",
                                          "fourth", "fifth",  "sixth", "second", "fifth", "third"};
  for (int64_t i = 0; i < 100; ++i) {
    const std::string& name = turns[static_cast<size_t>(i) % turns.size()];
    const auto ids = at::arange(12, at::kLong).mul_(i + 1).remainder_(50).reshape({2, 6});
    adapters::use_adapter(together, name);
    const at::Tensor got = answer(together, ids);
    EXPECT_EQ(got.scalar_type(), dtype());
    ASSERT_TRUE(got.isfinite().all().item<bool>());
    EXPECT_TRUE(at::equal(got, answer(alone.at(name), ids))) << "request " << i << " by " << name;
    EXPECT_EQ(at::equal(got, answer(alone.at(""), ids)), name.empty()) << name << " changes nothing";
  }
  EXPECT_EQ(storage_of(together), before);
}

TEST_P(AdapterSwitch, ACheckpointedLayerRunsAgainWithTheAdaptersOfItsForward) {
  BuiltModel built = base();
  adapters::create_adapter(built, lora(1));
  NewAdapter other = ia3(2);
  other.name = "other";
  adapters::create_adapter(built, other);
  models::ModelInput input;
  input.ids = at::arange(12, at::kLong).reshape({2, 6});
  const auto gradients = [&](bool checkpointing, bool switched) {
    built.model->set_checkpointing(checkpointing);
    adapters::use_adapter(built, "default");
    for (const at::Tensor& parameter : built.model->parameters()) parameter.mutable_grad().reset();
    const at::Tensor last = built.model->encode(input).last;
    if (switched) adapters::use_adapter(built, "other");
    last.backward(at::ones_like(last));
    for (const auto& module : built.model->modules()) {
      const auto* host = dynamic_cast<const models::Linear*>(module.get());
      if (host == nullptr || host->adapter("other") == nullptr) continue;
      EXPECT_EQ(host->adapter_in_use(), switched ? "other" : "default") << host->path();
    }
    std::map<std::string, at::Tensor> found;
    for (const auto& entry : built.model->named_parameters()) {
      if (entry.value().grad().defined()) found[entry.key()] = entry.value().grad().clone();
    }
    return found;
  };
  const auto wanted = gradients(false, false);
  EXPECT_FALSE(wanted.empty());
  for (const bool switched : {false, true}) {
    const auto got = gradients(true, switched);
    ASSERT_EQ(got.size(), wanted.size());
    for (const auto& [name, gradient] : wanted) {
      ASSERT_TRUE(got.contains(name)) << name;
      EXPECT_TRUE(at::equal(got.at(name), gradient)) << name << (switched ? ", switched" : "");
    }
  }
}

TEST_P(AdapterSwitch, ANameThatNoneHasIsRefusedWithThoseThereAre) {
  BuiltModel built = base();
  adapters::create_adapter(built, lora(1));
  try {
    adapters::use_adapter(built, "other");
    FAIL();
  } catch (const UsageError& error) {
    EXPECT_NE(std::string(error.what()).find("has no adapter other: it has default"), std::string::npos)
        << error.what();
  }
  EXPECT_THROW(adapters::create_adapter(built, lora(2)), UsageError) << "a second one of the same name";
}

TEST_P(AdapterSwitch, ANewAdapterChangesNothingAtFirst) {
  const auto ids = at::arange(10, at::kLong).reshape({1, 10});
  const at::Tensor plain = answer(base(), ids);
  std::vector<NewAdapter> all = {lora(1), ia3(1), lora(1, {"embed_tokens"})};
  if (sparse()) all.push_back(lora(1, {"experts\\..*"}));
  for (const NewAdapter& wanted : all) {
    BuiltModel built = base();
    EXPECT_GT(adapters::create_adapter(built, wanted), 0);
    EXPECT_TRUE(at::equal(answer(built, ids), plain)) << wanted.config.kind_name();
  }
}

INSTANTIATE_TEST_SUITE_P(Table, AdapterSwitch,
                         ::testing::Combine(::testing::Values(at::kFloat, at::kBFloat16, at::kHalf),
                                            ::testing::Values("llama", "qwen3_moe")),
                         [](const auto& test) {
                           return precision::dtype_name(std::get<0>(test.param)) + "_" + std::get<1>(test.param);
                         });

}  // namespace
}  // namespace limbeck::test
