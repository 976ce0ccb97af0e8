// Teacher and student as a recipe names them: built on meta, or with their weights.
#pragma once
#include <optional>
#include <string>

#include "modules/models/weights/load_model.h"
#include "trainer/recipe/settings.h"

namespace limbeck::build {

// What ROLE.model, ROLE.dtype, ROLE.device and precision.rule ask for; none when ROLE.model is not set.
std::optional<models::ModelRequest> model_request(const recipe::Settings& settings, const std::string& role);

models::BuiltModel build_student(const recipe::Settings& settings, bool meta);
struct BuiltTeacher {
  std::optional<models::BuiltModel> model;  // none when the recipe names no teacher
  bool shares_weights = false;              // with the student, whose adapter it goes without
};
// `student` is what teacher.kind = self and ema copy. A student under an adapter and a teacher from the same folder in
// the same dtypes have one copy of their weights.
BuiltTeacher build_teacher(const recipe::Settings& settings, const models::BuiltModel& student, bool meta);

}  // namespace limbeck::build
