#include "trainer/build/recipe_pair.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "kernels/attention/flash_attention_3.h"
#include "trainer/build/attention_library.h"
#include "trainer/build/recipe_adapter.h"
#include "trainer/build/recipe_models.h"

namespace limbeck::build {

std::shared_ptr<objective::ModelPair> build_pair(const recipe::Settings& settings, objective::Materialize how) {
  choose_attention(settings);
  auto pair = std::make_shared<objective::ModelPair>();
  pair->how = how;
  pair->student = build_student(settings, pair->on_meta());
  if (const auto& drawn = pair->student.report.drawn; !drawn.empty()) {
    pair->notes.push_back(fmt::format("student.init = new_head {}: drawn from seed {}, not read: {}",
                                      settings.where("student.init"), settings.text("seed"), fmt::join(drawn, ", ")));
  }
  pair->adapter = adapt_student(read_adapter_options(settings), pair->student, pair->notes);
  BuiltTeacher teacher = build_teacher(settings, pair->student, pair->on_meta());
  pair->teacher = std::move(teacher.model);
  pair->shares_weights = teacher.shares_weights;
  if (settings.text("teacher.kind") == "ema" && !pair->on_meta())
    pair->average.emplace(*pair->teacher, pair->student, settings.number("objective.ema_decay"));
  pair->student.model->train();
  if (pair->teacher) pair->teacher->model->eval();
  if (kernels::uses_flash_attention_3()) {
    pair->notes.push_back(fmt::format("on GPUs attention of half types is that of FlashAttention 3: {} {}",
                                      settings.text(kFlashAttention3), settings.where(kFlashAttention3)));
  }
  return pair;
}

}  // namespace limbeck::build
