#include "trainer/session/step_graphs.h"

#include <ATen/ops/from_blob.h>
#include <ATen/ops/full_like.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <string>

#include "kernels/operator/cuda_library.h"
#include "kernels/operator/device_graph.h"
#include "modules/errors.h"
#include "trainer/metrics/phase_clock.h"
#include "trainer/objective/step_numbers.h"

namespace limbeck::session {

namespace {

std::vector<const at::Tensor*> tensors_of(const data::Batch& batch) {
  std::vector<const at::Tensor*> found;
  const auto add_stream = [&](const data::TokenStream& stream) {
    found.push_back(&stream.ids);
    found.push_back(&stream.labels);
    if (stream.attention_mask) found.push_back(&*stream.attention_mask);
    if (stream.document_ids) found.push_back(&*stream.document_ids);
  };
  add_stream(batch.student);
  if (batch.teacher) add_stream(*batch.teacher);
  found.push_back(&batch.teacher_position);
  found.push_back(&batch.classes);
  return found;
}

// All that the host decides by.
std::string signature(const objective::Distillation& objective, const data::Batch& batch,
                      const objective::Progress& progress) {
  std::string text;
  for (const at::Tensor* tensor : tensors_of(batch)) {
    text += tensor->defined() ? fmt::format("{};", fmt::join(tensor->sizes(), ",")) : "-;";
  }
  const auto stream = [&](const data::TokenStream& s) {
    text += fmt::format("{}{}{}{};", s.masked, s.attention_mask.has_value(), s.document_ids.has_value(),
                        data::room_for_runs(s).value_or(-1));
  };
  stream(batch.student);
  if (batch.teacher) stream(*batch.teacher);
  text += fmt::format("{:a};", progress.loss_scale);
  for (const double constant : objective.constants(progress)) text += fmt::format("{:a};", constant);
  return text;
}

data::Batch own_copy(data::Batch batch) {
  const auto copied = [](at::Tensor& tensor) {
    if (tensor.defined()) tensor = tensor.clone();
  };
  const auto copy_stream = [&](data::TokenStream& stream) {
    copied(stream.ids), copied(stream.labels);
    if (stream.attention_mask) copied(*stream.attention_mask);
    if (stream.document_ids) copied(*stream.document_ids);
  };
  copy_stream(batch.student);
  if (batch.teacher) copy_stream(*batch.teacher);
  copied(batch.teacher_position), copied(batch.classes);
  return batch;
}

std::unique_ptr<kernels::DeviceGraph> new_graph(c10::Device device, const kernels::DeviceGraph* neighbour) {
  const auto make = reinterpret_cast<kernels::NewDeviceGraph>(kernels::cuda_library_symbol(kernels::kNewDeviceGraph));
  if (make == nullptr) {
    throw UsageError("train.cuda_graphs = on: this build's part for CUDA makes no graphs: set train.cuda_graphs = off");
  }
  return std::unique_ptr<kernels::DeviceGraph>(make(device, neighbour));
}

// The same numbers, without a claim on their memory: a graph writes there whoever holds them.
at::Tensor place_of(const at::Tensor& tensor) {
  return at::for_blob(tensor.mutable_data_ptr(), tensor.sizes())
      .strides(tensor.strides())
      .options(tensor.options())
      .target_device(tensor.device())
      .make_tensor();
}

}  // namespace

objective::Terms forward_and_backward(const objective::Distillation& objective, const data::Batch& batch,
                                      const objective::Progress& progress) {
  objective::Terms terms = objective.forward(batch, progress);
  const metrics::InPhase phase("backward");
  // A batch without a target (all labels masked) may have no path to a weight: its share is nothing.
  if (terms.loss.requires_grad()) terms.loss.backward(at::full_like(terms.loss, progress.loss_scale));
  return terms;
}

struct StepGraphs::Kind {
  size_t place = 0;
  objective::StepNumbers numbers;
  data::Batch batch;                            // where the graph reads it
  objective::Terms terms;                       // and where it writes
  std::vector<at::Tensor> gradients;            // of the trained parameters: places
  bool met = false;                             // once, without a graph
  std::unique_ptr<kernels::DeviceGraph> graph;  // before what it wrote goes

  void read(const data::Batch& from, const objective::Progress& progress) {
    const auto to = tensors_of(batch), source = tensors_of(from);
    for (size_t i = 0; i < to.size(); ++i) {
      if (to[i]->defined()) to[i]->copy_(*source[i]);
    }
    numbers.refill(progress, from);
  }
};

StepGraphs::StepGraphs(const objective::Distillation& objective) : objective_(objective) {
  for (const objective::TrainedParameter& parameter : objective.trained_parameters()) {
    trained_.push_back(parameter.tensor);
  }
}

StepGraphs::~StepGraphs() = default;

StepGraphs::Kind* StepGraphs::kind_of(const data::Batch& batch, const objective::Progress& progress) {
  const auto found = places_.find(signature(objective_, batch, progress));
  if (!found) return nullptr;
  if (found->place == kinds_.size()) kinds_.emplace_back();
  std::unique_ptr<Kind>& kind = kinds_[found->place];
  if (found->is_new) {
    kind = std::make_unique<Kind>();
    kind->place = found->place;
  }
  return kind.get();
}

void StepGraphs::record(Kind& kind, const data::Batch& batch, const objective::Progress& progress) {
  kind.batch = own_copy(batch);
  const auto neighbour =
      std::find_if(kinds_.begin(), kinds_.end(), [](const auto& one) { return one->graph != nullptr; });
  kind.graph = new_graph(objective_.device(), neighbour == kinds_.end() ? nullptr : (*neighbour)->graph.get());
  try {
    kind.graph->record([&] { kind.terms = forward_and_backward(objective_, kind.batch, progress); });
  } catch (const c10::Error& error) {
    const std::string text = error.what_without_backtrace();
    throw UsageError(
        fmt::format("train.cuda_graphs = on: forward and backward cannot be recorded ({}): set train.cuda_graphs = off",
                    text.substr(0, text.find('\n'))));
  }
  // What autograd has kept would keep its stream for the parameters of later steps too.
  kind.terms.loss = kind.terms.loss.detach();
  for (at::Tensor& parameter : trained_) {
    kind.gradients.push_back(parameter.grad().defined() ? place_of(parameter.grad()) : at::Tensor());
    parameter.mutable_grad().reset();
  }
  held_bytes_ = kind.graph->held_bytes();
}

objective::Terms StepGraphs::run(const data::Batch& batch, const objective::Progress& asked) {
  Kind* const found = kind_of(batch, asked);
  if (found == nullptr) return forward_and_backward(objective_, batch, asked);
  Kind& kind = *found;
  objective::Progress progress = asked;
  progress.numbers = &kind.numbers;
  if (!kind.met) {
    // What is made once (tables, handles of libraries, the numbers' tensors) is made here.
    kind.met = true;
    objective::Terms terms = forward_and_backward(objective_, batch, progress);
    kind.numbers.close();
    return terms;
  }
  if (!kind.graph) {
    record(kind, batch, progress);
    places_.hold_graph(kind.place);
  }
  kind.read(batch, progress);
  kind.graph->play();
  for (size_t i = 0; i < trained_.size(); ++i) trained_[i].mutable_grad() = kind.gradients[i];
  // The next micro-batch writes to the same places.
  objective::Terms terms = kind.terms;
  terms.loss = terms.loss.clone();
  for (objective::Term& term : terms.terms) term.value = term.value.clone();
  terms.targets = objective_.counted(batch);
  return terms;
}

}  // namespace limbeck::session
