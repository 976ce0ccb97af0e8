#include "modules/adapters/npt/npt.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/add.h>
#include <ATen/ops/addcmul.h>
#include <ATen/ops/tanh.h>

#include "kernels/linear/linear.h"
#include "kernels/operator/wide_type.h"
#include "modules/models/weights/initialize.h"
#include "modules/precision/casts.h"

namespace limbeck::adapters {

std::vector<NptShape::Parameter> NptShape::parameters() const {
  constexpr double kDown = 0.02, kUp = 0.001;
  std::vector<Parameter> all{{"A_proj", rank, hidden, kDown}};
  if (adds()) all.push_back({"B_plus", intermediate, rank, kUp});
  if (multiplies()) all.push_back({"B_times", intermediate, rank, 0});
  if (kind == NptKind::kOuter) {
    all.push_back({"B_m", hidden, rank, kUp});
    all.push_back({"B_f", intermediate, rank, kUp});
  }
  return all;
}

at::Tensor modulated(const at::Tensor& gate, const at::Tensor& bent, ModulationCurve curve) {
  if (curve == ModulationCurve::kNeutral) return at::addcmul(gate, gate, bent, 0.5);
  return at::addcmul(gate * 0.75, gate, bent, 0.25);
}

Npt::Npt(const precision::Scope& scope, const precision::Precision& host, const NptShape& shape)
    : LayerAdapter(scope, host), shape_(shape) {
  for (const NptShape::Parameter& one : shape.parameters()) create_parameter(one.name, {one.rows, one.columns});
}

void Npt::initialize(const models::Layer&, uint64_t seed) {
  if (placement().is_meta()) return;
  const at::NoGradGuard no_gradient;
  for (const NptShape::Parameter& one : shape_.parameters()) {
    const at::Tensor& own = parameter(one.name);
    if (one.deviation == 0) {
      own.detach().zero_();
    } else {
      models::fill_normal(own, seed, path() + "." + one.name, one.deviation);
    }
  }
}

at::Tensor Npt::forward(const at::Tensor& h, const models::Layer& host, const models::LayerInput& input) const {
  const at::Tensor attended = host.attended(h, input);
  const at::Tensor x = host.normed(h);
  const auto [gate, up] = host.gated_mlp().gate_and_up(x, input.draws);
  at::Tensor changed;
  {
    const precision::ModuleScope scope(path());
    const at::Tensor low = kernels::linear(enter(attended), parameter("A_proj"));
    Adapted* said = nullptr;
    if (input.taps != nullptr && input.taps->keep_adapted) {
      said = &input.taps->adapted.emplace_back();
      said->low_btr = low;
    }
    changed = shape_.kind == NptKind::kDelta ? delta(gate, low, said) : outer(gate, x, low, said);
  }
  return h + host.gated_mlp().join(changed, up, input.draws);
}

at::Tensor Npt::delta(const at::Tensor& gate, const at::Tensor& low, Adapted* said) const {
  at::Tensor changed = gate;
  if (shape_.multiplies()) {
    const at::Tensor raw = kernels::linear(low, parameter("B_times"));
    if (said != nullptr) said->penalties["m_raw"] = squared_length(raw);
    changed = modulated(changed, leave(at::tanh(raw * 0.5)), shape_.curve);
  }
  if (shape_.adds()) {
    const at::Tensor shift = kernels::linear(low, parameter("B_plus"));
    if (said != nullptr) said->penalties["delta"] = squared_length(shift);
    changed = at::add(changed, leave(shift), shape_.scale);
  }
  return changed;
}

at::Tensor Npt::outer(const at::Tensor& gate, const at::Tensor& x, const at::Tensor& low, Adapted* said) const {
  const at::Tensor v_m = kernels::linear(low, parameter("B_m")), v_f = kernels::linear(low, parameter("B_f"));
  if (said != nullptr) said->penalties["outer"] = squared_length(v_m) * squared_length(v_f);
  const at::Tensor along = (enter(x) * v_m).sum(-1, /*keepdim=*/true);
  return at::addcmul(gate, leave(v_f), leave(along), shape_.scale);
}

at::Tensor Npt::squared_length(const at::Tensor& value) const {
  const at::ScalarType own = value.scalar_type(), wide = kernels::wide_type(own);
  const at::Tensor widened = precision::cast(value, own, wide, path() + " (penalty)");
  return (widened * widened).sum(-1);
}

}  // namespace limbeck::adapters
