#include "trainer/optim/optimizer.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <set>
#include <stdexcept>
#include <tuple>

#include "kernels/operator/wide_type.h"
#include "modules/errors.h"
#include "modules/precision/casts.h"

namespace limbeck::optim {

namespace {

// This rank's share of one trained tensor with what the optimizer keeps beside it, in the shape of the share.
struct Slot {
  Parameter parameter;
  parallel::Share share;
  at::Tensor master;         // undefined unless the parameter is half
  at::Tensor first, second;  // moments
  at::Tensor ema;            // undefined when off
  int64_t updates = 0;       // that this parameter has had: for the bias corrections

  const at::Tensor& weight() const { return master.defined() ? master : share.weight; }
};

void check_trainable(const Parameter& parameter) {
  const at::Tensor& tensor = parameter.tensor;
  if (!tensor.defined() || !tensor.requires_grad() || !tensor.is_leaf() || !at::isFloatingType(tensor.scalar_type())) {
    throw std::logic_error(parameter.name + " is no trainable parameter");
  }
}

Slot make_slot(const Parameter& parameter, const parallel::Share& share, bool with_ema) {
  const at::Tensor& tensor = share.weight;
  Slot slot;
  slot.parameter = parameter;
  slot.share = share;
  const auto wide = tensor.options().dtype(kernels::wide_type(tensor)).requires_grad(false);
  if (tensor.scalar_type() != kernels::wide_type(tensor)) {
    slot.master = at::empty(tensor.sizes(), wide);
    precision::cast_into(slot.master, tensor);
  }
  slot.first = at::zeros(tensor.sizes(), wide);
  slot.second = at::zeros(tensor.sizes(), wide);
  if (with_ema) slot.ema = slot.weight().detach().clone();
  return slot;
}

// Tensors of float32 and float64 numbers on one device, brought to the host in one copy.
class NumberReader {
 public:
  explicit NumberReader(const std::vector<at::Tensor>& tensors) : tensors_(tensors) {
    std::vector<at::Tensor> bytes;
    for (const at::Tensor& tensor : tensors) {
      begins_.push_back(bytes_);
      bytes_ += tensor.nbytes();
      bytes.push_back(tensor.view(at::kByte));
    }
    if (!bytes.empty()) on_host_ = at::cat(bytes).cpu();
  }

  std::vector<double> of(size_t tensor) const {
    const at::Tensor& like = tensors_[tensor];
    std::vector<double> values(static_cast<size_t>(like.numel()));
    const auto* from = on_host_.const_data_ptr<uint8_t>() + begins_[tensor];
    if (like.scalar_type() == at::kDouble) {
      std::memcpy(values.data(), from, like.nbytes());
      return values;
    }
    TORCH_CHECK(like.scalar_type() == at::kFloat, "numbers are ", like.scalar_type(), ", wanted float32 or float64");
    std::vector<float> narrow(values.size());
    std::memcpy(narrow.data(), from, like.nbytes());
    std::copy(narrow.begin(), narrow.end(), values.begin());
    return values;
  }

 private:
  const std::vector<at::Tensor>& tensors_;
  std::vector<size_t> begins_;
  size_t bytes_ = 0;
  at::Tensor on_host_;
};

}  // namespace

struct Optimizer::State {
  std::unique_ptr<parallel::ParameterShares> shares;
  std::vector<Slot> slots;
  OptimizerOptions options;
  LossScale loss_scale;
  int64_t skipped_in_a_row = 0, skipped_in_all = 0;
  int64_t expected = 0, accumulated = 0;  // micro-batches of this update
  bool on_meta = false, swapped = false;

