#include "modules/precision/recorder.h"

#include <ATen/core/Tensor.h>
#include <fmt/format.h>

#include <algorithm>
#include <string_view>

#include "modules/precision/casts.h"
#include "modules/precision/contract_module.h"

#ifndef NDEBUG
#error \
    "at::RecordFunction has a member more without NDEBUG, and LibTorch was compiled with it (tools/cmake/floor.cmake)"
#endif

namespace limbeck::precision {

namespace {

thread_local OperatorRecorder* active = nullptr;

bool starts_with(std::string_view text, std::string_view prefix) { return text.substr(0, prefix.size()) == prefix; }

// Operators whose mixed inputs are part of their definition. Limbeck's own operators check every dtype themselves (the
// rotary angles are float32 by contract); views and allocations read no values.
bool checks_itself(std::string_view name) {
  return starts_with(name, "limbeck::") || starts_with(name, "autograd::") || name == "aten::detach" ||
         name == "detach" || name == "aten::empty_like" || name == "aten::zeros_like" || name == "aten::set_";
}

void collect_tensors(const c10::IValue& value, std::vector<at::Tensor>& tensors) {
  if (value.isTensor()) {
    if (value.toTensor().defined()) tensors.push_back(value.toTensor());
  } else if (value.isTensorList()) {
    for (const at::Tensor& tensor : value.toTensorVector()) {
      if (tensor.defined()) tensors.push_back(tensor);
    }
  } else if (value.isOptionalTensorList()) {
    for (const auto& tensor : value.toOptionalTensorVector()) {
      if (tensor.has_value() && tensor->defined()) tensors.push_back(*tensor);
    }
  }
}

// A number that ATen wrapped, or a CPU scalar beside device tensors, takes part in no promotion.
bool is_scalar(const at::Tensor& tensor) { return tensor.dim() == 0; }

std::string describe(const at::Tensor& tensor) {
  return fmt::format("{} [{}] on {}", dtype_name(tensor.scalar_type()), fmt::join(tensor.sizes(), ","),
                     tensor.device().str());
}

}  // namespace

OperatorRecorder::OperatorRecorder() : outer_(active) {
  active = this;
  handle_ = at::addThreadLocalCallback(at::RecordFunctionCallback(&OperatorRecorder::begin)
                                           .needsInputs(true)
                                           .scopes({at::RecordScope::FUNCTION, at::RecordScope::BACKWARD_FUNCTION}));
}

OperatorRecorder::~OperatorRecorder() {
  at::removeCallback(handle_);
  active = outer_;
}

std::unique_ptr<at::ObserverContext> OperatorRecorder::begin(const at::RecordFunction& function) {
  if (active != nullptr) active->observe(function);
  return nullptr;
}

void OperatorRecorder::observe(const at::RecordFunction& function) {
  const std::string name = function.name();
  ++operator_count_;
  std::string where = current_module();
  if (function.scope() == at::RecordScope::BACKWARD_FUNCTION) {
    const auto known = module_of_sequence_.find(function.seqNr());
    if (known != module_of_sequence_.end())
      where = known->second + " (backward)";
    else
      where = "backward";
  } else if (function.seqNr() >= 0 && !where.empty()) {
    module_of_sequence_[function.seqNr()] = where;
  }

  std::vector<at::Tensor> tensors;
  for (const auto& input : function.inputs()) collect_tensors(input, tensors);
  std::erase_if(tensors, is_scalar);
  Use& use = operators_[name];
  use.count += 1;
  const at::Tensor* first_floating = nullptr;
  for (const at::Tensor& tensor : tensors) {
    if (!at::isFloatingType(tensor.scalar_type())) continue;
    use.dtypes.insert(dtype_name(tensor.scalar_type()));
    if (first_floating == nullptr) first_floating = &tensor;
  }
  if (checks_itself(name) || inside_named_cast()) return;

  auto report = [&](const std::string& problem) {
    const std::string line = fmt::format("[{}] {}: {}", where.empty() ? "outside any module" : where, name, problem);
    if (reported_.insert(line).second) violations_.push_back(line);
  };
  for (size_t i = 1; i < tensors.size(); ++i) {
    if (tensors[i].device() != tensors[0].device()) {
      report(fmt::format("inputs {} and {}: wanted one device", describe(tensors[0]), describe(tensors[i])));
      break;
    }
  }
  for (const at::Tensor& tensor : tensors) {
    if (first_floating != nullptr && at::isFloatingType(tensor.scalar_type()) &&
        tensor.scalar_type() != first_floating->scalar_type()) {
      report(fmt::format("inputs {} and {}: wanted one dtype, or a named cast before", describe(*first_floating),
                         describe(tensor)));
      break;
    }
  }
  if (name == "aten::_to_copy" && first_floating != nullptr) {
    const auto& inputs = function.inputs();
    if (inputs.size() > 1 && inputs[1].isInt() && inputs[1].toScalarType() != first_floating->scalar_type() &&
        at::isFloatingType(inputs[1].toScalarType())) {
      report(fmt::format("{} becomes {}: wanted a named cast (modules/precision/casts.h)", describe(*first_floating),
                         dtype_name(inputs[1].toScalarType())));
    }
  }
}

}  // namespace limbeck::precision
