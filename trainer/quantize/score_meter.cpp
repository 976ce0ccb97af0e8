#include "trainer/quantize/score_meter.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/bincount.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <stdexcept>

#include "kernels/linear/linear.h"
#include "kernels/quantized/quantized_linear.h"
#include "kernels/random/counter_bits.h"
#include "modules/errors.h"
#include "modules/io/finite_check.h"
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

// A weight, and who computes with it: one module, or an embedding and the head that is tied to it.
struct ScoreMeter::Measured {
  std::string path;
  at::Tensor weight;
  std::vector<const precision::ContractModule*> users;
  std::vector<std::optional<precision::PackedWeight>> packed;  // by format; none: float, or it cannot be stored so
};

// Each time that one of the users ran.
struct ScoreMeter::Heard {
  struct Call {
    bool looks_up = false;
    at::Tensor x, y, gradient;
  };
  std::vector<Call> calls;
};

namespace {

// Keeps what went into the measured modules and came out of them.
class Listener : public precision::ModuleObserver {
 public:
  struct Passed {
    std::vector<at::Tensor> x, y;
  };
  explicit Listener(std::map<const precision::ContractModule*, Passed>& passed) : passed_(passed) {}

  void input(const precision::ContractModule& module, const at::Tensor& x) override {
    const auto found = passed_.find(&module);
    if (found != passed_.end()) found->second.x.push_back(x);
  }
  void output(const precision::ContractModule& module, const at::Tensor& y) override {
    const auto found = passed_.find(&module);
    if (found != passed_.end()) found->second.y.push_back(y);
  }

