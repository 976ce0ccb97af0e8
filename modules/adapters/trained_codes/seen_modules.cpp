#include "modules/adapters/trained_codes/seen_modules.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/embedding.h>

#include <stdexcept>

#include "kernels/quantized/straight_through.h"
#include "modules/adapters/merge/adapted_hosts.h"

namespace limbeck::adapters {
namespace {

// Blocks of nf4 may reach across rows.
bool has_rows_by_themselves(kernels::QuantizedFormat format) { return format.kind != kernels::CodeKind::kNf4; }

}  // namespace

template <class Adapter, class Host>
models::MergedWeight SeenModule<Adapter, Host>::merged(const Host& host) const {
  const at::NoGradGuard no_gradient;
  models::MergedWeight merged{codes().rows(0, host.weight().size(0)), bias_of(host)};
  if (merged.bias) merged.bias = this->widened(*merged.bias);
  return merged;
}

template <class Adapter, class Host>
models::UnmergedWeight SeenModule<Adapter, Host>::unmerged(const Host& host) const {
  throw std::logic_error(host.path() + ": " + unmerge_fault());
}

template class SeenModule<models::LinearAdapter, models::Linear>;
template class SeenModule<models::EmbeddingAdapter, models::Embedding>;

at::Tensor SeenLinear::forward(const at::Tensor& x, const models::Linear& host, const models::Draws&) const {
  const precision::ModuleScope scope(path());
  return leave(kernels::straight_through_linear(enter(x), host.weight(), format(), host.bias(), folder().scales));
}

models::ProductOperands SeenLinear::operands(const at::Tensor& x, const models::Linear& host, bool learns,
                                             const models::Draws&) const {
  const precision::ModuleScope scope(path());
  const at::Tensor weight = learns ? host.weight() : host.weight().detach();
  return {x, kernels::seen_through_format(weight, format(), folder().scales)};
}

// Of a table larger than the batch, only the rows that are looked up are rounded.
at::Tensor SeenEmbedding::forward(const at::Tensor& ids, const models::Embedding& host) const {
  const precision::ModuleScope scope(path());
  accept_ids(ids);
  const auto seen = [&](const at::Tensor& rows) {
    return kernels::seen_through_format(rows, format(), folder().scales);
  };
  if (ids.numel() >= host.rows() || !has_rows_by_themselves(format()))
    return leave(at::embedding(seen(host.weight()), ids, host.padding_id()));
  const at::Tensor rows = at::embedding(host.weight(), ids, host.padding_id());
  return leave(seen(rows.flatten(0, -2)).view_as(rows));
}

}  // namespace limbeck::adapters