  double rate(int64_t step, const std::string& group) const {
    return options.base_rate.at(group) * options.schedule.factor(step);
  }
  double square_sum(StepReport& report, const std::vector<at::Tensor>& beside) const;
  void update(int64_t step, double gradient_scale);
  void skip(StepReport& report);
};

Optimizer::Optimizer(OptimizerOptions options, std::vector<Parameter> parameters,
                     std::unique_ptr<parallel::ParameterShares> shares)
    : state_(std::make_unique<State>()) {
  const at::NoGradGuard no_gradient;
  State& s = *state_;
  s.options = std::move(options);
  bool float16 = false;
  std::set<std::string> names;
  std::vector<parallel::NamedParameter> named;
  for (const Parameter& parameter : parameters) {
    check_trainable(parameter);
    named.push_back({parameter.name, parameter.tensor});
  }
  s.shares = shares ? std::move(shares) : parallel::make_whole(named);
  for (size_t i = 0; i < parameters.size(); ++i) {
    const Parameter& parameter = parameters[i];
    if (!names.insert(parameter.name).second) throw std::logic_error(parameter.name + " is trained twice");
    if (!s.options.base_rate.contains(parameter.group)) {
      throw std::logic_error(parameter.name + " is of group " + parameter.group +
                             ", wanted student, projector or router");
    }
    s.slots.push_back(make_slot(parameter, s.shares->shares()[i], s.options.ema_decay > 0));
    float16 = float16 || parameter.tensor.scalar_type() == at::kHalf;
    s.on_meta = s.on_meta || parameter.tensor.is_meta();
  }
  if (float16) s.loss_scale = LossScale(s.options.loss_scale);
}

Optimizer::~Optimizer() = default;

double Optimizer::loss_scale() const { return state_->loss_scale.value(); }

double Optimizer::learning_rate(int64_t step, const std::string& group) const { return state_->rate(step, group); }

void Optimizer::accumulate(int64_t micro_batches) {
  State& s = *state_;
  const at::NoGradGuard no_gradient;
  if (s.swapped) throw std::logic_error("gradients came while the EMA stands in for the weights");
  if (s.accumulated > 0 && (micro_batches != s.expected || s.accumulated == s.expected)) {
    throw std::logic_error("accumulate() was called more often than micro-batches were announced");
  }
  s.expected = micro_batches;
  s.shares->accumulate(s.accumulated, micro_batches);
  ++s.accumulated;
}

// Of the scaled gradients of all ranks, without rounding on the way; names the first that is not finite. What a device
// has computed comes in one copy, as the bytes that it is.
double Optimizer::State::square_sum(StepReport& report, const std::vector<at::Tensor>& beside) const {
  struct Gradients {
    std::vector<at::Tensor> tensors;
    std::vector<size_t> slots;  // whose they are
  };
  std::map<at::ScalarType, Gradients> alike;
  for (size_t i = 0; i < slots.size(); ++i) {
    const at::Tensor gradient = shares->gradient(i);
    if (!gradient.defined() || gradient.numel() == 0) continue;
    Gradients& of_dtype = alike[gradient.scalar_type()];
    of_dtype.tensors.push_back(gradient);
    of_dtype.slots.push_back(i);
  }
  std::vector<at::Tensor> numbers;
  for (const auto& [dtype, gradients] : alike) numbers.push_back(kernels::square_sums(gradients.tensors));
  if (on_meta) return 0;
  for (const at::Tensor& number : beside) numbers.push_back(number.detach().reshape({1}));
  const NumberReader reader(numbers);
  parallel::ExactSum total;
  int64_t spoiled = -1;
  size_t next = 0;
  for (const auto& [dtype, gradients] : alike) {
    const std::vector<double> values = reader.of(next++);
    auto value = values.begin();
    for (size_t i = 0; i < gradients.tensors.size(); ++i) {
      const auto slot = static_cast<int64_t>(gradients.slots[i]);
      for (int64_t run = kernels::square_runs(gradients.tensors[i].numel()); run > 0; --run, ++value) {
        if (!std::isfinite(*value) && (spoiled < 0 || slot < spoiled)) spoiled = slot;
        total.add(*value);
      }
    }
  }
  for (size_t i = 0; i < beside.size(); ++i) report.beside.push_back(reader.of(next++).front());
  shares->complete(total);
  const double sum = total.value();
  if (!std::isfinite(sum)) report.nonfinite = slots[static_cast<size_t>(shares->first_of_all(spoiled))].parameter.name;
  return sum;
}

// In one call for all parameters that are updated alike.
void Optimizer::State::update(int64_t step, double gradient_scale) {
  struct Lists {
    std::vector<at::Tensor> parameters, gradients, masters, first, second;
  };
  using Alike = std::tuple<std::string, bool, int64_t, at::ScalarType, at::ScalarType>;
  std::map<Alike, Lists> groups;
  for (size_t i = 0; i < slots.size(); ++i) {
    Slot& slot = slots[i];
    const at::Tensor gradient = shares->gradient(i);
    if (!gradient.defined()) continue;
    slot.updates += 1;
    if (gradient.numel() == 0) continue;
    const at::ScalarType dtype = slot.share.weight.scalar_type();
    Lists& lists = groups[{slot.parameter.group, slot.parameter.decays, slot.updates, dtype, gradient.scalar_type()}];
    lists.parameters.push_back(slot.share.weight);
    lists.gradients.push_back(gradient);
    lists.first.push_back(slot.first);
    lists.second.push_back(slot.second);
    if (!slot.master.defined()) continue;
    lists.masters.push_back(slot.master);
    precision::name_inner_cast("update (gradients)", gradient.scalar_type(), slot.master.scalar_type());
    precision::name_inner_cast("update (weights of masters)", slot.master.scalar_type(), dtype);
  }
  for (const auto& [alike, lists] : groups) {
    const auto& [group, decays, updates, dtype, gradient_dtype] = alike;
    kernels::AdamWOptions adamw = options.adamw;
    adamw.step = updates;
    adamw.learning_rate = rate(step, group);
    adamw.weight_decay = decays ? options.weight_decay : 0.0;
    adamw.gradient_scale = gradient_scale;
    kernels::adamw_step_(lists.parameters, lists.gradients, lists.masters, lists.first, lists.second, adamw);
  }
  for (Slot& slot : slots) {
    if (slot.ema.defined()) slot.ema.lerp_(slot.weight().detach(), 1.0 - options.ema_decay);
  }
}

void Optimizer::State::skip(StepReport& report) {
  const double used = loss_scale.value();
  const bool at_floor = loss_scale.at_floor();
  loss_scale.update_overflowed();
  ++skipped_in_a_row, ++skipped_in_all;
  report.skipped = true;
  if (skipped_in_a_row < options.max_skipped) return;
  throw NumericError(fmt::format(
      "{} updates in a row were skipped (optim.max_skipped), the last because the gradient of {} is not finite (loss "
      "scale {}{}): look at the data and the loss of these steps, lower optim.learning_rate{}",
      skipped_in_a_row, report.nonfinite, used, at_floor ? ", its floor" : "",
      at_floor ? ", or train in bfloat16 or float32 (student.dtype)" : ""));
}

StepReport Optimizer::step(int64_t step, const std::vector<at::Tensor>& beside) {
  State& s = *state_;
  const at::NoGradGuard no_gradient;
  if (s.accumulated == 0 || s.accumulated != s.expected) {
    throw std::logic_error("step() came before all micro-batches of the update were accumulated");
  }
  s.accumulated = 0;
  StepReport report;
  report.learning_rate = s.rate(step, "student");
  const double scale = s.loss_scale.value();
  s.shares->finish();
  const double total = s.square_sum(report, beside);
  report.gradient_norm = std::sqrt(total) / scale;
  if (!report.nonfinite.empty()) {
    s.shares->drop();
    s.skip(report);
  } else {
    const double over = s.options.clip > 0 ? s.options.clip / (report.gradient_norm + 1e-6) : 1.0;
    s.update(step, std::min(over, 1.0) / scale);
    s.shares->drop();
    s.shares->publish();
    s.loss_scale.update_was_good();
    s.skipped_in_a_row = 0;
  }
  report.loss_scale = s.loss_scale.value();
  report.skipped_in_a_row = s.skipped_in_a_row;
  report.skipped_in_all = s.skipped_in_all;
  return report;
}

bool Optimizer::has_ema() const { return state_->options.ema_decay > 0; }

void Optimizer::swap_ema() {
  State& s = *state_;
  const at::NoGradGuard no_gradient;
  if (!has_ema()) throw std::logic_error("swap_ema() without optim.ema");
  s.shares->settle();  // what is still sent must not be written
  for (Slot& slot : s.slots) {
    if (slot.master.defined()) {
      std::swap(slot.master, slot.ema);
      precision::cast_into(slot.share.weight, slot.master);
    } else {
      const at::Tensor weight = slot.share.weight.detach().clone();
      precision::cast_into(slot.share.weight, slot.ema);
      precision::cast_into(slot.ema, weight);
    }
  }
  s.shares->publish();
  s.swapped = !s.swapped;
}

parallel::ParameterShares& Optimizer::shares() { return *state_->shares; }

std::vector<StateTensor> Optimizer::weight_tensors() const {
  state_->shares->settle();
  if (state_->swapped) throw std::logic_error("weight_tensors() while the EMA stands in for the weights");
  std::vector<StateTensor> tensors;
  for (size_t i = 0; i < state_->slots.size(); ++i) {
    const Slot& slot = state_->slots[i];
    tensors.push_back({slot.parameter.name, slot.parameter.tensor.sizes().vec(), slot.share.begin,
                       slot.share.weight.detach(), state_->shares->saves(i)});
  }
  return tensors;
}

std::vector<StateTensor> Optimizer::state_tensors() const {
  if (state_->swapped) throw std::logic_error("state_tensors() while the EMA stands in for the weights");
  std::vector<StateTensor> tensors;
  for (size_t i = 0; i < state_->slots.size(); ++i) {
    const Slot& slot = state_->slots[i];
    const auto add = [&](const char* kind, const at::Tensor& part) {
      if (!part.defined()) return;
      tensors.push_back({kind + slot.parameter.name, slot.parameter.tensor.sizes().vec(), slot.share.begin, part,
                         state_->shares->saves(i)});
    };
    add("master.", slot.master);
    add("first_moment.", slot.first);
    add("second_moment.", slot.second);
    add("ema.", slot.ema);
  }
  return tensors;
}

std::map<std::string, double> Optimizer::state_scalars() const {
  const State& s = *state_;
  std::map<std::string, double> scalars = {
      {"loss_scale", s.loss_scale.value()},
      {"loss_scale_good_updates", static_cast<double>(s.loss_scale.good_updates())},
      {"skipped_in_a_row", static_cast<double>(s.skipped_in_a_row)},
      {"skipped_in_all", static_cast<double>(s.skipped_in_all)}};
  for (const Slot& slot : s.slots) scalars["updates." + slot.parameter.name] = static_cast<double>(slot.updates);
  return scalars;
}

void Optimizer::load_state_scalars(const std::map<std::string, double>& scalars) {
  State& s = *state_;
  const std::map<std::string, double> known = state_scalars();
  for (const auto& [name, value] : scalars) {
    if (!known.contains(name)) {
      throw WeightsError(
          fmt::format("optimizer state \"{}\" = {} belongs to no trained parameter of this recipe: "
                      "resume with the recipe that the checkpoint was made with",
                      name, value));
    }
  }
  auto whole = [&](const std::string& name) {
    const auto found = scalars.find(name);
    if (found == scalars.end() || !(found->second >= 0)) {
      throw WeightsError(
          fmt::format("optimizer state \"{}\" is missing or negative: the checkpoint is of another "
                      "recipe or version",
                      name));
    }
    return found->second;
  };
  auto count = [&](const std::string& name) {
    constexpr double kMost = 9007199254740992.0;  // 2^53: whole numbers up to there are exact
    const double value = whole(name);
    if (value <= kMost && std::trunc(value) == value) return static_cast<int64_t>(value);
    throw WeightsError(fmt::format("optimizer state \"{}\" = {}, wanted a whole number of at most 2^53", name, value));
  };
  const double scale = whole("loss_scale");
  if (s.loss_scale.enabled() && !(scale > 0)) throw WeightsError("optimizer state \"loss_scale\" is 0, wanted above 0");
  const auto good = count("loss_scale_good_updates");
  if (s.loss_scale.enabled()) s.loss_scale.restore(scale, good);
  s.skipped_in_a_row = count("skipped_in_a_row");
  s.skipped_in_all = count("skipped_in_all");
  for (Slot& slot : s.slots) slot.updates = count("updates." + slot.parameter.name);
}

}  // namespace limbeck::optim
