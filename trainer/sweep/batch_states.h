// The states that enter each stage of a model in floats, of every batch of a sweep: kept as far as a budget of bytes
// goes, else computed again from the last stage that is kept, or from the tokens.
#pragma once
#include <functional>
#include <vector>

#include "modules/models/weights/load_model.h"
#include "trainer/data/batch.h"

namespace limbeck::sweep {

struct SweepBatches {
  std::function<data::Batch(int64_t)> batch;
  int64_t count = 0;
};

// What a stage of candidate.h makes of what enters it (the first one: of the tokens): the one behind the layers gives
// what the head gets. Of a classifier the last layer computes the first token alone, which is all that its head reads,
// unless all are asked for.
at::Tensor through_stage(const models::BuiltModel& model, size_t stage, const at::Tensor& x,
                         const models::ModelInput& input, bool all_tokens = false);
// What the head gets, of what enters a stage.
at::Tensor from_stage(const models::BuiltModel& model, size_t stage, at::Tensor x, const models::ModelInput& input);

class BatchStates {
 public:
  // `model` must live on.
  BatchStates(const models::BuiltModel& model, SweepBatches batches, int64_t bytes);

  int64_t count() const { return batches_.count; }
  // On the model's device.
  data::Batch batch(int64_t index) const;
  // What enters a stage of candidate.h; undefined for the first one, which gets tokens.
  at::Tensor entering(size_t stage, int64_t index, const models::ModelInput& input);
  // What leaves a stage, from whoever computed it: it is what enters the next one.
  void leaving(size_t stage, int64_t index, const at::Tensor& y);
  // What its head gets.
  at::Tensor last(int64_t index, const models::ModelInput& input);
  // Whether so many bytes of the budget are free for what is kept beside states, which half of it is for at most: they
  // are taken then.
  bool take(int64_t bytes);

 private:
  struct Kept {
    size_t stage = 0;  // that x enters
    at::Tensor x = {}, last = {};
  };
  void keep(at::Tensor& place, const at::Tensor& x);
  void keep_entering(size_t stage, Kept& kept, const at::Tensor& x);

  const models::BuiltModel& model_;
  SweepBatches batches_;
  int64_t bytes_left_, others_left_;
  std::vector<Kept> kept_;
};

}  // namespace limbeck::sweep
