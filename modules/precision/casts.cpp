#include "modules/precision/casts.h"

#include <fmt/format.h>
#include <torch/csrc/autograd/custom_function.h>

#include "modules/errors.h"
#include "modules/precision/precision.h"

namespace limbeck::precision {

namespace {
thread_local int cast_depth = 0;
thread_local CastLog* active_log = nullptr;

struct NamedCastScope {
  NamedCastScope() { ++cast_depth; }
  ~NamedCastScope() { --cast_depth; }
};
}  // namespace

void log_cast(std::string_view place, at::ScalarType from, at::ScalarType to, int64_t bytes) {
  if (active_log == nullptr) return;
  auto& cost = active_log->casts_[{std::string(place), from, to}];
  cost.count += 1;
  cost.bytes += bytes;
}

namespace {

int64_t bytes_moved(const at::Tensor& x, at::ScalarType to) {
  return x.numel() * static_cast<int64_t>(c10::elementSize(x.scalar_type()) + c10::elementSize(to));
}

at::Tensor convert(const at::Tensor& x, at::ScalarType to, const std::string& place) {
  const NamedCastScope scope;
  log_cast(place, x.scalar_type(), to, bytes_moved(x, to));
  return x.to(to);
}

struct NamedCast : torch::autograd::Function<NamedCast> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x, at::ScalarType to,
                            const std::string& place) {
    context->saved_data["from"] = static_cast<int64_t>(x.scalar_type());
    context->saved_data["place"] = place;
    return convert(x, to, place);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    const auto from = static_cast<at::ScalarType>(context->saved_data["from"].toInt());
    return {convert(gradients[0], from, context->saved_data["place"].toStringRef() + " (gradient)"), {}, {}};
  }
};

}  // namespace

at::Tensor cast(const at::Tensor& x, at::ScalarType from, at::ScalarType to, const std::string& place) {
  if (x.scalar_type() != from) {
    throw ContractError(fmt::format("[{}] input {} [{}], wanted {}", place, dtype_name(x.scalar_type()),
                                    fmt::join(x.sizes(), ","), dtype_name(from)));
  }
  return from == to ? x : NamedCast::apply(x, to, place);
}

void cast_into(at::Tensor& destination, const at::Tensor& source) {
  const NamedCastScope scope;
  destination.copy_(source);
}

void cast_into(at::Tensor& destination, const at::Tensor& source, std::string_view place) {
  const at::ScalarType from = source.scalar_type(), to = destination.scalar_type();
  if (from != to) log_cast(place, from, to, bytes_moved(source, to));
  cast_into(destination, source);
}

void name_inner_cast(std::string_view place, at::ScalarType from, at::ScalarType to) {
  if (from != to) log_cast(place, from, to, 0);
}

at::Tensor integers(const at::Tensor& x, at::ScalarType to) {
  if (at::isFloatingType(x.scalar_type()) || at::isFloatingType(to)) {
    throw ContractError(fmt::format("integers() got {} for {}: floating dtypes change by a named cast alone",
                                    dtype_name(x.scalar_type()), dtype_name(to)));
  }
  return x.to(to);
}

at::Tensor move(const at::Tensor& x, c10::Device device) {
  const NamedCastScope scope;  // between devices by its definition
  return x.to(device);
}

at::Tensor upload(const at::Tensor& x, c10::Device device) {
  if (!device.is_cuda() || !x.is_cpu()) return move(x, device);
  const NamedCastScope scope;
  return x.pin_memory().to(device, /*non_blocking=*/true);
}

bool inside_named_cast() { return cast_depth > 0; }

CastLog::CastLog() : outer_(active_log) { active_log = this; }
CastLog::~CastLog() { active_log = outer_; }

}  // namespace limbeck::precision
