// The contract of every module as `limbeck check` tells it: one row for modules that differ only in their layer number.
#pragma once
#include <string>
#include <vector>

#include "trainer/objective/distillation.h"

namespace limbeck::check {

struct ModuleRow {
  std::string path, role, storage, input, compute, output, device, source;
  int64_t modules = 0, parameters = 0, bytes = 0;
  bool tied = false;  // a head whose weight is the embedding's
};

std::vector<ModuleRow> module_table(const objective::Distillation& objective);

// Of the numbers of student and projectors: what updates move, and all of them.
struct Learning {
  int64_t trained = 0, of = 0;
};
Learning count_learning(const objective::Distillation& objective);

// "teacher.layers.12.mlp.up_proj", ".layers." -> "teacher.layers.*.mlp.up_proj": rows that differ in a number alone.
std::string without_number(const std::string& path, const std::string& marker);
// Of the number of its layer.
std::string without_layer(const std::string& path);

}  // namespace limbeck::check
