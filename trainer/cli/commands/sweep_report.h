// A sweep as a person reads it and as tools draw it.
#pragma once
#include <nlohmann/json.hpp>
#include <string>

#include "trainer/sweep/sweep_result.h"

namespace limbeck::cli {

// "[3/48] down_proj (layers.0.mlp.down_proj)  float16  accuracy 86.00 %  drop 0.00 pp  KL …  logit error …"
std::string candidate_line(const sweep::MeasuredCandidate& one, sweep::Kind kind, int64_t number, int64_t all);
// Ranked, with what is selected and what none beats.
std::string candidates_table(const sweep::SweepResult& result, int width);
// All in floats, all in each other dtype, and the combined model.
std::string models_table(const sweep::SweepResult& result, int width);
// What the combined model is predicted to lose and what it loses, and whether the rows can say so.
std::string combined_lines(const sweep::SweepResult& result);
std::string time_line(const sweep::SweepResult& result);
nlohmann::ordered_json sweep_json(const sweep::SweepResult& result);
// A fragment of a recipe.
std::string rules_ini(const std::vector<std::string>& rules);

}  // namespace limbeck::cli
