#include "tests/support/npt_models.h"

#include <ATen/ATen.h>

#include "kernels/random/normal_values.h"
#include "tests/support/tiny_models.h"

namespace limbeck::test {

using adapters::Modulation;
using adapters::NptKind;
using adapters::NptOptions;

std::vector<NptOptions> npt_options(int64_t rank) {
  std::vector<NptOptions> all;
  for (const auto modulation : {Modulation::kAdditive, Modulation::kMultiplicative, Modulation::kBoth}) {
    NptOptions one;
    one.modulation = modulation;
    one.rank = rank;
    all.push_back(one);
  }
  all.push_back(all.back());
  all.back().kind = NptKind::kOuter;
  return all;
}

namespace {
models::ModelRequest request_for(const std::string& family, at::ScalarType dtype) {
  models::ModelRequest request;
  request.folder = tiny_model(family);
  request.dtype = dtype;
  request.random_init = true;
  request.seed = 11;
  return request;
}
}  // namespace

models::BuiltModel frozen_model(const std::string& family, at::ScalarType dtype) {
  return models::load_model(request_for(family, dtype));
}

models::BuiltModel quantized_model(const std::string& family, kernels::QuantizedFormat format, at::ScalarType dtype) {
  models::ModelRequest request = request_for(family, dtype);
  request.packing = precision::pack_all(format, "test");
  return models::load_model(request);
}

void add_scattered_npt(models::BuiltModel& built, const NptOptions& options, const std::string& name,
                       double deviation) {
  adapters::create_npt(built, options, name);
  const at::NoGradGuard no_gradient;
  for (const adapters::Npt* adapter : adapters::npt_of(built, name)) {
    for (const auto& one : adapter->shape().parameters()) {
      const at::Tensor& parameter = adapter->parameter(one.name);
      kernels::fill_normal_(parameter.detach(), kernels::key_of(5, adapter->path() + one.name), deviation);
    }
  }
}

models::ModelInput npt_batch(c10::Device device) {
  models::ModelInput input;
  input.ids = at::arange(0, 24, at::kLong).view({2, 12}).remainder(97).to(device);
  at::Tensor mask = at::ones({2, 12}, at::kLong);
  mask[1].narrow(0, 9, 3).zero_();
  input.attention_mask = mask.to(device);
  return input;
}

at::Tensor logits_of(const models::BuiltModel& built) {
  return built.model->head(built.model->encode(npt_batch()).last);
}

}  // namespace limbeck::test
