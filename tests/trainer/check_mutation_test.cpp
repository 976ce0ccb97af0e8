// Flips the dtype, and separately the device, of every parameter-owning module after construction, one at a time: the
// check must name that module each time, and must have nothing to say about the untouched models.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <iostream>

#include "modules/errors.h"
#include "tests/support/tiny_models.h"
#include "trainer/check/dry_run.h"

namespace limbeck::check {
namespace {

CheckRequest request_for(const std::string& family, const std::string& root = "student") {
  CheckRequest request;
  models::ModelRequest model;
  model.folder = testing::tiny_model(family);
  model.root = root;
  model.trainable = root == "student";
  model.dtype = at::kBFloat16;
  (root == "student" ? request.student : request.teacher) = model;
  request.batch = 2;
  request.length = 12;
  request.new_tokens = 4;
  return request;
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
    const at::TensorOptions options =
        what == Flip::kDtype ? entry.value().options().dtype(at::kFloat) : entry.value().options().device(at::kCPU);
    module.replace_parameter(entry.key(), at::zeros(entry.value().sizes(), options));
  }
}

struct Tally {
  int mutations = 0, stored = 0, ran = 0;
};

Tally mutate_every_module(const CheckRequest& request, Flip what) {
  Tally tally;
  const size_t count = build_subjects(request).contract_modules().size();
  for (size_t i = 0; i < count; ++i) {
    std::string path;
    bool owns = false;
    const CheckReport report = dry_run(request, [&](Subjects& subjects) {
      precision::ContractModule& module = *subjects.contract_modules()[i];
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
  const Tally tally = mutate_every_module(request_for(GetParam()), Flip::kDtype);
  std::cout << GetParam() << " dtype: " << tally.stored << " of " << tally.mutations
            << " mutations named by the contract; running the step alone showed " << tally.ran << "\n";
  EXPECT_EQ(tally.stored, tally.mutations);
  EXPECT_GT(tally.mutations, 10);
}

TEST_P(CheckMutation, NamesEveryModuleWhoseDeviceWasFlipped) {
  const Tally tally = mutate_every_module(request_for(GetParam()), Flip::kDevice);
  std::cout << GetParam() << " device: " << tally.stored << " of " << tally.mutations
            << " mutations named by the contract; running the step alone showed " << tally.ran << "\n";
  EXPECT_EQ(tally.stored, tally.mutations);
}

TEST_P(CheckMutation, HasNothingToSayAboutTheUntouchedModel) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    for (const std::string root : {"student", "teacher"}) {
      CheckRequest request = request_for(GetParam(), root);
      (root == "student" ? request.student : request.teacher)->dtype = dtype;
      const CheckReport report = dry_run(request);
      EXPECT_TRUE(report.passed()) << (report.ran_wrongly.empty() ? "" : report.ran_wrongly[0]);
      EXPECT_GT(report.operators, 20);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Families, CheckMutation, ::testing::ValuesIn(testing::tiny_families()),
                         [](const auto& test) { return test.param; });

// A projector that does not speak the student's dtype is what killed the run at step 12,500.
TEST(CheckProjector, JoinsAnyTeacherDtypeToAnyStudentDtypeByNamedCasts) {
  for (const at::ScalarType teacher : {at::kFloat, at::kBFloat16, at::kHalf}) {
    for (const at::ScalarType student : {at::kFloat, at::kBFloat16, at::kHalf}) {
      for (const bool float32 : {false, true}) {
        CheckRequest request = request_for("llama");
        request.teacher = *request_for("qwen3_moe", "teacher").teacher;
        request.teacher->dtype = teacher;
        request.student->dtype = student;
        request.projector = ProjectorRequest{float32, "test"};
        const CheckReport report = dry_run(request);
        EXPECT_TRUE(report.passed()) << (report.ran_wrongly.empty() ? "" : report.ran_wrongly[0]);
        bool listed = false;
        for (const CastRow& cast : report.casts) listed = listed || cast.place.starts_with("projector.logit");
        // Where everything is float32 there is nothing to cast; else at least the loss is widened.
        EXPECT_EQ(listed, teacher != at::kFloat || student != at::kFloat);
      }
    }
  }
}

TEST(CheckProjector, MutatedProjectorIsNamed) {
  CheckRequest request = request_for("llama");
  request.teacher = *request_for("llama", "teacher").teacher;
  request.projector = ProjectorRequest{};
  const CheckReport report =
      dry_run(request, [](Subjects& subjects) { flip(*subjects.contract_modules().back(), Flip::kDtype); });
  EXPECT_TRUE(names(report.stored_wrongly, "projector.logit"));
  EXPECT_FALSE(report.ran_wrongly.empty());
}

TEST(CheckRules, AModuleInAnotherDtypeGetsCastsAtItsDoors) {
  CheckRequest request = request_for("llama");
  request.student->rules = {precision::parse_rule("student.layers.*.mlp.* float16", "test:1")};
  const CheckReport report = dry_run(request);
  EXPECT_TRUE(report.passed()) << (report.ran_wrongly.empty() ? "" : report.ran_wrongly[0]);
  int64_t doors = 0;
  for (const CastRow& cast : report.casts) {
    if (cast.phase == "train" && cast.place == "student.layers.0.mlp.up_proj (input)") doors += cast.count;
  }
  EXPECT_EQ(doors, 1);
}

TEST(CheckRules, ARuleThatMatchesNothingIsRefusedWithTheNearestNames) {
  CheckRequest request = request_for("llama");
  request.student->rules = {precision::parse_rule("student.layers.*.mlp.upproj float16", "my.ini:14")};
  try {
    dry_run(request);
    FAIL();
  } catch (const UsageError& error) {
    EXPECT_NE(std::string(error.what()).find("my.ini:14"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("up_proj"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace limbeck::check
