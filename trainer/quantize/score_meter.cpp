#include "trainer/quantize/score_meter.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/bincount.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "kernels/random/counter_bits.h"
#include "modules/errors.h"
#include "modules/models/network/token_loss.h"
#include "modules/precision/casts.h"
#include "modules/precision/contract_modules.h"
#include "modules/precision/observer.h"
#include "trainer/objective/forward_pass.h"

namespace limbeck::quantize {

namespace {

// In one order on any number of threads: along each row as ATen has it, then row by row.
double sum_of(const at::Tensor& values) {
  const at::Tensor sums = precision::move(values.sum(-1).flatten(), c10::kCPU).contiguous();
  const float* sum = sums.const_data_ptr<float>();
  double all = 0;
  for (int64_t i = 0; i < sums.numel(); ++i) all += static_cast<double>(sum[i]);
  return all;
}

at::Tensor as_rows(const at::Tensor& x) { return x.detach().reshape({-1, x.size(-1)}); }

}  // namespace

void ModuleScore::add(const ModuleScore& other) {
  gradient += other.gradient;
  outputs += other.outputs;
  squares += other.squares;
  count += other.count;
  losses.resize(other.losses.size());
  for (size_t i = 0; i < losses.size(); ++i) losses[i] += other.losses[i];
}

void RowScore::add(const RowScore& other) {
  rows += other.rows;
  targets += other.targets;
  loss += other.loss;
  modules.resize(other.modules.size());
  for (size_t i = 0; i < modules.size(); ++i) modules[i].add(other.modules[i]);
  for (const auto& [layer, tokens] : other.experts) {
    auto& sum = experts[layer];
    sum.resize(tokens.size());
    for (size_t i = 0; i < tokens.size(); ++i) sum[i] += tokens[i];
  }
}

namespace {

// Keeps what went into the measured modules and came out of them.
class Listener : public precision::ModuleObserver {
 public:
  using Passes = std::vector<HeardPass>;
  explicit Listener(std::map<const precision::ContractModule*, Passes>& passed) : passed_(passed) {}

  void input(const precision::ContractModule& module, const at::Tensor& x) override {
    const bool looks_up = dynamic_cast<const models::Embedding*>(&module) != nullptr;
    if (Passes* passes = passes_of(module)) passes->push_back({.x = x, .looks_up = looks_up});
  }
  void routing(const precision::ContractModule& module, const at::Tensor& experts_nk,
               const at::Tensor& weights_nk) override {
    if (Passes* passes = passes_of(module)) {
      passes->back().experts_nk = experts_nk;
      passes->back().weights_nk = weights_nk.detach();
    }
  }
  void output(const precision::ContractModule& module, const at::Tensor& y) override {
    if (Passes* passes = passes_of(module)) passes->back().y = y;
  }

 private:
  Passes* passes_of(const precision::ContractModule& module) {
    const auto found = passed_.find(&module);
    return found == passed_.end() ? nullptr : &found->second;
  }

