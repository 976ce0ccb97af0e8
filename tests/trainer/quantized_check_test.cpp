// `check` of recipes with quantized bases: the step runs on meta with nothing to say, and says so of every fault.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "modules/errors.h"
#include "tests/support/recipe_settings.h"
#include "tests/support/tiny_models.h"
#include "tests/trainer/message_of.h"
#include "trainer/check/dry_run.h"

namespace limbeck::check {
namespace {

using objective::Distillation;
using test::RecipeKeys;

RecipeKeys quantized_recipe(const std::string& family, const std::string& dtype, const std::string& format) {
  return {{"student.model", test::tiny_model(family).string()},
          {"student.dtype", dtype},
          {"student.quantize", format},
          {"teacher.model", test::tiny_model(family).string()},
          {"teacher.dtype", "float16"},
          {"teacher.quantize", format},
          {"data.batch_size", "2"},
          {"data.sequence_length", "12"},
          {"generation.max_new_tokens", "4"}};
}

CheckReport checked(const RecipeKeys& keys, const std::function<void(Distillation&)>& tamper = {}) {
  return dry_run(test::recipe_settings(keys), test::builtin_registries(), /*ranks=*/1, {.models = tamper, .batch = {}});
}

class QuantizedCheck : public ::testing::TestWithParam<std::string> {};

TEST_P(QuantizedCheck, HasNothingToSayAboutTheUntouchedModels) {
  for (const std::string dtype : {"float32", "bfloat16"}) {
    for (const std::string format : {"int8", "int4", "int3", "int2-sym-g32", "nf4", "nf4-double"}) {
      const CheckReport report = checked(quantized_recipe(GetParam(), dtype, format));
      EXPECT_TRUE(report.passed()) << dtype << " " << format << ": "
                                   << (report.stored_wrongly.empty() ? report.ran_wrongly : report.stored_wrongly)[0];
      EXPECT_TRUE(report.unreached.empty() || GetParam() != "llama");
      int64_t packed = 0;
      for (const ModuleRow& row : report.modules) {
        if (row.storage != format) continue;
        EXPECT_TRUE(row.role == "attention" || row.role == "mlp" || row.role == "expert") << row.path;
        EXPECT_TRUE(row.input == dtype || row.input == "float16") << row.path;
        packed += row.modules;
      }
      EXPECT_GT(packed, 0);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Families, QuantizedCheck, ::testing::ValuesIn(test::tiny_families()),
                         [](const auto& test) { return test.param; });

TEST(QuantizedCheckMutation, NamesEveryModuleWhoseWeightWasReplaced) {
  const RecipeKeys keys = quantized_recipe("llama", "bfloat16", "nf4");
  size_t count = 0;
  checked(keys, [&](Distillation& objective) { count = objective.contract_modules().size(); });
  int mutations = 0;
  for (size_t i = 0; i < count; ++i) {
    std::string path;
    const CheckReport report = checked(keys, [&](Distillation& objective) {
      auto* linear = dynamic_cast<models::Linear*>(objective.contract_modules()[i].get());
      if (linear == nullptr || !linear->is_quantized()) return;
      path = linear->path();
      const auto format = mutations % 2 == 0 ? kernels::QuantizedFormat::kInt8 : kernels::QuantizedFormat::kNf4;
      const c10::Device device(mutations % 2 == 0 ? c10::kMeta : c10::kCPU);
      linear->replace_packed_weight("weight", {format, linear->out_features(), linear->in_features(), device});
    });
    if (path.empty()) continue;
    ++mutations;
    ASSERT_FALSE(report.stored_wrongly.empty()) << path;
    EXPECT_TRUE(report.stored_wrongly.front().starts_with("[" + path + "]")) << report.stored_wrongly.front();
  }
  EXPECT_EQ(mutations, 2 * 2 * 7);  // two models of two layers
}

TEST(QuantizedCheckMutation, NamesExpertsWhoseCodesWereReplaced) {
  for (const char* stack : {"gate_proj", "up_proj", "down_proj"}) {
    const CheckReport report = checked(quantized_recipe("qwen3_moe", "bfloat16", "nf4"), [&](Distillation& objective) {
      for (const auto& module : objective.contract_modules()) {
        if (module->path() != "student.layers.1.mlp.experts") continue;
        const kernels::QuantizedStack codes = module->packed_weight(stack)->stack();
        const precision::PackedShape shape{codes.rows, codes.columns, codes.count};
        module->replace_packed_weight(stack, {kernels::QuantizedFormat::kInt8, shape, c10::Device(c10::kMeta)});
      }
    });
    ASSERT_FALSE(report.stored_wrongly.empty()) << stack;
    EXPECT_TRUE(report.stored_wrongly.front().starts_with("[student.layers.1.mlp.experts] "))
        << report.stored_wrongly[0];
  }
}

TEST(QuantizedCheckMemory, PlansThePackedBytes) {
  const auto bytes_of = [](const std::string& family, const std::string& format) {
    for (const MemoryRow& row : checked(quantized_recipe(family, "float32", format)).memory) {
      if (row.what == "student weights") return row.bytes;
    }
    return int64_t{0};
  };
  // Of a layer: q and o 32 x 32, k and v 16 x 32, three of 48 x 32; in blocks of 64.
  const int64_t values = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32);
  EXPECT_EQ(bytes_of("llama", "none") - bytes_of("llama", "nf4"), 4 * values - (values / 2 + values / 64 * 4));
  // Nearly all bytes of a mixture are its experts'.
  EXPECT_LT(bytes_of("mixtral", "int8"), bytes_of("mixtral", "none") / 2);
}

TEST(QuantizedCheckMemory, RanksDivideThePackedTeacher) {
  const std::filesystem::path folder = test::tiny_model("llama");
  nlohmann::json config = nlohmann::json::parse(std::ifstream(folder / "config.json"));
  config.update({{"hidden_size", 512}, {"intermediate_size", 1024}, {"head_dim", 64}, {"num_attention_heads", 8}});
  std::ofstream(folder / "config.json") << config.dump();
  const auto teacher_bytes = [&](const std::string& format, int ranks) {
    RecipeKeys keys = quantized_recipe("llama", "float32", "none");
    std::erase_if(keys, [](const auto& entry) { return entry.first == "teacher.model"; });
    keys.emplace_back("teacher.model", folder.string());
    keys.emplace_back("precision.rule", "teacher.layers.** " + format);
    keys.emplace_back("parallel.zero", "3");
    keys.emplace_back("train.accumulate", "2");
    for (const MemoryRow& row : dry_run(test::recipe_settings(keys), test::builtin_registries(), ranks, {}).memory) {
      if (row.what == "teacher weights") return row.bytes;
    }
    return int64_t{0};
  };
  // Units are cut on whole runs of 1,024 elements, which small ones are filled up to.
  for (const std::string format : {"int8", "nf4"}) {
    const int64_t whole = teacher_bytes(format, 1), half = teacher_bytes(format, 2);
    EXPECT_GT(whole, 2'000'000) << format;
    EXPECT_GE(half, whole / 2) << format;
    EXPECT_LE(half, whole / 2 + whole / 8) << format;
  }
}

std::map<std::string, std::string> storage_by_path(const RecipeKeys& keys) {
  std::map<std::string, std::string> stored;
  checked(keys, [&](Distillation& objective) {
    for (const auto& module : objective.contract_modules())
      stored[module->path()] = precision::storage_name(module->precision());
  });
  return stored;
}

TEST(QuantizedCheckRules, AFormatForSomeModulesGoesToThoseThatCanBePacked) {
  RecipeKeys keys = quantized_recipe("llama", "bfloat16", "int8");
  keys.emplace_back("precision.rule", "student.layers.0.** nf4");
  keys.emplace_back("precision.rule", "student.layers.1.mlp.* float32");
  keys.emplace_back("precision.rule", "teacher.layers.*.self_attn.o_proj int4");
  const CheckReport report = checked(keys);
  EXPECT_TRUE(report.passed()) << (report.ran_wrongly.empty() ? "" : report.ran_wrongly[0]);
  auto stored = storage_by_path(keys);
  EXPECT_EQ(stored["student.layers.0.self_attn.q_proj"], "nf4");
  EXPECT_EQ(stored["student.layers.0.mlp.up_proj"], "nf4");
  EXPECT_EQ(stored["student.layers.0.input_layernorm"], "bfloat16");
  EXPECT_EQ(stored["student.layers.1.self_attn.q_proj"], "int8");
  EXPECT_EQ(stored["student.layers.1.mlp.up_proj"], "float32");
  EXPECT_EQ(stored["teacher.layers.1.self_attn.o_proj"], "int4");
  EXPECT_EQ(stored["teacher.layers.1.self_attn.q_proj"], "int8");
}

TEST(QuantizedCheckRules, OneThatPacksNothingIsRefused) {
  const auto message = [](const std::string& rule) {
    RecipeKeys keys = quantized_recipe("llama", "bfloat16", "none");
    keys.emplace_back("precision.rule", rule);
    return test::message_of([&] { checked(keys); });
  };
  const std::string norms = message("student.layers.*.input_layernorm int8");
  EXPECT_NE(norms.find("precision.rule student.layers.*.input_layernorm int8"), std::string::npos) << norms;
  EXPECT_NE(norms.find("packs no weight"), std::string::npos) << norms;
  EXPECT_NE(message("student.layers.*.mlp.up_prj nf4").find("did you mean student.layers."), std::string::npos);
  const std::string unknown = message("student.layers.** int5");
  EXPECT_NE(unknown.find(
                "wanted float32, bfloat16, float16 or float64; or a packed one: int8, int8-g128, int8-g64, int8-g32, "
                "int8-dynamic, int4, int4-g64, int4-g32, int4-sym, int4-sym-g64, int4-sym-g32, int4-sym-dynamic, "
                "int4-sym-g32-dynamic, int3, int3-g64, int3-g32, int3-sym, int3-sym-g64, int3-sym-g32, int2, int2-g64, "
                "int2-g32, int2-sym, int2-sym-g64, int2-sym-g32, nf4, nf4-double"),
            std::string::npos)
      << unknown;
}

TEST(QuantizedCheckRules, AFormatOfTheCpuAloneIsRefusedOnAGpuBeforeTheRun) {
  RecipeKeys keys = quantized_recipe("llama", "bfloat16", "none");
  keys.emplace_back("precision.rule", "teacher.layers.1.mlp.** int4-sym-g32-dynamic");
  checked(keys);
  keys.emplace_back("device", "cuda");
  const std::string refused = test::message_of([&] { checked(keys); });
  EXPECT_NE(refused.find("[teacher.layers.1.mlp."), std::string::npos) << refused;
  EXPECT_NE(refused.find("on cuda, which is for the CPU alone: say int4-sym-g32 there"), std::string::npos) << refused;
}

TEST(QuantizedCheckRules, ACopyOfTheStudentIsPackedAsItIsModuleByModule) {
  RecipeKeys keys = quantized_recipe("llama", "bfloat16", "nf4");
  std::erase_if(keys, [](const auto& entry) { return entry.first.starts_with("teacher."); });
  keys.emplace_back("teacher.kind", "self");
  keys.emplace_back("adapter.kind", "lora");
  keys.emplace_back("precision.rule", "student.layers.0.** int4");
  keys.emplace_back("precision.rule", "student.layers.1.mlp.** float32");
  auto stored = storage_by_path(keys);
  EXPECT_EQ(stored["teacher.layers.0.mlp.up_proj"], "int4");
  EXPECT_EQ(stored["teacher.layers.1.self_attn.q_proj"], "nf4");
  EXPECT_EQ(stored["teacher.layers.1.mlp.up_proj"], "bfloat16");
}

TEST(QuantizedCheckRefusal, CopiesOfTheStudentAreStoredAsItIs) {
  RecipeKeys keys = quantized_recipe("llama", "bfloat16", "nf4");
  std::erase_if(keys, [](const auto& entry) { return entry.first.starts_with("teacher."); });
  for (const std::string kind : {"self", "ema"}) {
    RecipeKeys copied = keys;
    copied.emplace_back("teacher.kind", kind);
    const CheckReport report = checked(copied);
    EXPECT_TRUE(report.passed()) << kind << (report.ran_wrongly.empty() ? "" : report.ran_wrongly[0]);
    copied.emplace_back("teacher.quantize", "int8");
    EXPECT_NE(test::message_of([&] { checked(copied); }).find("remove teacher.quantize"), std::string::npos);
  }
}

}  // namespace
}  // namespace limbeck::check
