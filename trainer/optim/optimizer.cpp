#include "trainer/optim/optimizer.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <stdexcept>

#include "kernels/adamw.h"
#include "modules/errors.h"
#include "modules/precision/casts.h"
#include "trainer/optim/optimizer_settings.h"

namespace limbeck::optim {

namespace {

// One trained tensor with what the optimizer keeps beside it.
struct Slot {
  Parameter parameter;
  at::Tensor master;         // undefined unless the parameter is half
  at::Tensor first, second;  // moments
  at::Tensor ema;            // undefined when off
  at::Tensor gradient;       // of the update so far, scaled; undefined: none came
  at::Tensor accumulator;    // reused by every update of several micro-batches
  int64_t updates = 0;       // that this parameter has had: for the bias corrections

  const at::Tensor& weight() const { return master.defined() ? master : parameter.tensor; }
};

at::ScalarType wide_of(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

Slot make_slot(const Parameter& parameter, bool with_ema) {
  const at::Tensor& tensor = parameter.tensor;
  if (!tensor.defined() || !tensor.requires_grad() || !tensor.is_leaf() || !at::isFloatingType(tensor.scalar_type())) {
    throw std::logic_error(parameter.name + " is no trainable parameter");
  }
  Slot slot;
  slot.parameter = parameter;
  const auto wide = tensor.options().dtype(wide_of(tensor)).requires_grad(false);
  if (tensor.scalar_type() != wide_of(tensor)) {
    slot.master = at::empty(tensor.sizes(), wide);
    precision::cast_into(slot.master, tensor);
  }
  slot.first = at::zeros(tensor.sizes(), wide);
  slot.second = at::zeros(tensor.sizes(), wide);
  if (with_ema) slot.ema = slot.weight().detach().clone();
  return slot;
}

}  // namespace

struct Optimizer::State {
  std::vector<Slot> slots;
  Schedule schedule;
  std::map<std::string, double> base_rate;  // by group
  kernels::AdamWOptions adamw;
  double weight_decay = 0, clip = 0, ema_decay = 0;
  LossScale loss_scale;
  int64_t max_skipped = 10;
  int64_t skipped_in_a_row = 0, skipped_in_all = 0;
  int64_t expected = 0, accumulated = 0;  // micro-batches of this update
  bool on_meta = false, swapped = false;

