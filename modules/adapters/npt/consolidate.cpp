#include "modules/adapters/npt/consolidate.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/mv.h>
#include <ATen/ops/outer.h>
#include <ATen/ops/zeros.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "modules/errors.h"
#include "modules/precision/casts.h"

namespace limbeck::adapters {
namespace {

constexpr int64_t kGateRowsAtATime = 256;  // of the change, which never exists whole

at::Tensor doubled(const at::Tensor& x, const std::string& place) {
  return precision::cast(precision::move(x.detach(), c10::kCPU), x.scalar_type(), at::kDouble, place + " (mean)");
}

void require_plain(const models::Linear& gate) {
  if (!gate.is_quantized()) return;
  throw ContractError(
      fmt::format("[{}] is stored in {} ({}): what is added to it would be rounded away; consolidate into the model "
                  "before quantizing it",
                  gate.path(), precision::storage_name(gate.precision()), gate.precision().source));
}

struct AddedOuter {
  double lost = 0, wanted = 0, before = 0;  // squared
};

AddedOuter add_outer(const models::Linear& gate, const at::Tensor& v_f, const at::Tensor& v_m, double alpha) {
  AddedOuter sum;
  for (int64_t row = 0; row < v_f.size(0); row += kGateRowsAtATime) {
    const int64_t rows = std::min(kGateRowsAtATime, v_f.size(0) - row);
    at::Tensor part = gate.weight().detach().narrow(0, row, rows);
    const at::Tensor change = at::outer(v_f.narrow(0, row, rows), v_m) * alpha;
    const at::Tensor before = doubled(part, gate.path()), exact = before + change;
    sum.before += before.square().sum().item<double>();
    precision::cast_into(part, exact);
    sum.lost += (doubled(part, gate.path()) - exact).square().sum().item<double>();
    sum.wanted += change.square().sum().item<double>();
  }
  return sum;
}

}  // namespace

void NptMeans::add(const models::Taps& taps, const std::optional<at::Tensor>& attention_mask) {
  if (taps.adapted.empty()) throw ContractError("[consolidate] these taps kept nothing of adapters: set keep_adapted");
  if (!sums_.empty() && sums_.size() != taps.adapted.size()) {
    throw ContractError(fmt::format("[consolidate] taps of {} layers after taps of {}: wanted one model's",
                                    taps.adapted.size(), sums_.size()));
  }
  const at::NoGradGuard no_gradient;
  sums_.resize(taps.adapted.size());
  for (size_t i = 0; i < sums_.size(); ++i) {
    at::Tensor low = doubled(taps.adapted[i].low_btr, "consolidate");
    if (attention_mask) {
      low = low.masked_fill(precision::move(*attention_mask, c10::kCPU).eq(0).unsqueeze(-1), 0.0);
    }
    const at::Tensor sum = low.flatten(0, -2).sum(0);
    sums_[i] = sums_[i].defined() ? sums_[i] + sum : sum;
  }
  const at::Tensor& first = taps.adapted.front().low_btr;
  tokens_ += attention_mask ? attention_mask->ne(0).sum().item<int64_t>() : first.numel() / first.size(-1);
}

at::Tensor NptMeans::low(size_t layer) const { return sums_.at(layer) / static_cast<double>(tokens_); }

void require_consolidable(const models::BuiltModel& built, const std::string& name) {
  if (npt_of(built, name).front()->shape().kind != NptKind::kOuter) {
    throw UsageError(
        fmt::format("adapter {} is of kind delta, which adds no matrix to a weight: only an outer one can "
                    "be consolidated",
                    name));
  }
  for (const auto& layer : built.model->layers()) require_plain(*layer->gated_mlp().gate_module());
}

ConsolidationReport consolidate_npt(models::BuiltModel& built, const std::string& name, const NptMeans& means,
                                    double alpha) {
  const at::NoGradGuard no_gradient;
  require_consolidable(built, name);
  const auto adapters = npt_of(built, name);
  const auto& layers = built.model->layers();
  if (means.tokens() == 0 || means.layers() != layers.size()) {
    throw UsageError(fmt::format("means of {} tokens over {} layers, wanted some of each of the {} layers of [{}]",
                                 means.tokens(), means.layers(), layers.size(), built.model->path()));
  }
  for (size_t i = 0; i < layers.size(); ++i) {
    const at::Tensor low = means.low(i);
    if (low.size(0) != adapters[i]->shape().rank) {
      throw UsageError(fmt::format("means of rank {}, but [{}] has rank {}: they are another adapter's", low.size(0),
                                   adapters[i]->path(), adapters[i]->shape().rank));
    }
    if (low.isfinite().all().item<bool>()) continue;
    throw NumericError(
        fmt::format("[{}] what it says of these {} tokens is not finite: nothing is consolidated; say a wider dtype "
                    "(--dtype=bfloat16 or float32)",
                    adapters[i]->path(), means.tokens()));
  }
  ConsolidationReport report;
  for (size_t i = 0; i < layers.size(); ++i) {
    const auto mean = [&](const char* parameter) {
      return at::mv(doubled(adapters[i]->parameter(parameter), adapters[i]->path()), means.low(i));
    };
    const models::Linear& gate = *layers[i]->gated_mlp().gate_module();
    const AddedOuter one = add_outer(gate, mean("B_f"), mean("B_m"), alpha);
    const auto share = [](double part, double whole) { return whole > 0 ? std::sqrt(part / whole) : 0; };
    report.gates.push_back({gate.path(), share(one.wanted, one.before), share(one.lost, one.wanted)});
    const double loss = report.gates.back().loss;
    if (loss >= report.worst_loss) report.worst_loss = loss, report.worst_layer = layers[i]->path();
    ++report.layers;
  }
  return report;
}

}  // namespace limbeck::adapters
