#include "trainer/objective/projectors.h"

namespace limbeck::objective {

namespace {

std::unique_ptr<precision::PrecisionPolicy> policy_beside(const ProjectorOptions& options,
                                                          const models::BuiltModel& model, const char* whose) {
  const at::ScalarType dtype = options.float32 ? at::kFloat : model.policy->stream_dtype();
  const std::string source = options.float32 ? options.float32_source : std::string(whose) + " dtype";
  return std::make_unique<precision::PrecisionPolicy>(dtype, model.policy->device(), source);
}

}  // namespace

Projectors::Projectors(const ProjectorOptions& options, const ModelPair& pair)
    : pair_(pair), options_(options), student_side_(policy_beside(options, pair.student, "student")) {
  if (pair.teacher) teacher_side_ = policy_beside(options, *pair.teacher, "teacher");
}

precision::Scope Projectors::scope(const std::string& path, Side side) const {
  const auto& policy = side == Side::kStudent ? student_side_ : teacher_side_;
  return {policy.get(), path, pair_.on_meta() ? std::optional<c10::Device>(c10::kMeta) : std::nullopt,
          /*trainable=*/true};
}

std::shared_ptr<projectors::HiddenProjector> Projectors::from_student(const std::string& path, int64_t out,
                                                                      at::ScalarType accepts, at::ScalarType gives,
                                                                      projectors::HiddenProjector::Kind kind,
                                                                      const std::string& group) {
  return keep(std::make_shared<projectors::HiddenProjector>(
                  scope(path, Side::kStudent), kind, pair_.student.model->architecture().hidden, out, accepts, gives),
              group);
}

}  // namespace limbeck::objective
