#include "modules/adapters/trained_codes/seen_modules.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/stack.h>

#include <stdexcept>

#include "kernels/quantized/straight_through.h"
#include "modules/adapters/merge/adapted_hosts.h"

namespace limbeck::adapters {
namespace {

// Blocks of nf4 may reach across rows.
bool has_rows_by_themselves(kernels::QuantizedFormat format) { return format.kind != kernels::CodeKind::kNf4; }

using NamedCodes = std::vector<std::pair<std::string, precision::PackedWeight>>;

template <class Host>
NamedCodes codes_of(const Host& host, kernels::QuantizedFormat format, at::ScalarType scales) {
  return {{"weight", precision::PackedWeight(host.weight(), format, host.placement(), scales)}};
}

NamedCodes codes_of(const models::ExpertStack& host, kernels::QuantizedFormat format, at::ScalarType scales) {
  NamedCodes codes;
  const auto names = models::ExpertStack::packed_names(host.parameter_name());
  const auto parts = host.weight().detach().chunk(static_cast<int64_t>(names.size()), 1);
  for (size_t i = 0; i < names.size(); ++i) {
    const precision::PackedShape shape{parts[i].size(1), parts[i].size(2), parts[i].size(0)};
    precision::PackedWeight all(format, shape, host.placement(), scales);
    for (int64_t expert = 0; expert < shape.count; ++expert)
      all.put(expert, precision::PackedWeight(parts[i].select(0, expert), format, host.placement(), scales));
    codes.emplace_back(names[i], std::move(all));
  }
  return codes;
}

// What they stand for: [rows, columns], of a stack [count, rows, columns].
at::Tensor values_of(const precision::PackedWeight& codes) {
  if (codes.count() == 0) return codes.rows(0, codes.matrix().rows);
  std::vector<at::Tensor> members;
  for (int64_t i = 0; i < codes.count(); ++i) members.push_back(values_of(codes.member(i)));
  return at::stack(members);
}

}  // namespace

template <class Adapter, class Host>
NamedCodes SeenModule<Adapter, Host>::codes() const {
  return codes_of(host_, format(), folder_->scales);
}

template <class Adapter, class Host>
models::MergedWeight SeenModule<Adapter, Host>::merged(const Host& host) const {
  const at::NoGradGuard no_gradient;
  std::vector<at::Tensor> parts;
  for (const auto& [name, part] : codes()) parts.push_back(values_of(part));
  models::MergedWeight merged{at::cat(parts, -2), bias_of(host)};
  if (merged.bias) merged.bias = this->widened(*merged.bias);
  return merged;
}

template <class Adapter, class Host>
models::UnmergedWeight SeenModule<Adapter, Host>::unmerged(const Host& host) const {
  throw std::logic_error(host.path() + ": " + unmerge_fault());
}

template class SeenModule<models::LinearAdapter, models::Linear>;
template class SeenModule<models::EmbeddingAdapter, models::Embedding>;
template class SeenModule<models::ExpertAdapter, models::ExpertStack>;

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

at::Tensor SeenExperts::forward(const at::Tensor& rows, const at::Tensor& ends, const models::ExpertStack& host) const {
  const precision::ModuleScope scope(path());
  const at::Tensor given = enter(rows);
  const auto count = static_cast<int64_t>(models::ExpertStack::packed_names(host.parameter_name()).size());
  std::vector<at::Tensor> products;
  for (const at::Tensor& part : host.weight().chunk(count, 1))
    products.push_back(kernels::straight_through_grouped(given, part, ends, format(), folder().scales));
  return leave(count == 1 ? products[0] : at::cat(products, -1));
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
