#include "modules/models/network/checkpointed_layer.h"

#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "modules/errors.h"

namespace limbeck::models {

namespace {

using torch::autograd::variable_list;

// Runs the layer; what it keeps for others goes into taps of its own.
at::Tensor run_layer(const Layer& layer, const at::Tensor& x, LayerInput input, Taps& own) {
  if (input.taps != nullptr) input.taps = &own;
  return layer.forward(x, input);
}

// Its inputs in the graph are x and the layer's parameters: gradients leave by those edges alone, so nothing outside
// the layer is reached by the inner backward. Its outputs are the layer's result and what the taps kept.
class Recomputation : public torch::autograd::Node {
 public:
  Recomputation(std::shared_ptr<Layer> layer, const at::Tensor& x, LayerInput input, variable_list parameters)
      : layer_(std::move(layer)),
        adapters_(*layer_),
        x_(x, /*is_output=*/false),
        input_(std::move(input)),
        asked_(input_.taps == nullptr ? Taps() : input_.taps->asking_the_same()),
        parameters_(std::move(parameters)) {
    add_next_edge(torch::autograd::impl::gradient_edge(x));
    for (const at::Tensor& parameter : parameters_) add_next_edge(torch::autograd::impl::gradient_edge(parameter));
  }

  std::string name() const override { return "CheckpointedLayer"; }

  variable_list apply(variable_list&& gradients) override {
    variable_list result(num_outputs());
    if (std::none_of(gradients.begin(), gradients.end(), [](const at::Tensor& g) { return g.defined(); }))
      return result;
    if (at::GradMode::is_enabled()) {
      throw ContractError("a gradient of gradients runs through a checkpointed layer: switch checkpointing off for it");
    }
    at::Tensor x = x_.unpack().detach();
    variable_list wanted;
    std::vector<size_t> places;
    if (task_should_compute_output(0)) {
      wanted.push_back(x.requires_grad_(true));
      places.push_back(0);
    }
    for (size_t i = 0; i < parameters_.size(); ++i) {
      if (!task_should_compute_output(i + 1)) continue;
      wanted.push_back(parameters_[i]);
      places.push_back(i + 1);
    }
    if (wanted.empty()) return result;
    const at::AutoGradMode record(true);
    Taps again = asked_.asking_the_same();
    const AdaptersInUse::Again as_in_forward(adapters_);
    variable_list outputs{run_layer(*layer_, x, input_, again)}, arrived;
    for (const at::Tensor* kept : again.kept()) outputs.push_back(*kept);
    size_t reached = 0;
    for (size_t i = 0; i < outputs.size(); ++i) {
      if (!gradients[i].defined() || !outputs[i].requires_grad()) continue;
      arrived.push_back(gradients[i]);
      outputs[reached++] = outputs[i];
    }
    outputs.resize(reached);
    if (outputs.empty()) return result;
    variable_list found = torch::autograd::grad(outputs, wanted, arrived, /*retain_graph=*/std::nullopt,
                                                /*create_graph=*/false, /*allow_unused=*/true);
    for (size_t i = 0; i < found.size(); ++i) result[places[i]] = std::move(found[i]);
    return result;
  }

  void release_variables() override { x_.reset_data(); }

 private:
  std::shared_ptr<Layer> layer_;
  AdaptersInUse adapters_;  // others may be switched on by now
  torch::autograd::SavedVariable x_;
  LayerInput input_;
  Taps asked_;  // the caller's taps may be gone by now
  variable_list parameters_;
};

}  // namespace

at::Tensor checkpointed_forward(const std::shared_ptr<Layer>& layer, const at::Tensor& x, const LayerInput& input) {
  if (!at::GradMode::is_enabled() || input.cache != nullptr) return layer->forward(x, input);
  variable_list parameters;
  for (const at::Tensor& parameter : layer->parameters()) {
    if (parameter.requires_grad()) parameters.push_back(parameter);
  }
  if (parameters.empty() && !x.requires_grad()) return layer->forward(x, input);
  variable_list outputs;
  Taps own = input.taps == nullptr ? Taps() : input.taps->asking_the_same();
  {
    const at::NoGradGuard no_gradient;
    outputs.push_back(run_layer(*layer, x, input, own));
    for (at::Tensor* kept : own.kept()) outputs.push_back(*kept = kept->detach());  // no view of what is freed
  }
  torch::autograd::set_history(outputs,
                               std::shared_ptr<Recomputation>(new Recomputation(layer, x, input, std::move(parameters)),
                                                              torch::autograd::deleteNode));
  if (input.taps != nullptr) input.taps->take_over(own);
  return outputs[0];
}

}  // namespace limbeck::models
