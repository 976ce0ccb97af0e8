// An evaluation as a person reads it: teacher beside student, what each of them weighs, and where they agree.
#pragma once
#include <nlohmann/json.hpp>
#include <string>

#include "trainer/evaluate/evaluator.h"
#include "trainer/objective/distillation.h"

namespace limbeck::cli {

std::string evaluation_table(const evaluate::Evaluation& evaluation, const objective::Distillation& objective,
                             int width);
nlohmann::ordered_json evaluation_json(const evaluate::Evaluation& evaluation,
                                       const objective::Distillation& objective);
std::string human_bytes(int64_t bytes);

}  // namespace limbeck::cli
