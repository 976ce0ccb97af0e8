// Learned rounding of one layer of a model (SignRound): for each weight an offset that moves the point where it goes up
// instead of down, for each scale the range that it covers; all of the layer's packed matrices at once, those of its
// experts too, so that the layer's output on the rows comes nearest to that of the float model. A step is the sign of
// the gradient of some rows' squared error, straight through the rounding; its size falls linearly to 0.
//   input: what the packed layers before give; target: what the float model's own layers give, errors before made up.
//   start: the codes of rounding to nearest, or the compensated ones, whichever errs less.
// Kept is whichever errs least over all rows: nearest, compensated, the best step (by its rows' error, as a share of
// the start's on these rows) or the last one; so never worse than to nearest. No generator draws the rows of a step,
// and all sums run in one order: the same bits on any number of threads.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "trainer/quantize/row_states.h"

namespace limbeck::quantize {

// A packed matrix of a layer: a module's own, or one of its stack.
struct PackedPlace {
  std::shared_ptr<precision::ContractModule> module;
  std::string weight;
  int64_t member = -1;  // of a stack
  bool learns = true;

  precision::PackedWeight codes() const;  // a copy of their own
  void put(const precision::PackedWeight& codes) const;
};

// A weight of the float model, and the matrices that it is stored as, one after the other along its rows.
struct LearnedWeight {
  std::shared_ptr<precision::ContractModule> floats;
  std::string name;
  std::vector<PackedPlace> matrices;
};

using Codes = std::vector<precision::PackedWeight>;  // of all matrices, in order
Codes codes_of(const std::vector<LearnedWeight>& weights);

struct LearnedLayer {
  std::string path;                                  // below the root
  std::string kept;                                  // "nearest", "compensated", "best step", "last step"
  int64_t step = 0;                                  // of the best one
  double nearest = 0, compensated = 0, learned = 0;  // mean squared error of its output over all rows; as it is now
  std::vector<double> errors;                        // by step, of its rows
};

struct LearningOptions {
  int64_t steps = 200;
  at::ScalarType scales = at::kFloat;
};

// Rows of the k-th in a step of so many: all of them in turn, neighbours far apart.
int64_t rows_of_a_step(int64_t rows);
int64_t row_of_step(int64_t step, int64_t k, int64_t rows);

// `floats`: behind the layer; `packed`: before it. The packed matrices, compensated now and to nearest before, are
// replaced but for those that do not learn. NumericError where an output is not finite.
LearnedLayer learn_layer(size_t layer, const RowStates& floats, const RowStates& packed,
                         const std::vector<LearnedWeight>& weights, const Codes& nearest,
                         const LearningOptions& options);

}  // namespace limbeck::quantize