  double rate(int64_t step, const std::string& group) const { return base_rate.at(group) * schedule.factor(step); }
  void take_gradient(Slot& slot, bool first) const;
  double square_sum(StepReport& report) const;
  void update(int64_t step, double gradient_scale);
  void skip(StepReport& report);
};

Optimizer::Optimizer(const recipe::Settings& settings, std::vector<Parameter> parameters, int64_t total_steps)
    : state_(std::make_unique<State>()) {
  const at::NoGradGuard no_gradient;
  State& s = *state_;
  const double rate = settings.number("optim.learning_rate");
  s.base_rate = {{"student", rate},
                 {"projector", rate * settings.number("optim.projector_factor")},
                 {"router", settings.number("optim.router_learning_rate")}};
  s.schedule = read_schedule(settings, total_steps);
  s.adamw.beta1 = read_share(settings, "optim.beta1");
  s.adamw.beta2 = read_share(settings, "optim.beta2");
  s.adamw.epsilon = settings.number("optim.epsilon");
  s.weight_decay = settings.number("optim.weight_decay");
  s.clip = settings.number("optim.clip");
  s.ema_decay = read_share(settings, "optim.ema");
  s.max_skipped = settings.integer("optim.max_skipped");
  bool float16 = false;
  std::set<std::string> names;
  for (const Parameter& parameter : parameters) {
    if (!names.insert(parameter.name).second) throw std::logic_error(parameter.name + " is trained twice");
    if (!s.base_rate.contains(parameter.group)) {
      throw std::logic_error(parameter.name + " is of group " + parameter.group +
                             ", wanted student, projector or router");
    }
    s.slots.push_back(make_slot(parameter, s.ema_decay > 0));
    float16 = float16 || parameter.tensor.scalar_type() == at::kHalf;
    s.on_meta = s.on_meta || parameter.tensor.is_meta();
  }
  s.loss_scale = read_loss_scale(settings, float16);
}

Optimizer::~Optimizer() = default;

double Optimizer::loss_scale() const { return state_->loss_scale.value(); }

double Optimizer::learning_rate(int64_t step, const std::string& group) const { return state_->rate(step, group); }

void Optimizer::State::take_gradient(Slot& slot, bool first) const {
  at::Tensor gradient = slot.parameter.tensor.grad();
  slot.parameter.tensor.mutable_grad().reset();
  if (first) slot.gradient.reset();
  if (!gradient.defined()) return;
  gradient = gradient.detach();
  if (expected == 1) {
    slot.gradient = gradient;
    return;
  }
  // Sums in float32 for half weights too: eight roundings to bfloat16 would lose what the split was to keep.
  if (slot.gradient.defined()) {
    kernels::accumulate_(slot.gradient, gradient);
    return;
  }
  if (!slot.accumulator.defined()) slot.accumulator = at::empty_like(slot.first);
  slot.gradient = slot.accumulator;
  precision::cast_into(slot.gradient, gradient);
}

void Optimizer::accumulate(int64_t micro_batches) {
  State& s = *state_;
  const at::NoGradGuard no_gradient;
  if (s.swapped) throw std::logic_error("gradients came while the EMA stands in for the weights");
  if (s.accumulated > 0 && (micro_batches != s.expected || s.accumulated == s.expected)) {
    throw std::logic_error("accumulate() was called more often than micro-batches were announced");
  }
  s.expected = micro_batches;
  for (Slot& slot : s.slots) s.take_gradient(slot, s.accumulated == 0);
  ++s.accumulated;
}

// Of the scaled gradients, in the order of the parameters; names the first that is not finite.
double Optimizer::State::square_sum(StepReport& report) const {
  double total = 0;
  std::vector<std::pair<const Slot*, at::Tensor>> sums;
  for (const Slot& slot : slots) {
    if (slot.gradient.defined()) sums.emplace_back(&slot, kernels::square_sum(slot.gradient));
  }
  if (on_meta) return 0;
  for (const auto& [slot, sum] : sums) {
    const double value = sum.item<double>();
    if (!std::isfinite(value) && report.nonfinite.empty()) report.nonfinite = slot->parameter.name;
    total += value;
  }
  return total;
}

void Optimizer::State::update(int64_t step, double gradient_scale) {
  for (Slot& slot : slots) {
    if (!slot.gradient.defined()) continue;
    kernels::AdamWOptions options = adamw;
    options.step = slot.updates + 1;
    options.learning_rate = rate(step, slot.parameter.group);
    options.weight_decay = slot.parameter.decays ? weight_decay : 0.0;
    options.gradient_scale = gradient_scale;
    const std::optional<at::Tensor> master =
        slot.master.defined() ? std::optional<at::Tensor>(slot.master) : std::nullopt;
    kernels::adamw_step_(slot.parameter.tensor, slot.gradient, master, slot.first, slot.second, options);
    slot.updates += 1;
    slot.gradient.reset();
  }
  for (Slot& slot : slots) {
    if (slot.ema.defined()) slot.ema.lerp_(slot.weight().detach(), 1.0 - ema_decay);
  }
}

void Optimizer::State::skip(StepReport& report) {
  const double used = loss_scale.value();
  const bool at_floor = loss_scale.at_floor();
  for (Slot& slot : slots) slot.gradient.reset();
  loss_scale.update_overflowed();
  ++skipped_in_a_row, ++skipped_in_all;
  report.skipped = true;
  if (skipped_in_a_row < max_skipped) return;
  throw NumericError(fmt::format(
      "{} updates in a row were skipped (optim.max_skipped), the last because the gradient of {} is not finite (loss "
      "scale {}{}): look at the data and the loss of these steps, lower optim.learning_rate{}",
      skipped_in_a_row, report.nonfinite, used, at_floor ? ", its floor" : "",
      at_floor ? ", or train in bfloat16 or float32 (student.dtype)" : ""));
}

StepReport Optimizer::step(int64_t step) {
  State& s = *state_;
  const at::NoGradGuard no_gradient;
  if (s.accumulated == 0 || s.accumulated != s.expected) {
    throw std::logic_error("step() came before all micro-batches of the update were accumulated");
  }
  s.accumulated = 0;
  StepReport report;
  report.learning_rate = s.rate(step, "student");
  const double scale = s.loss_scale.value();
  const double total = s.square_sum(report);
  report.gradient_norm = std::sqrt(total) / scale;
  if (!report.nonfinite.empty()) {
    s.skip(report);
  } else {
    const double over = s.clip > 0 ? s.clip / (report.gradient_norm + 1e-6) : 1.0;
    s.update(step, std::min(over, 1.0) / scale);
    s.loss_scale.update_was_good();
    s.skipped_in_a_row = 0;
  }
  report.loss_scale = s.loss_scale.value();
  report.skipped_in_a_row = s.skipped_in_a_row;
  report.skipped_in_all = s.skipped_in_all;
  return report;
}

bool Optimizer::has_ema() const { return state_->ema_decay > 0; }

void Optimizer::swap_ema() {
  State& s = *state_;
  const at::NoGradGuard no_gradient;
  if (!has_ema()) throw std::logic_error("swap_ema() without optim.ema");
  for (Slot& slot : s.slots) {
    if (slot.master.defined()) {
      std::swap(slot.master, slot.ema);
      precision::cast_into(slot.parameter.tensor, slot.master);
    } else {
      const at::Tensor weight = slot.parameter.tensor.detach().clone();
      precision::cast_into(slot.parameter.tensor, slot.ema);
      precision::cast_into(slot.ema, weight);
    }
  }
  s.swapped = !s.swapped;
}

std::vector<std::pair<std::string, at::Tensor>> Optimizer::state_tensors() const {
  if (state_->swapped) throw std::logic_error("state_tensors() while the EMA stands in for the weights");
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  for (const Slot& slot : state_->slots) {
    const std::string& name = slot.parameter.name;
    if (slot.master.defined()) tensors.emplace_back("master." + name, slot.master);
    tensors.emplace_back("first_moment." + name, slot.first);
    tensors.emplace_back("second_moment." + name, slot.second);
    if (slot.ema.defined()) tensors.emplace_back("ema." + name, slot.ema);
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
  const double scale = whole("loss_scale");
  if (s.loss_scale.enabled() && !(scale > 0)) throw WeightsError("optimizer state \"loss_scale\" is 0, wanted above 0");
  const auto good = static_cast<int64_t>(whole("loss_scale_good_updates"));
  if (s.loss_scale.enabled()) s.loss_scale.restore(scale, good);
  s.skipped_in_a_row = static_cast<int64_t>(whole("skipped_in_a_row"));
  s.skipped_in_all = static_cast<int64_t>(whole("skipped_in_all"));
  for (Slot& slot : s.slots) slot.updates = static_cast<int64_t>(whole("updates." + slot.parameter.name));
}

}  // namespace limbeck::optim
