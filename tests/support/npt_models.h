// Tiny models with NPT adapters whose values are large enough that a wrong formula shows.
#pragma once
#include <string>
#include <vector>

#include "modules/adapters/npt/create_npt.h"
#include "modules/models/weights/load_model.h"

namespace limbeck::test {

// Those of tiny_models.h that have pre-norm layers with a gated MLP.
inline const std::vector<std::string> kNptFamilies = {"llama", "mistral", "qwen2", "qwen3", "phi3"};

// Every kind and modulation.
std::vector<adapters::NptOptions> npt_options(int64_t rank = 3);

// Frozen weights of a fixed seed.
models::BuiltModel frozen_model(const std::string& family, at::ScalarType dtype = at::kFloat);
models::BuiltModel quantized_model(const std::string& family, kernels::QuantizedFormat format, at::ScalarType dtype);
// create_npt(), then normal values of `deviation` in every parameter.
void add_scattered_npt(models::BuiltModel& built, const adapters::NptOptions& options, const std::string& name,
                       double deviation = 0.3);

models::ModelInput npt_batch(c10::Device device = c10::kCPU);  // 2 x 12 tokens, the last 3 of one row are padding
at::Tensor logits_of(const models::BuiltModel& built);         // of that batch

}  // namespace limbeck::test
