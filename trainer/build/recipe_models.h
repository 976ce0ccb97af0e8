// Teacher and student as a recipe names them: built on meta, or with their weights.
#pragma once
#include <optional>
#include <string>

#include "modules/models/weights/load_model.h"
#include "trainer/recipe/settings.h"

namespace limbeck::objective {

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

// Follows a student: after each update teacher = decay teacher + (1 - decay) student, in float32 whatever the storage
// dtype, because a step of 1e-4 is lost in half precision. The averages are what a checkpoint keeps; the teacher's own
// weights are made from them where they differ, also after somebody has filled them in place.
class MovingAverage {
 public:
  MovingAverage(models::BuiltModel& teacher, const models::BuiltModel& student, double decay);

  void follow();
  // Brings the teacher's weights up to date with the averages.
  void refresh();
  std::vector<std::pair<std::string, at::Tensor>> tensors() const;  // "teacher_ema.layers.0.…"

 private:
  struct Entry {
    std::string name;
    at::Tensor teacher, student, average;  // `average` is `teacher` itself where that is wide
    int64_t version = 0;                   // of the average that the teacher's weights were made from
  };
  double decay_;
  std::vector<Entry> entries_;
};

}  // namespace limbeck::objective
