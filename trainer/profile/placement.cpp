#include "trainer/profile/placement.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "modules/errors.h"
#include "modules/precision/contract_modules.h"
#include "modules/precision/precision.h"

namespace limbeck::profile {
namespace {

std::string shape_of(const at::Tensor& tensor) {
  return fmt::format("{} [{}]", precision::dtype_name(tensor.scalar_type()), fmt::join(tensor.sizes(), ","));
}

void require_stream(const std::string& name, const data::TokenStream& stream, c10::Device device,
                    const std::string& first_weight) {
  const auto require = [&](const std::string& part, const at::Tensor& tensor) {
    if (!tensor.defined() || tensor.device() == device) return;
    throw ContractError(
        fmt::format("[batch.{}.{}] is {} on {}, wanted {}, where {} is: place the batch with the model (data::place, "
                    "or a Prefetcher)",
                    name, part, shape_of(tensor), tensor.device().str(), device.str(), first_weight));
  };
  require("ids", stream.ids), require("labels", stream.labels);
  if (stream.attention_mask) require("attention_mask", *stream.attention_mask);
  if (stream.document_ids) require("document_ids", *stream.document_ids);
}

}  // namespace

void require_one_device(const models::Transformer& model, const data::Batch& batch) {
  const auto stored = precision::stored_tensors(model);
  if (stored.empty()) throw ContractError(fmt::format("[{}] has no weights", model.path()));
  const auto& [first, weight] = stored.front();
  const c10::Device device = weight.device();
  for (const auto& [name, tensor] : stored) {
    if (tensor.device() == device) continue;
    throw ContractError(
        fmt::format("[{}] is {} on {}, wanted {}, where {} is: give the whole model one device "
                    "(student.device)",
                    name, shape_of(tensor), tensor.device().str(), device.str(), first));
  }
  require_stream("student", batch.student, device, first);
  if (batch.teacher) require_stream("teacher", *batch.teacher, device, first);
  if (batch.classes.defined() && batch.classes.device() != device) {
    throw ContractError(
        fmt::format("[batch.classes] is {} on {}, wanted {}, where {} is: place the batch with the model",
                    shape_of(batch.classes), batch.classes.device().str(), device.str(), first));
  }
}

}  // namespace limbeck::profile
