// Learned rounding of one layer of a model (SignRound): for each weight an offset that moves the point where it goes up
// instead of down, for each scale the range that it covers; all of the layer's packed modules at once, so that the
// layer's output on the rows comes nearest to that of the float model. A step is the sign of the gradient of some rows'
// squared error, straight through the rounding; its size falls linearly to 0.
//   input: what the packed layers before give; target: what the float model's own layers give, errors before made up.
//   start: the codes of rounding to nearest, or the compensated ones, whichever errs less.
// Kept is whichever errs least over all rows: nearest, compensated, the best step (by its rows' error, as a share of
// the start's on these rows) or the last one; so never worse than to nearest. No generator draws the rows of a step,
// and all sums run in one order: the same bits on any number of threads.
#pragma once
#include <string>
#include <vector>

#include "trainer/quantize/compensated_layer.h"

namespace limbeck::quantize {

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

// `floats`: before the layer, and behind it afterwards. The packed weights of `modules` are replaced, and `rounded` is
// what compensating them said. NumericError where an output is not finite.
LearnedLayer learn_layer(size_t layer, RowStates& floats, const RowStates& packed, const PackedLinears& modules,
                         const LinearsByPath& float_modules, const LearningOptions& options,
                         std::vector<RoundedModule>& rounded);

}  // namespace limbeck::quantize
