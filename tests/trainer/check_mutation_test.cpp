// Flips the dtype, and separately the device, of every parameter-owning module after construction, one at a time: the
// check must name that module each time, and must have nothing to say about the untouched models.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <iostream>
#include <set>

#include "modules/errors.h"
#include "tests/support/recipe_settings.h"
#include "tests/support/tiny_models.h"
#include "trainer/check/dry_run.h"

namespace limbeck::check {
namespace {

using objective::Distillation;
using test::RecipeKeys;

RecipeKeys recipe_for(const std::string& family, const std::string& dtype = "bfloat16") {
  return {{"student.model", test::tiny_model(family).string()},
          {"student.dtype", dtype},
          {"objective.alpha", "0"},
          {"data.batch_size", "2"},
          {"data.sequence_length", "12"},
          {"generation.max_new_tokens", "4"}};
}

RecipeKeys with_teacher(RecipeKeys keys, const std::string& family, const std::string& dtype = "bfloat16") {
  keys.emplace_back("teacher.model", test::tiny_model(family).string());
  keys.emplace_back("teacher.dtype", dtype);
  std::erase_if(keys, [](const auto& entry) { return entry.first == "objective.alpha"; });
  return keys;
}

CheckReport check(const RecipeKeys& keys, const std::function<void(Distillation&)>& tamper = {}) {
  return dry_run(test::recipe_settings(keys), test::builtin_registries(), /*ranks=*/1, {.models = tamper, .batch = {}});
}

std::string first_violation(const CheckReport& report) {
  if (!report.stored_wrongly.empty()) return report.stored_wrongly.front();
  return report.ran_wrongly.empty() ? "" : report.ran_wrongly.front();
}

bool names(const std::vector<std::string>& lines, const std::string& path) {
  for (const std::string& line : lines) {
    if (line.find("[" + path + "]") != std::string::npos || line.find("[" + path + " ") != std::string::npos)
      return true;
  }
  return false;
}

enum class Flip { kDtype, kDevice };

void flip(precision::ContractModule& module, Flip what) {
  for (const auto& entry : module.named_parameters(/*recurse=*/false)) {
    const at::ScalarType other = entry.value().scalar_type() == at::kFloat ? at::kBFloat16 : at::kFloat;
    const at::TensorOptions options =
        what == Flip::kDtype ? entry.value().options().dtype(other) : entry.value().options().device(at::kCPU);
    module.replace_parameter(entry.key(), at::zeros(entry.value().sizes(), options));
  }
}

struct Tally {
  int mutations = 0, stored = 0, ran = 0;
};

Tally mutate_every_module(const RecipeKeys& keys, Flip what) {
  Tally tally;
  size_t count = 0;
  check(keys, [&](Distillation& objective) { count = objective.contract_modules().size(); });
  for (size_t i = 0; i < count; ++i) {
    std::string path;
    bool owns = false;
    const CheckReport report = check(keys, [&](Distillation& objective) {
      precision::ContractModule& module = *objective.contract_modules()[i];
      path = module.path();
      owns = !module.parameters(/*recurse=*/false).empty();
      flip(module, what);
    });
    if (!owns) continue;  // a tied head: its weight is the embedding's
    ++tally.mutations;
    tally.stored += names(report.stored_wrongly, path) ? 1 : 0;
    tally.ran += report.ran_wrongly.empty() ? 0 : 1;
    EXPECT_TRUE(names(report.stored_wrongly, path)) << path;
  }
  return tally;
}

class CheckMutation : public ::testing::TestWithParam<std::string> {};

TEST_P(CheckMutation, NamesEveryModuleWhoseDtypeWasFlipped) {
  const Tally tally = mutate_every_module(recipe_for(GetParam()), Flip::kDtype);
  std::cout << GetParam() << " dtype: " << tally.stored << " of " << tally.mutations
            << " mutations named by the contract; running the step alone showed " << tally.ran << "\n";
  EXPECT_EQ(tally.stored, tally.mutations);
  EXPECT_GT(tally.mutations, 10);
}

TEST_P(CheckMutation, NamesEveryModuleWhoseDeviceWasFlipped) {
  const Tally tally = mutate_every_module(recipe_for(GetParam()), Flip::kDevice);
  std::cout << GetParam() << " device: " << tally.stored << " of " << tally.mutations
            << " mutations named by the contract; running the step alone showed " << tally.ran << "\n";
  EXPECT_EQ(tally.stored, tally.mutations);
}

TEST_P(CheckMutation, HasNothingToSayAboutTheUntouchedModel) {
  for (const std::string dtype : {"float32", "bfloat16", "float16"}) {
    for (const bool teacher : {false, true}) {
      RecipeKeys keys = recipe_for(GetParam(), dtype);
      if (teacher) keys = with_teacher(keys, GetParam(), dtype);
      const CheckReport report = check(keys);
      EXPECT_TRUE(report.passed()) << dtype << ": " << first_violation(report);
      EXPECT_GT(report.operators, 20);
      EXPECT_GT(report.peak_bytes, 0);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Families, CheckMutation, ::testing::ValuesIn(test::tiny_families()),
                         [](const auto& test) { return test.param; });

const std::vector<std::string> kDtypes = {"float32", "bfloat16", "float16"};

// A projector that does not speak the student's dtype is what killed the run at step 12,500.
TEST(CheckProjector, JoinsAnyTeacherDtypeToAnyStudentDtypeByNamedCasts) {
  for (const std::string& teacher : kDtypes) {
    for (const std::string& student : kDtypes) {
      for (const std::string projector : {"teacher", "float32"}) {
        RecipeKeys keys = with_teacher(recipe_for("llama", student), "qwen3_moe", teacher);
        keys.emplace_back("projector.kind", "logit");
        keys.emplace_back("projector.dtype", projector);
        const CheckReport report = check(keys);
        EXPECT_TRUE(report.passed()) << teacher << " " << student << ": " << first_violation(report);
        bool listed = false;
        for (const CastRow& cast : report.casts) listed = listed || cast.place.starts_with("projector.logit");
        // Nothing to cast where teacher, projector and student share a dtype.
        const std::string own = projector == "teacher" ? teacher : projector;
        EXPECT_EQ(listed, own != teacher || own != student) << teacher << " " << own << " " << student;
      }
    }
  }
}

TEST(CheckProjector, MutatedProjectorIsNamed) {
  RecipeKeys keys = with_teacher(recipe_for("llama"), "llama");
  keys.emplace_back("projector.kind", "logit");
  const CheckReport report = check(keys, [](Distillation& objective) {
    for (const auto& module : objective.contract_modules()) {
      if (module->path().starts_with("projector.logit")) flip(*module, Flip::kDtype);
    }
  });
  EXPECT_TRUE(names(report.stored_wrongly, "projector.logit"));
  EXPECT_FALSE(report.ran_wrongly.empty());
}

using AdapterRow = std::tuple<std::string, std::string>;
class CheckAdapter : public ::testing::TestWithParam<AdapterRow> {
 protected:
  static RecipeKeys keys() {
    const auto& [kind, dtype] = GetParam();
    RecipeKeys keys = with_teacher(recipe_for("llama", dtype), "llama", dtype);
    for (auto& [key, value] : keys) {
      if (key == "teacher.model") value = keys.front().second;  // the student's folder
    }
    keys.emplace_back("adapter.kind", kind);
    return keys;
  }
};

TEST_P(CheckAdapter, HasTheDtypeOfItsHostAndTrainsAlone) {
  const auto& [kind, dtype] = GetParam();
  int64_t adapters = 0;
  const CheckReport report = check(keys(), [&, &wanted = dtype](Distillation& objective) {
    EXPECT_TRUE(objective.pair().shares_weights);
    for (const auto& module : objective.contract_modules()) {
      const bool adapter = module->role() == precision::Role::kAdapter;
      adapters += adapter ? 1 : 0;
      for (const at::Tensor& tensor : module->parameters(/*recurse=*/false)) {
        EXPECT_EQ(tensor.requires_grad(), adapter) << module->path();
        EXPECT_EQ(precision::dtype_name(tensor.scalar_type()), wanted) << module->path();
      }
    }
    for (const auto& trained : objective.trained_parameters())
      EXPECT_NE(trained.name.find(".default."), trained.name.npos);
  });
  EXPECT_TRUE(report.passed()) << first_violation(report);
  EXPECT_EQ(adapters, 2 * (kind == "ia3" ? 3 : 7));  // of two layers
  EXPECT_TRUE(report.unreached.empty());
}

struct Elsewhere {
  std::string family, target;
  size_t adapters;
  std::vector<std::string> paths;  // the first and the last
};

// On embeddings and on stacks of experts.
class CheckAdapterElsewhere : public ::testing::TestWithParam<std::string> {
 protected:
  static std::vector<Elsewhere> rows() {
    return {{"llama", "embed_tokens", 1, {"student.embed_tokens.default"}},
            {"gpt2", "wte|wpe", 2, {"student.embed_positions.default", "student.embed_tokens.default"}},
            {"qwen3_moe",
             "experts\\..*",
             4,
             {"student.layers.0.mlp.experts.down_proj.default", "student.layers.1.mlp.experts.gate_up_proj.default"}}};
  }
  static RecipeKeys keys(const Elsewhere& row) {
    RecipeKeys keys = with_teacher(recipe_for(row.family, GetParam()), row.family, GetParam());
    keys.emplace_back("adapter.kind", "lora");
    keys.emplace_back("adapter.target", row.target);
    return keys;
  }
};

TEST_P(CheckAdapterElsewhere, HasTheDtypeOfItsHostAndTrainsAlone) {
  for (const Elsewhere& row : rows()) {
    std::set<std::string> paths;
    const CheckReport report = check(keys(row), [&](Distillation& objective) {
      for (const auto& module : objective.contract_modules()) {
        if (module->role() != precision::Role::kAdapter) continue;
        paths.insert(module->path());
        EXPECT_EQ(module->parameters(/*recurse=*/false).size(), 2) << module->path();
        for (const at::Tensor& tensor : module->parameters(/*recurse=*/false)) {
          EXPECT_TRUE(tensor.requires_grad()) << module->path();
          EXPECT_EQ(precision::dtype_name(tensor.scalar_type()), GetParam()) << module->path();
        }
      }
      EXPECT_EQ(objective.trained_parameters().size(), 2 * row.adapters);
    });
    EXPECT_TRUE(report.passed()) << row.target << ": " << first_violation(report);
    EXPECT_TRUE(report.unreached.empty()) << row.target;
    ASSERT_EQ(paths.size(), row.adapters) << row.target;
    EXPECT_EQ(*paths.begin(), row.paths.front());
    EXPECT_EQ(*paths.rbegin(), row.paths.back());
  }
}

TEST_P(CheckAdapterElsewhere, MutationOfAnyRowIsNamed) {
  for (const Elsewhere& row : rows()) {
    for (const Flip what : {Flip::kDtype, Flip::kDevice}) {
      const Tally tally = mutate_every_module(keys(row), what);
      EXPECT_EQ(tally.stored, tally.mutations) << row.target;
      EXPECT_GT(tally.mutations, 20) << row.target;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, CheckAdapterElsewhere, ::testing::ValuesIn(kDtypes),
                         [](const auto& test) { return test.param; });

// A half precision inside the experts, and float32 adapters there: casts where they meet, and nowhere else.
TEST(CheckAdapterRule, MeetsTheComputeDtypeInsideTheExperts) {
  RecipeKeys keys = recipe_for("qwen3_moe", "float32");
  keys.emplace_back("adapter.kind", "lora");
  keys.emplace_back("adapter.target", "experts.gate_up_proj");
  keys.emplace_back("precision.rule", "student.layers.*.mlp.experts bfloat16");
  const auto adapter_casts = [](const CheckReport& report) {
    return std::count_if(report.casts.begin(), report.casts.end(), [](const CastRow& cast) {
      return cast.place.starts_with("student.layers.*.mlp.experts.gate_up_proj.default");
    });
  };
  const CheckReport alike = check(keys);
  EXPECT_TRUE(alike.passed()) << first_violation(alike);
  EXPECT_EQ(adapter_casts(alike), 0);
  keys.emplace_back("precision.rule", "student.**.default float32");
  const CheckReport wider = check(keys);
  EXPECT_TRUE(wider.passed()) << first_violation(wider);
  EXPECT_GE(adapter_casts(wider), 2);
}

TEST(CheckAdapterRule, GivesAnAdapterADtypeOfItsOwnByNamedCasts) {
  RecipeKeys keys = recipe_for("llama", "bfloat16");
  keys.emplace_back("adapter.kind", "lora");
  keys.emplace_back("precision.rule", "student.**.default float32");
  const CheckReport report = check(keys, [](Distillation& objective) {
    for (const auto& trained : objective.trained_parameters()) EXPECT_EQ(trained.tensor.scalar_type(), at::kFloat);
  });
  EXPECT_TRUE(report.passed()) << first_violation(report);
  EXPECT_TRUE(std::any_of(report.casts.begin(), report.casts.end(), [](const CastRow& cast) {
    return cast.place == "student.layers.*.self_attn.q_proj.default (input)";
  }));
  keys.back().second = "student.**.deflaut float32";
  EXPECT_THROW(check(keys), UsageError);
}

TEST_P(CheckAdapter, MutationOfAnyRowIsNamed) {
  for (const Flip what : {Flip::kDtype, Flip::kDevice}) {
    const Tally tally = mutate_every_module(keys(), what);
    EXPECT_EQ(tally.stored, tally.mutations);
    EXPECT_GT(tally.mutations, 40);
  }
}

INSTANTIATE_TEST_SUITE_P(Table, CheckAdapter,
                         ::testing::Combine(::testing::Values("lora", "dora", "ia3"), ::testing::ValuesIn(kDtypes)),
                         [](const auto& test) { return std::get<0>(test.param) + "_" + std::get<1>(test.param); });

// A batch of which one tensor stayed where the loader made it: what would end a run on a GPU at its first step.
struct Left {
  std::string what;
  std::function<at::Tensor*(data::Batch&)> tensor;
};

std::vector<Left> tensors_of_a_batch() {
  const auto value = [](std::optional<at::Tensor>& tensor) { return tensor ? &*tensor : nullptr; };
  return {{"ids", [](data::Batch& batch) { return &batch.student.ids; }},
          {"labels", [](data::Batch& batch) { return &batch.student.labels; }},
          {"attention_mask", [=](data::Batch& batch) { return value(batch.student.attention_mask); }},
          {"document_ids", [=](data::Batch& batch) { return value(batch.student.document_ids); }},
          {"teacher ids", [](data::Batch& batch) { return batch.teacher ? &batch.teacher->ids : nullptr; }},
          {"teacher attention_mask",
           [=](data::Batch& batch) { return batch.teacher ? value(batch.teacher->attention_mask) : nullptr; }},
          {"teacher_position", [](data::Batch& batch) { return &batch.teacher_position; }},
          {"classes", [](data::Batch& batch) { return &batch.classes; }}};
}

// How many of them the recipe's batches have; each that is read, left on the CPU, must fail the check.
int leave_each_tensor(const RecipeKeys& keys, const std::string& unread = "") {
  int left = 0;
  for (const Left& one : tensors_of_a_batch()) {
    bool there = false;
    const auto leave = [&](data::Batch& batch) {
      at::Tensor* tensor = one.tensor(batch);
      if (tensor == nullptr || !tensor->defined()) return;
      there = true;
      *tensor = at::ones(tensor->sizes(), tensor->options().device(at::kCPU));
    };
    const CheckReport report =
        dry_run(test::recipe_settings(keys), test::builtin_registries(), /*ranks=*/1, {.models = {}, .batch = leave});
    EXPECT_EQ(report.passed(), !there || one.what == unread) << one.what << ": " << first_violation(report);
    left += there ? 1 : 0;
  }
  return left;
}

TEST(CheckPlacement, ABatchLeftOnTheCpuIsFoundWhicheverOfItsTensorsItIs) {
  RecipeKeys packed = with_teacher(recipe_for("llama"), "llama");
  EXPECT_EQ(leave_each_tensor(packed), 3);
  packed.emplace_back("data.packing", "padded");
  EXPECT_EQ(leave_each_tensor(packed), 3);
  RecipeKeys classifier = recipe_for("bert");
  classifier.emplace_back("data.packing", "padded");
  EXPECT_EQ(leave_each_tensor(classifier, "labels"), 4);
}

TEST(CheckRules, AModuleInAnotherDtypeGetsCastsAtItsDoors) {
  RecipeKeys keys = recipe_for("llama");
  keys.emplace_back("precision.rule", "student.layers.*.mlp.* float16");
  const CheckReport report = check(keys);
  EXPECT_TRUE(report.passed()) << first_violation(report);
  int64_t doors = 0;
  for (const CastRow& cast : report.casts) {
    if (cast.phase == "train" && cast.place == "student.layers.*.mlp.up_proj (input)") doors += cast.count;
  }
  EXPECT_EQ(doors, 2);  // its two layers share a row
}

TEST(CheckRules, ARuleThatMatchesNothingIsRefusedWithTheNearestNames) {
  RecipeKeys keys = recipe_for("llama");
  keys.emplace_back("precision.rule", "student.layers.*.mlp.upproj float16");
  try {
    check(keys);
    FAIL();
  } catch (const UsageError& error) {
    EXPECT_NE(std::string(error.what()).find("command line"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("up_proj"), std::string::npos) << error.what();
  }
}

TEST(CheckMemory, CheckpointedActivationsNeedLess) {
  RecipeKeys keys = recipe_for("llama", "float32");
  for (auto& [key, value] : keys) {
    if (key == "data.sequence_length") value = "256";
  }
  const int64_t kept = check(keys).peak_bytes;
  keys.emplace_back("train.checkpoint_activations", "true");
  EXPECT_LT(check(keys).peak_bytes, kept);
}

}  // namespace
}  // namespace limbeck::check
