#include "modules/models/weights/initialize.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#include <cmath>

#include "kernels/random/normal_values.h"
#include "modules/precision/casts.h"
#include "modules/precision/contract_modules.h"

namespace limbeck::models {

namespace {

// Row p, columns 2j and 2j+1: sine and cosine of p / 10000^(2j / width).
void fill_sinusoidal(at::Tensor table) {
  const int64_t rows = table.size(0), width = table.size(1);
  const at::Tensor values = at::empty({rows, width}, at::TensorOptions().dtype(at::kDouble));
  auto* value = values.mutable_data_ptr<double>();
  for (int64_t p = 0; p < rows; ++p) {
    for (int64_t j = 0; j < width; ++j) {
      const double exponent = static_cast<double>(j - j % 2) / static_cast<double>(width);
      const double angle = static_cast<double>(p) / std::pow(10000.0, exponent);
      value[p * width + j] = j % 2 == 0 ? std::sin(angle) : std::cos(angle);
    }
  }
  precision::cast_into(table, values);
}

// Numbers are drawn on the CPU and copied, so that they are the same on every device.
at::Tensor on_cpu(const at::Tensor& placed) {
  return placed.is_cpu() ? placed : at::empty(placed.sizes(), placed.options().device(c10::kCPU));
}

// What the residual stream sums once a layer starts smaller in GPT-2, so that the sum does not grow with the depth.
double deviation_of(const Architecture& a, const std::string& path) {
  const bool residual = path.ends_with(".o_proj") || path.ends_with(".down_proj");
  const double scale = a.scaled_residual_init && residual ? std::sqrt(2.0 * static_cast<double>(a.layers)) : 1.0;
  return a.initializer_range / scale;
}

void draw_matrix(at::Tensor matrix, const ContractModule& module, const std::string& name, const Transformer& model,
                 uint64_t seed) {
  const Architecture& a = model.architecture();
  if (a.sinusoidal_positions && module.path() == model.path() + ".embed_positions") return fill_sinusoidal(matrix);
  kernels::fill_normal_(matrix, kernels::key_of(seed, module.path() + "." + name), deviation_of(a, module.path()));
  const bool tokens = module.path() == model.path() + ".embed_tokens";
  if (tokens && a.padding_id >= 0 && a.padding_id < matrix.size(0)) matrix.select(0, a.padding_id).zero_();
}

at::Tensor drawn_floats(at::IntArrayRef sizes, const ContractModule& module, const std::string& name,
                        const Transformer& model, uint64_t seed) {
  const at::Tensor drawn = at::empty(sizes, at::TensorOptions().dtype(at::kFloat));
  draw_matrix(drawn, module, name, model, seed);
  return drawn;
}

void initialize_packed_experts(ExpertWeights& experts, const Transformer& model, uint64_t seed) {
  for (const auto& stack : experts.stacks()) {
    const StackSizes& sizes = stack->sizes();
    const at::Tensor drawn =
        drawn_floats({sizes.experts, sizes.out, sizes.in}, experts, stack->parameter_name(), model, seed);
    int64_t row = 0;
    for (const std::string& name : ExpertStack::packed_names(stack->parameter_name())) {
      const kernels::QuantizedStack codes = experts.packed_weight(name)->stack();
      for (int64_t i = 0; i < sizes.experts; ++i) {
        const at::Tensor matrix = drawn.select(0, i).narrow(0, row, codes.rows);
        experts.replace_packed_member(name, i, precision::PackedWeight(matrix, codes.format, experts.placement()));
      }
      row += codes.rows;
    }
  }
}

// The codes of what the float weight would have drawn.
void initialize_packed(ContractModule& module, const Transformer& model, uint64_t seed) {
  if (module.packed_weights().empty()) return;
  if (auto* experts = dynamic_cast<ExpertWeights*>(&module)) return initialize_packed_experts(*experts, model, seed);
  std::vector<std::string> names;
  for (const auto& [name, weight] : module.packed_weights()) names.push_back(name);
  for (const std::string& name : names) {
    const kernels::QuantizedMatrix& matrix = module.packed_weight(name)->matrix();
    const at::Tensor drawn = drawn_floats({matrix.rows, matrix.columns}, module, name, model, seed);
    module.replace_packed_weight(name, precision::PackedWeight(drawn, matrix.format, module.placement()));
  }
}

// From one end of the range to the other; of a single matrix the middle.
void spread_over_matrices(at::Tensor bias, const Resolvent& resolvent) {
  const int64_t count = bias.numel();
  const double step = count > 1 ? (resolvent.last_bias - resolvent.first_bias) / static_cast<double>(count - 1) : 0.0;
  const double first = count > 1 ? resolvent.first_bias : (resolvent.first_bias + resolvent.last_bias) / 2;
  for (int64_t i = 0; i < count; ++i) bias[i].fill_(first + static_cast<double>(i) * step);
}

void initialize(const ContractModule& module, const Transformer& model, uint64_t seed) {
  const Architecture& a = model.architecture();
  for (const auto& entry : module.named_parameters(/*recurse=*/false)) {
    at::Tensor placed = entry.value().detach();
    at::Tensor parameter = on_cpu(placed);
    if (module.role() == Role::kNorm) {
      const bool one = entry.key() == "weight" && a.norm != NormKind::kRmsUnitOffset;
      parameter.fill_(one ? 1.0 : 0.0);
    } else if (module.role() == Role::kBkCore && module.path().ends_with(".v_proj") && entry.key() == "bias") {
      spread_over_matrices(parameter, a.resolvent);
    } else if (entry.key().ends_with("bias")) {
      parameter.zero_();
    } else if (entry.key() == "scale") {
      parameter.fill_(1.0);
    } else {
      draw_matrix(parameter, module, entry.key(), model, seed);
    }
    if (!placed.is_cpu()) precision::cast_into(placed, parameter);
  }
}

}  // namespace

void fill_normal(const at::Tensor& parameter, uint64_t seed, const std::string& path, double deviation) {
  at::Tensor placed = parameter.detach();
  at::Tensor drawn = on_cpu(placed);
  kernels::fill_normal_(drawn, kernels::key_of(seed, path), deviation);
  if (!placed.is_cpu()) precision::cast_into(placed, drawn);
}

void initialize_module(precision::ContractModule& module, const Transformer& model, uint64_t seed) {
  const at::NoGradGuard no_gradient;
  initialize(module, model, seed);
  initialize_packed(module, model, seed);
}

void initialize_weights(const Transformer& model, uint64_t seed) {
  for (const auto& module : precision::contract_modules(model)) initialize_module(*module, model, seed);
}

}  // namespace limbeck::models