 private:
  std::map<const precision::ContractModule*, Passed>& passed_;
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

ScoreMeter::ScoreMeter(const models::BuiltModel& model, const FormatTable& table, at::ScalarType floats)
    : model_(model), distance_(distance_of(model)), table_(table), floats_(floats) {
  const auto all = precision::contract_modules(*model.model);
  const std::string root = model.model->path() + ".";
  for (const auto& module : all) {
    const size_t next = modules_.size();
    if (next == table.modules().size() || module->path() != root + table.modules()[next].path) continue;
    auto measured =
        std::make_unique<Measured>(Measured{table.modules()[next].path, module->parameter("weight"), {}, {}});
    for (const auto& user : all) {
      if (user == module || is_tied_to(*user, measured->weight)) measured->users.push_back(user.get());
    }
    const at::Tensor weight = precision::move(measured->weight.detach(), c10::kCPU);
    if (io::first_nonfinite(weight)) {
      throw WeightsError(fmt::format("{}: its weight holds NaN or infinity, which no code stands for: mend the model",
                                     measured->path));
    }
    for (size_t i = 0; i < table.formats().size(); ++i) {
      const auto& format = table.formats()[i].packed;
      const bool codes = format && table.modules()[next].bytes[i];
      measured->packed.push_back(
          codes ? std::optional(precision::PackedWeight(weight, *format, module->placement(), floats)) : std::nullopt);
    }
    modules_.push_back(std::move(measured));
  }
  if (modules_.size() != table.modules().size()) throw std::logic_error("the model has not all modules of the table");
}

ScoreMeter::~ScoreMeter() = default;

at::Tensor ScoreMeter::stored(const Measured& module, size_t format) const {
  const at::Tensor weight = module.weight.detach();
  if (module.packed[format]) return module.packed[format]->rows(0, weight.size(0));
  at::Tensor narrow = at::empty(weight.sizes(), weight.options().dtype(floats_)), back = at::empty_like(weight);
  precision::cast_into(narrow, weight);
  precision::cast_into(back, narrow);
  return back;
}

at::Tensor ScoreMeter::weight_in(size_t module, size_t format) const {
  const at::NoGradGuard no_gradient;
  return stored(*modules_.at(module), format);
}

ScoreMeter::Changes ScoreMeter::changes_under(const Measured& module, size_t format) const {
  const at::Tensor weight = module.weight.detach(), error = stored(module, format) - weight;
  const auto looked_up = [error](const at::Tensor& ids) { return error.index_select(0, ids.flatten()); };
  const auto& packed = module.packed[format];
  if (packed && packed->format().dynamic) {  // which rounds the inputs too
    const auto product = [weight, matrix = packed->on(weight.device()).matrix()](const at::Tensor& x) {
      return kernels::quantized_linear(as_rows(x), matrix) - kernels::linear(as_rows(x), weight);
    };
    return {product, looked_up};
  }
  return {[error](const at::Tensor& x) { return kernels::linear(as_rows(x), error); }, looked_up};
}

ModuleScore ScoreMeter::score(const Measured& module, const Heard& heard, const at::Tensor& valid_n) const {
  ModuleScore score;
  score.losses.resize(table_.formats().size());
  for (size_t i = 0; i < score.losses.size(); ++i) {
    const Changes changes = changes_under(module, i);
    for (const Heard::Call& call : heard.calls) {
      const at::Tensor change = call.looks_up ? changes.lookup(call.x) : changes.product(call.x);
      score.losses[i] += 0.5 * sum_of((change * as_rows(call.gradient)).square());
    }
    if (std::isfinite(score.losses[i])) continue;
    throw NumericError(fmt::format("{}: its score in {} is not finite: look at its weights and at the data",
                                   module.path, table_.formats()[i].name));
  }
  for (const Heard::Call& call : heard.calls) {
    const at::Tensor valid = as_rows(call.y).index_select(0, valid_n);
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
  std::map<const precision::ContractModule*, Listener::Passed> passed;
  for (const auto& module : modules_) {
    for (const auto* user : module->users) passed[user];
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
  std::vector<Heard> heard;
  for (const auto& module : modules_) {
    heard.emplace_back();
    for (const auto* user : module->users) {
      const Listener::Passed& of = passed.at(user);
      const bool looks_up = dynamic_cast<const models::Embedding*>(user) != nullptr;
      if (of.y.empty() || of.x.size() != of.y.size()) {
        throw InputDataError(fmt::format(
            "{}: no forward of the calibration rows went through it, so it has no score: give it a format by --rule",
            module->path));
      }
      for (size_t i = 0; i < of.y.size(); ++i) heard.back().calls.push_back({looks_up, of.x[i], of.y[i], {}});
      asked.insert(asked.end(), of.y.begin(), of.y.end());
    }
    asked.push_back(module->weight);
  }
  const auto gradients = torch::autograd::grad({loss}, asked, {}, std::nullopt, false, /*allow_unused=*/true);

  const at::NoGradGuard no_gradient;
  const at::Tensor valid_n = objective::valid_tokens(stream).flatten().nonzero().flatten();
  size_t next = 0;
  for (size_t i = 0; i < modules_.size(); ++i) {
    for (Heard::Call& call : heard[i].calls) {
      call.gradient = gradients[next++];
      if (call.gradient.defined()) continue;
      throw InputDataError(
          fmt::format("{}: the loss does not depend on what it gives, so it has no score: give it a "
                      "format by --rule",
                      modules_[i]->path));
    }
    ModuleScore score = this->score(*modules_[i], heard[i], valid_n);
    const at::Tensor& of_weight = gradients[next++];
    score.gradient =
        sum_of(of_weight.abs()) / static_cast<double>(of_weight.numel() * std::max<int64_t>(row.targets, 1));
    row.modules.push_back(std::move(score));
  }
  row.experts = expert_tokens(model_.config.architecture, taps, valid_n);
  return row;
}

std::vector<double> ScoreMeter::mean_weights() const {
  const at::NoGradGuard no_gradient;
  std::vector<double> means;
  for (const auto& module : modules_) {
    const at::Tensor weight = module->weight.detach();
    means.push_back(sum_of(weight.abs()) / static_cast<double>(weight.numel()));
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
