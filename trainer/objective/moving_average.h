// A teacher that follows its student: after each update teacher = decay teacher + (1 - decay) student, in float32
// whatever the storage dtype, because a step of 1e-4 is lost in half precision. The averages are what a checkpoint
// keeps; the teacher's own weights are made from them.
#pragma once
#include <string>
#include <utility>
#include <vector>

#include "modules/models/weights/load_model.h"

namespace limbeck::objective {

class MovingAverage {
 public:
  // `teacher` has the student's present weights.
  MovingAverage(models::BuiltModel& teacher, const models::BuiltModel& student, double decay);

  void follow();
  // Makes the teacher's weights anew from the averages, which somebody has filled.
  void refresh();
  std::vector<std::pair<std::string, at::Tensor>> tensors() const;  // "teacher_ema.layers.0.…"

 private:
  struct Entry {
    std::string name;
    at::Tensor teacher, student, average;  // `average` is `teacher` itself where that is wide
  };
  double decay_;
  std::vector<Entry> entries_;
};

}  // namespace limbeck::objective
