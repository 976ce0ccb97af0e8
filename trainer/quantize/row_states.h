// What a model makes of rows of data, stage by stage: the states before one of them at a time. The stages are the
// layers, then the head with the norm before it.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "modules/models/weights/load_model.h"
#include "trainer/data/batch.h"

namespace limbeck::quantize {

struct RoundingRows {
  std::function<data::Batch(int64_t)> row;
  int64_t count = 0, length = 0;
};

using PackedLinears = std::vector<std::shared_ptr<models::Linear>>;
// The layers that have packed weights or come before one that has, then what is behind them.
std::vector<PackedLinears> packed_stages(const models::Transformer& model);

class RowStates {
 public:
  RowStates(const models::BuiltModel& model, const RoundingRows& rows);

  size_t rows() const { return states_.size(); }
  bool is_layer(size_t stage) const { return stage < model_.layers().size(); }
  const at::Tensor& state(size_t row) const { return states_.at(row); }
  // Places in its tokens that are no padding.
  const at::Tensor& valid(size_t row) const { return valid_.at(row); }
  // What the stage gives of the row's state, or of another one in its place.
  at::Tensor forward(size_t stage, size_t row) const { return forward(stage, row, states_.at(row)); }
  at::Tensor forward(size_t stage, size_t row, const at::Tensor& x) const;
  // Every row's state is from now on the one behind the stage.
  void advance(size_t stage);

 private:
  const models::Transformer& model_;
  std::vector<models::ModelInput> inputs_;  // by row
  std::vector<at::Tensor> valid_, states_;
};

}  // namespace limbeck::quantize
