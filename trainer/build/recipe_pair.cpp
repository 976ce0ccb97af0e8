#include "trainer/build/recipe_pair.h"

#include "trainer/build/recipe_adapter.h"
#include "trainer/build/recipe_models.h"

namespace limbeck::build {

std::shared_ptr<objective::ModelPair> build_pair(const recipe::Settings& settings, objective::Materialize how) {
  auto pair = std::make_shared<objective::ModelPair>();
  pair->how = how;
  pair->student = build_student(settings, pair->on_meta());
  pair->adapter = adapt_student(read_adapter_options(settings), pair->student, pair->notes);
  BuiltTeacher teacher = build_teacher(settings, pair->student, pair->on_meta());
  pair->teacher = std::move(teacher.model);
  pair->shares_weights = teacher.shares_weights;
  if (settings.text("teacher.kind") == "ema" && !pair->on_meta())
    pair->average.emplace(*pair->teacher, pair->student, settings.number("objective.ema_decay"));
  pair->student.model->train();
  if (pair->teacher) pair->teacher->model->eval();
  return pair;
}

}  // namespace limbeck::build
