// AdamW over parameter groups with float32 masters beside half weights, clipping, dynamic loss scale, skipping of
// non-finite updates and an EMA. One call of accumulate() a micro-batch, one of step() an update.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "trainer/optim/optimizer_options.h"
#include "trainer/parallel/sharing/parameter_shares.h"

namespace limbeck::optim {

struct Parameter {
  std::string name;
  at::Tensor tensor;
  std::string group;
  bool decays = true;
};

// What a resume needs of one tensor: this rank's part of it.
struct StateTensor {
  std::string name;            // "first_moment.student.layers.0.mlp.up_proj.weight"
  std::vector<int64_t> shape;  // of the whole
  int64_t begin = 0;           // first element of `part`
  at::Tensor part;
  bool saved_here = true;  // each part is saved by one rank
};

struct StepReport {
  bool skipped = false;      // non-finite: weights, masters and moments are bit-unchanged
  std::string nonfinite;     // name of the first tensor whose gradient was not finite
  double gradient_norm = 0;  // global, before clipping, of the unscaled gradient
  double learning_rate = 0;  // of the student's group
  double loss_scale = 1;     // in use for the next update
  int64_t skipped_in_a_row = 0, skipped_in_all = 0;
  std::vector<double> beside;  // what step() was given to bring along
};

class Optimizer {
 public:
  // Works on meta too: `check` sees its memory. `shares`: of the parameters, in their order; null: one rank that holds
  // everything.
  Optimizer(OptimizerOptions options, std::vector<Parameter> parameters,
            std::unique_ptr<parallel::ParameterShares> shares = nullptr);
  ~Optimizer();
  Optimizer(const Optimizer&) = delete;
  Optimizer& operator=(const Optimizer&) = delete;

  double loss_scale() const;  // 1 unless a trained parameter is float16
  // Adds the .grad of every parameter to the update (float32 sums when `micro_batches` > 1) and frees it.
  void accumulate(int64_t micro_batches);
  // Unscales, checks, clips, updates, follows with the EMA. `step` counts updates from 0. NumericError after
  // optim.max_skipped skips in a row, naming the tensor and whether the loss scale is at its floor. `beside`: numbers
  // where the gradients are, which come to the host with theirs: an update waits for its device once.
  StepReport step(int64_t step, const std::vector<at::Tensor>& beside = {});
  double learning_rate(int64_t step, const std::string& group) const;  // a pure function

  bool has_ema() const;
  // Exchanges weights and their EMA; call twice to return.
  void swap_ema();
  // Everything a resume needs: the weights by the names of their parameters; masters, moments, EMA by "KIND.PARAMETER";
  // and the scalars. After weights were filled, publish().
  std::vector<StateTensor> weight_tensors() const;
  std::vector<StateTensor> state_tensors() const;
  std::map<std::string, double> state_scalars() const;
  void load_state_scalars(const std::map<std::string, double>& scalars);  // the tensors are filled in place
  parallel::ParameterShares& shares();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace limbeck::optim
