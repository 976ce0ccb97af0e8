#include "modules/precision/contract_module.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <stdexcept>
#include <utility>

#include "modules/errors.h"
#include "modules/precision/casts.h"
#include "modules/precision/observer.h"

namespace limbeck::precision {

namespace {
thread_local const std::string* module_path = nullptr;
thread_local std::string failed_path;
thread_local bool unwinding = false;
}  // namespace

Scope Scope::child(const std::string& name) const { return {policy, path + "." + name, placement, trainable}; }

ContractModule::ContractModule(const Scope& scope, Role role, const Precision* host)
    : path_(scope.path),
      role_(role),
      precision_(scope.policy->resolve(scope.path, role, host)),
      placement_(scope.placement.value_or(precision_.device)),
      trainable_(scope.trainable),
      input_place_(path_ + " (input)"),
      output_place_(path_ + " (output)") {}

void ContractModule::create_parameter(const std::string& name, at::IntArrayRef shape) {
  const auto options = at::TensorOptions().dtype(precision_.storage).device(placement_);
  register_parameter(name, at::empty(shape, options), trainable_);
}

void ContractModule::create_matrix(const std::string& name, int64_t rows, int64_t columns) {
  if (!precision_.quantized) return create_parameter(name, {rows, columns});
  packed_.emplace(name, PackedWeight(*precision_.quantized, rows, columns, placement_));
  packed_shapes_[name] = PackedShape{rows, columns};
}

void ContractModule::create_packed_stack(const std::string& name, int64_t count, int64_t rows, int64_t columns) {
  const PackedShape shape{rows, columns, count};
  packed_.emplace(name, PackedWeight(precision_.quantized.value(), shape, placement_));
  packed_shapes_[name] = shape;
}

void ContractModule::pack_as(const ContractModule& owner) {
  precision_.quantized = owner.precision_.quantized;
  precision_.source = owner.precision_.source;
}

bool ContractModule::has_parameter(const std::string& name) const { return parameters_.contains(name); }

const at::Tensor& ContractModule::parameter(const std::string& name) const {
  const at::Tensor* found = parameters_.find(name);
  if (found == nullptr) throw std::logic_error(path_ + " has no parameter " + name);
  return *found;
}

void ContractModule::replace_parameter(const std::string& name, const at::Tensor& tensor) {
  const bool trains = parameter(name).requires_grad();
  parameters_[name] = tensor;
  parameters_[name].set_requires_grad(trains);
}

const PackedWeight* ContractModule::packed_weight(const std::string& name) const {
  const auto found = packed_.find(name);
  return found == packed_.end() ? nullptr : &found->second;
}

void ContractModule::replace_packed_weight(const std::string& name, PackedWeight weight) {
  const auto found = packed_.find(name);
  if (found == packed_.end()) throw std::logic_error(path_ + " has no packed weight " + name);
  found->second = std::move(weight);
}

void ContractModule::replace_packed_member(const std::string& name, int64_t index, const PackedWeight& weight) {
  const auto found = packed_.find(name);
  if (found == packed_.end()) throw std::logic_error(path_ + " has no packed weight " + name);
  found->second.put(index, weight);
}

bool ContractModule::packs_as(const ContractModule& lender) const {
  const auto same = [](const auto& own, const auto& theirs) {
    return own.first == theirs.first && own.second.same_form(theirs.second);
  };
  return std::equal(packed_.begin(), packed_.end(), lender.packed_.begin(), lender.packed_.end(), same);
}

bool ContractModule::can_borrow(const ContractModule& lender) const {
  if (!packs_as(lender)) return false;
  for (const auto& entry : parameters_) {
    const at::Tensor* theirs = lender.parameters_.find(entry.key());
    if (theirs == nullptr || theirs->requires_grad() || theirs->sizes() != entry.value().sizes()) return false;
    if (theirs->scalar_type() != entry.value().scalar_type()) return false;
  }
  return true;
}

void ContractModule::borrow(const ContractModule& lender) {
  if (!can_borrow(lender)) throw std::logic_error(path_ + " cannot borrow the weights of " + lender.path());
  for (auto& entry : parameters_) entry.value() = lender.parameter(entry.key());
  packed_ = lender.packed_;
  placement_ = lender.placement_;
}

bool ContractModule::borrow_packed(const ContractModule& lender) {
  if (!packs_as(lender)) return false;
  packed_ = lender.packed_;
  return true;
}

at::Tensor ContractModule::enter(const at::Tensor& x) const {
  if (x.scalar_type() != precision_.input || x.device() != placement_) {
    throw ContractError(fmt::format(
        "[{}] input {} [{}] on {}, wanted {} on {} (contract from {}): set the dtype of the module that feeds it, or a "
        "precision.rule for {}",
        path_, dtype_name(x.scalar_type()), fmt::join(x.sizes(), ","), x.device().str(), dtype_name(precision_.input),
        placement_.str(), precision_.source, path_));
  }
  if (ModuleObserver* observer = current_observer()) observer->input(*this, x);
  return precision_.input == precision_.compute ? x : cast(x, precision_.input, precision_.compute, input_place_);
}

at::Tensor ContractModule::leave(const at::Tensor& y) const {
  if (y.scalar_type() != precision_.compute) {
    throw ContractError(fmt::format(
        "[{}] computes {} [{}], wanted {} (contract from {}): an operand of its forward is of another dtype", path_,
        dtype_name(y.scalar_type()), fmt::join(y.sizes(), ","), dtype_name(precision_.compute), precision_.source));
  }
  const at::Tensor given =
      precision_.compute == precision_.output ? y : cast(y, precision_.compute, precision_.output, output_place_);
  if (ModuleObserver* observer = current_observer()) observer->output(*this, given);
  return given;
}

void ContractModule::accept_ids(const at::Tensor& ids) const {
  if (ids.device() == placement_ && !at::isFloatingType(ids.scalar_type())) {
    if (ModuleObserver* observer = current_observer()) observer->input(*this, ids);
    return;
  }
  throw ContractError(fmt::format("[{}] ids {} [{}] on {}, wanted integers on {}: place the batch with the model",
                                  path_, dtype_name(ids.scalar_type()), fmt::join(ids.sizes(), ","), ids.device().str(),
                                  placement_.str()));
}

ContractModule::Packed ContractModule::pack(kernels::QuantizedFormat format) const {
  Packed packed;
  const at::Tensor* weight = parameters_.find("weight");
  if (weight == nullptr) return packed;  // another module's, which is packed there
  packed.weights.emplace("weight", PackedWeight(move(weight->detach(), c10::kCPU), format, placement_));
  packed.shapes["weight"] = PackedShape{weight->size(0), weight->size(1)};
  packed.instead_of = {"weight"};
  return packed;
}

StoredWeights ContractModule::stored_under(const Precision& other) const {
  if (precision_.quantized) throw std::logic_error(path_ + " is packed, and only floats can be stored otherwise");
  const at::NoGradGuard no_gradient;
  StoredWeights stored{.precision = other};
  std::vector<std::string> instead_of;
  if (other.quantized) {
    Packed packed = pack(*other.quantized);
    stored.packed = std::move(packed.weights), stored.packed_shapes = std::move(packed.shapes);
    instead_of = std::move(packed.instead_of);
  }
  for (const auto& entry : parameters_) {
    if (std::find(instead_of.begin(), instead_of.end(), entry.key()) != instead_of.end()) continue;
    at::Tensor own = entry.value();
    if (own.scalar_type() != other.storage) {
      own = at::empty(own.sizes(), own.options().dtype(other.storage));
      cast_into(own, entry.value());
    }
    stored.parameters.insert(entry.key(), own);
  }
  return stored;
}

StoredWeights ContractModule::exchange(StoredWeights other) {
  StoredWeights own{.precision = precision_,
                    .parameters = parameters_,
                    .packed = std::move(packed_),
                    .packed_shapes = std::move(packed_shapes_)};
  precision_ = std::move(other.precision);
  parameters_ = std::move(other.parameters);
  packed_ = std::move(other.packed);
  packed_shapes_ = std::move(other.packed_shapes);
  return own;
}

std::vector<std::string> ContractModule::violations() const {
  std::vector<std::string> found;
  for (const auto& entry : named_parameters(/*recurse=*/false)) {
    const at::Tensor& tensor = entry.value();
    if (tensor.scalar_type() != precision_.storage) {
      found.push_back(fmt::format("[{}] {} is stored in {} [{}], wanted {} (contract from {})", path_, entry.key(),
                                  dtype_name(tensor.scalar_type()), fmt::join(tensor.sizes(), ","),
                                  dtype_name(precision_.storage), precision_.source));
    }
    if (tensor.device() != placement_) {
      found.push_back(fmt::format("[{}] {} is on {} [{}], wanted {} (contract from {})", path_, entry.key(),
                                  tensor.device().str(), fmt::join(tensor.sizes(), ","), placement_.str(),
                                  precision_.source));
    }
  }
  for (const auto& [name, weight] : packed_) {
    for (const std::string& line : weight.violations(*precision_.quantized, packed_shapes_.at(name), placement_)) {
      found.push_back(fmt::format("[{}] {} (contract from {})", path_, line, precision_.source));
    }
  }
  return found;
}

Footprint ContractModule::footprint() const {
  Footprint sum;
  for (const at::Tensor& parameter : parameters(/*recurse=*/false)) {
    sum.values += parameter.numel();
    sum.bytes += static_cast<int64_t>(parameter.nbytes());
  }
  for (const auto& [name, weight] : packed_) sum.values += weight.values(), sum.bytes += weight.bytes();
  return sum;
}

const std::string& current_module() {
  static const std::string none;
  return module_path == nullptr ? none : *module_path;
}

const std::string& failed_module() { return failed_path; }

ModuleScope::ModuleScope(const std::string& path) : outer_(module_path), exceptions_(std::uncaught_exceptions()) {
  module_path = &path;
  unwinding = false;
  if (ModuleObserver* observer = current_observer()) observer->begin(path);
}

ModuleScope::~ModuleScope() {
  if (ModuleObserver* observer = current_observer()) observer->end(*module_path);
  if (std::uncaught_exceptions() > exceptions_ && !unwinding) {
    failed_path = *module_path;
    unwinding = true;
  }
  module_path = outer_;
}

}  // namespace limbeck::precision
