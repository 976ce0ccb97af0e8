#include "trainer/objective/projectors.h"

#include <fmt/format.h>

#include "modules/errors.h"

namespace limbeck::objective {

namespace {

std::unique_ptr<precision::PrecisionPolicy> policy_beside(const recipe::Settings& settings,
                                                          const models::BuiltModel& model, const char* whose) {
  const bool float32 = settings.text("projector.dtype") == "float32";
  const at::ScalarType dtype = float32 ? at::kFloat : model.policy->stream_dtype();
  const std::string source = float32 ? settings.origin("projector.dtype").to_string() : std::string(whose) + " dtype";
  return std::make_unique<precision::PrecisionPolicy>(dtype, model.policy->device(), source);
}

}  // namespace

Projectors::Projectors(const recipe::Settings& settings, const models::BuiltModel& student,
                       const models::BuiltModel* teacher, bool meta)
    : student_(&student),
      teacher_(teacher),
      student_side_(policy_beside(settings, student, "student")),
      meta_(meta),
      init_std_(settings.number("projector.init_std")),
      seed_(settings.integer("seed")) {
  if (teacher != nullptr) teacher_side_ = policy_beside(settings, *teacher, "teacher");
  for (const recipe::Value& rule : settings.values("precision.rule")) {
    if (!rule.text.starts_with("projector")) continue;
    throw UsageError(
        fmt::format("precision.rule \"{}\" ({}): a projector takes the dtype of the model it attaches to: "
                    "set projector.dtype = float32 for another, or remove the rule",
                    rule.text, rule.origin.to_string()));
  }
}

precision::Scope Projectors::scope(const std::string& path, Side side) const {
  const auto& policy = side == Side::kStudent ? student_side_ : teacher_side_;
  return {policy.get(), path, meta_ ? std::optional<c10::Device>(c10::kMeta) : std::nullopt, /*trainable=*/true};
}

std::shared_ptr<projectors::HiddenProjector> Projectors::from_student(const std::string& path, int64_t out,
                                                                      at::ScalarType accepts, at::ScalarType gives,
                                                                      projectors::HiddenProjector::Kind kind,
                                                                      const std::string& group) {
  return keep(std::make_shared<projectors::HiddenProjector>(
                  scope(path, Side::kStudent), kind, student_->model->architecture().hidden, out, accepts, gives),
              group);
}

}  // namespace limbeck::objective
