// What the modules of a float32 model show on one row of data: of each format, how much worse the loss is predicted to
// become (half the squared error of the module's outputs under it, each weighted with the squared gradient of the loss
// by that output), and what importance is made of. Of one row alone: rows add up, in their order.
// An encoder has no loss of its own: it is what a drawn direction sees of its pooled states, whose squared gradients
// are on average those of all directions added up, so that a score is the 1 - cosine that is to be expected.
#pragma once
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "modules/models/weights/load_model.h"
#include "trainer/data/batch.h"
#include "trainer/quantize/format_table.h"
#include "trainer/quantize/joint_measure.h"
#include "trainer/quantize/measured_module.h"

namespace limbeck::quantize {

struct ModuleScore {
  double gradient = 0;              // mean |dL/dw|, L being the mean over the row's targets
  double outputs = 0, squares = 0;  // sums over what it gave, of tokens that are no padding
  int64_t count = 0;
  std::vector<double> losses;  // by format, in nats over all targets of the row
  // By format, the KL to the floats with this module alone in it, over all targets; empty: nobody asked AloneMeter.
  std::vector<double> divergences = {};

  void add(const ModuleScore& other);
};

struct RowScore {
  int64_t rows = 0, targets = 0;
  double loss = 0;                                      // nats over all targets
  std::vector<ModuleScore> modules;                     // as the table has them
  std::map<std::string, std::vector<int64_t>> experts;  // by sparse layer: tokens of each

  void add(const RowScore& other);
};

class ScoreMeter {
 public:
  // `model`: a decoder of language or an encoder, float32, its weights trainable; `floats`: what "float" is stored in,
  // and scales. Both must live on. WeightsError names a weight that is not finite.
  ScoreMeter(const models::BuiltModel& model, const FormatTable& table, at::ScalarType floats);
  ~ScoreMeter();
  ScoreMeter(const ScoreMeter&) = delete;
  ScoreMeter& operator=(const ScoreMeter&) = delete;

  // NumericError where a loss or score is not finite; InputDataError names a module that the forward did not reach.
  RowScore measure(const data::Batch& batch) const;
  // Mean |w| of each module.
  std::vector<double> mean_weights() const;
  // What the weights of a module, by its place in the table, are as a format stores them; float32.
  NamedWeights weights_in(size_t module, size_t format) const;

 private:
  // What gradients are taken of: 0-dim; and the row's targets and loss.
  at::Tensor seen(const data::Batch& batch, models::Taps& taps, RowScore& row) const;
  ModuleScore score(const MeasuredModule& module, const std::vector<HeardPass>& passes,
                    const at::Tensor& valid_n) const;

  const models::BuiltModel& model_;
  const Distance distance_;
  const FormatTable& table_;
  at::ScalarType floats_;
  std::vector<std::unique_ptr<MeasuredModule>> modules_;
};

// "layers.0.mlp.experts: experts 3, 5 saw no token": one line a layer that has such.
std::vector<std::string> experts_without_tokens(const RowScore& scores);

}  // namespace limbeck::quantize