  std::map<const precision::ContractModule*, Passes>& passed_;
};

// 1 or -1 for each value of x, another draw for each row.
at::Tensor drawn_signs(const at::Tensor& x, uint64_t row) {
  constexpr uint64_t kDirections = 0x51e0d1ec;
  at::Tensor signs = at::empty(x.sizes(), at::kFloat);
  auto* sign = signs.mutable_data_ptr<float>();
  for (int64_t i = 0; i < signs.numel(); ++i)
    sign[i] = (kernels::counter_bits(kernels::counter_bits(kDirections, row), static_cast<uint64_t>(i)) & 1) != 0
                  ? 1.F
                  : -1.F;
  return precision::move(signs, x.device());
}

bool is_tied_to(const precision::ContractModule& module, const at::Tensor& weight) {
  const auto* linear = dynamic_cast<const models::Linear*>(&module);
  return linear != nullptr && linear->is_tied() && !linear->is_quantized() && linear->weight().is_same(weight);
}

// Tokens that each expert of each sparse layer is given, padding left out.
std::map<std::string, std::vector<int64_t>> expert_tokens(const models::Architecture& a, const models::Taps& taps,
                                                          const at::Tensor& valid_n) {
  std::map<std::string, std::vector<int64_t>> tokens;
  size_t sparse = 0;
  for (int64_t layer = 0; layer < a.layers && sparse < taps.router_logits.size(); ++layer) {
    if (!a.sparse(layer)) continue;
    const at::Tensor logits = as_rows(taps.router_logits[sparse++]).index_select(0, valid_n);
    const at::Tensor chosen = std::get<1>(logits.topk(a.experts.per_token)).flatten();
    const at::Tensor counts = precision::move(at::bincount(chosen, {}, a.experts.count), c10::kCPU).contiguous();
    const int64_t* count = counts.const_data_ptr<int64_t>();
    tokens[fmt::format("layers.{}.mlp.experts", layer)].assign(count, count + counts.numel());
  }
  return tokens;
}

}  // namespace

namespace {

void require_static_experts(const Candidate& candidate, const std::vector<StoredFormat>& formats) {
  if (candidate.role != precision::Role::kExpert) return;
  for (const StoredFormat& format : formats) {
    if (!format.packed || !format.packed->dynamic) continue;
    throw UsageError(
        fmt::format("{} rounds the inputs of each expert too, which scores of {} do not measure: leave it out of "
                    "--formats, or give experts a format by --rule",
                    format.name, candidate.path));
  }
}

}  // namespace

ScoreMeter::ScoreMeter(const models::BuiltModel& model, const FormatTable& table, at::ScalarType floats)
    : model_(model), distance_(distance_of(model)), table_(table), floats_(floats) {
  const auto all = precision::contract_modules(*model.model);
  const std::string root = model.model->path() + ".";
  for (const auto& module : all) {
    const size_t next = modules_.size();
    if (next == table.modules().size() || module->path() != root + table.modules()[next].path) continue;
    const Candidate& candidate = table.modules()[next];
    require_static_experts(candidate, table.formats());
    modules_.push_back(std::make_unique<MeasuredModule>(module, candidate, table.formats(), floats_));
    if (dynamic_cast<const models::Embedding*>(module.get()) == nullptr) continue;
    for (const auto& other : all) {
      if (is_tied_to(*other, module->parameter("weight"))) modules_.back()->add_user(*other);
    }
  }
  if (modules_.size() != table.modules().size()) throw std::logic_error("the model has not all modules of the table");
}

ScoreMeter::~ScoreMeter() = default;

NamedWeights ScoreMeter::weights_in(size_t module, size_t format) const {
  const at::NoGradGuard no_gradient;
  return modules_.at(module)->stored(format);
}

ModuleScore ScoreMeter::score(const MeasuredModule& module, const std::vector<HeardPass>& passes,
                              const at::Tensor& valid_n) const {
  ModuleScore score;
  score.losses.resize(table_.formats().size());
  for (size_t i = 0; i < score.losses.size(); ++i) {
    const auto changes = module.changes(i, passes);
    for (size_t pass = 0; pass < passes.size(); ++pass)
      score.losses[i] += 0.5 * sum_of((changes[pass] * as_rows(passes[pass].gradient)).square());
    if (std::isfinite(score.losses[i])) continue;
    throw NumericError(fmt::format("{}: its score in {} is not finite: look at its weights and at the data",
                                   module.path(), table_.formats()[i].name));
  }
  for (const HeardPass& pass : passes) {
    const at::Tensor valid = as_rows(pass.y).index_select(0, valid_n);
    score.outputs += sum_of(valid);
    score.squares += sum_of(valid.square());
    score.count += valid.numel();
  }
  return score;
}

at::Tensor ScoreMeter::seen(const data::Batch& batch, models::Taps& taps, RowScore& row) const {
  const data::TokenStream& stream = batch.student;
  if (distance_ == Distance::kPooledStates) {
    const at::Tensor directions = pooled_directions(model_, stream);
    row.targets = directions.size(0);
    return (directions * drawn_signs(directions, static_cast<uint64_t>(batch.first_row))).sum();
  }
  const at::Tensor last = model_.model->encode(objective::model_input(stream, &taps)).last;
  const at::Tensor token_loss =
      models::next_token_loss(model_.model->head(last), stream.labels, model_.model->path() + " (scores)");
  row.targets = data::target_count(stream);
  row.loss = sum_of(token_loss.detach());
  if (std::isfinite(row.loss)) return token_loss.sum();
  throw NumericError(
      fmt::format("[{}] the loss of row {} is not finite: look at its weights", model_.model->path(), batch.first_row));
}

RowScore ScoreMeter::measure(const data::Batch& made) const {
  const data::Batch batch = data::place(made, model_.policy->device());
  const data::TokenStream& stream = batch.student;
  std::map<const precision::ContractModule*, Listener::Passes> passed;
  for (const auto& module : modules_) {
    for (const auto* user : module->users()) passed[user];
  }
  models::Taps taps;
  taps.keep_router = true;
  RowScore row;
  row.rows = 1;
  at::Tensor loss;
  {
    Listener listener(passed);
    const precision::Observing observing(listener);
    loss = seen(batch, taps, row);
  }
  std::vector<at::Tensor> asked;
  std::vector<Listener::Passes> heard;
  for (const auto& module : modules_) {
    Listener::Passes& all = heard.emplace_back();
    for (const auto* user : module->users()) {
      const Listener::Passes& passes = passed.at(user);
      const bool whole = std::all_of(passes.begin(), passes.end(), [](const auto& pass) { return pass.y.defined(); });
      if (passes.empty() || !whole) {
        throw InputDataError(fmt::format(
            "{}: no forward of the calibration rows went through it, so it has no score: give it a format by --rule",
            module->path()));
      }
      all.insert(all.end(), passes.begin(), passes.end());
    }
    for (const HeardPass& pass : all) asked.push_back(pass.y);
    for (const at::Tensor& weight : module->weights()) asked.push_back(weight);
  }
  const auto gradients = torch::autograd::grad({loss}, asked, {}, std::nullopt, false, /*allow_unused=*/true);

  const at::NoGradGuard no_gradient;
  const at::Tensor valid_n = objective::valid_tokens(stream).flatten().nonzero().flatten();
  size_t next = 0;
  for (size_t m = 0; m < modules_.size(); ++m) {
    const auto& module = modules_[m];
    Listener::Passes& passes = heard[m];
    for (HeardPass& pass : passes) {
      pass.gradient = gradients[next++];
      if (pass.gradient.defined()) continue;
      throw InputDataError(
          fmt::format("{}: the loss does not depend on what it gives, so it has no score: give it a "
                      "format by --rule",
                      module->path()));
    }
    ModuleScore score = this->score(*module, passes, valid_n);
    double gradient = 0;
    int64_t values = 0;
    for (size_t i = 0; i < module->weights().size(); ++i, ++next) {
      gradient += sum_of(gradients[next].abs());
      values += gradients[next].numel();
    }
    score.gradient = gradient / static_cast<double>(values * std::max<int64_t>(row.targets, 1));
    row.modules.push_back(std::move(score));
  }
  row.experts = expert_tokens(model_.config.architecture, taps, valid_n);
  return row;
}

std::vector<double> ScoreMeter::mean_weights() const {
  const at::NoGradGuard no_gradient;
  std::vector<double> means;
  for (const auto& module : modules_) {
    double sum = 0;
    int64_t values = 0;
    for (const at::Tensor& weight : module->weights()) sum += sum_of(weight.abs()), values += weight.numel();
    means.push_back(sum / static_cast<double>(values));
  }
  return means;
}

std::vector<std::string> experts_without_tokens(const RowScore& scores) {
  std::vector<std::string> lines;
  for (const auto& [layer, tokens] : scores.experts) {
    std::vector<size_t> none;
    for (size_t i = 0; i < tokens.size(); ++i) {
      if (tokens[i] == 0) none.push_back(i);
    }
    if (!none.empty()) lines.push_back(fmt::format("{}: experts {} saw no token", layer, fmt::join(none, ", ")));
  }
  return lines;
}

}  // namespace limbeck::quantize
