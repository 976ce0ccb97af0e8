#include "trainer/session/run_state.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>
#include <limits>
#include <set>

#include "modules/errors.h"
#include "modules/io/json_file.h"

namespace limbeck::session {
namespace {

using checkpoint::Kind;
using nlohmann::json;

constexpr int64_t kMost = int64_t{1} << 62;
constexpr double kLargest = std::numeric_limits<double>::max();

json number(double value) { return std::isfinite(value) ? json(value) : json(nullptr); }
double number(const json& value) { return value.is_null() ? std::nan("") : value.get<double>(); }

json as_json(const evaluate::Evaluation& evaluation) {
  json values = json::array();
  for (const auto& [name, value] : evaluation.values) values.push_back({name, number(value)});
  return {{"targets", evaluation.targets}, {"values", values}};
}

evaluate::Evaluation evaluation_of(const io::JsonFile& saved) {
  evaluate::Evaluation evaluation;
  evaluation.targets = saved.integer("targets", 0, kMost);
  for (const json& value : saved.value().at("values")) {
    evaluation.values.emplace_back(value.at(0).get<std::string>(), number(value.at(1)));
  }
  return evaluation;
}

io::JsonFile state_file(const checkpoint::Checkpoint& from) {
  return {from.state(), (from.path() / "state.json").string()};
}

std::map<std::string, double> optimizer_scalars(const io::JsonFile& state) {
  const io::JsonFile saved = state.child("optimizer");
  std::map<std::string, double> scalars;
  for (const auto& [name, value] : saved.value().items())
    scalars[name] = value.is_null() ? std::nan("") : saved.number(name, -kLargest, kLargest);
  return scalars;
}

// Tensors that a checkpoint keeps and the optimizer does not train: frozen parameters, averages.
std::vector<std::pair<std::string, at::Tensor>> untrained(const objective::Distillation& objective,
                                                          const std::vector<optim::StateTensor>& trained) {
  std::set<std::string> known;
  for (const optim::StateTensor& tensor : trained) known.insert(tensor.name);
  std::vector<std::pair<std::string, at::Tensor>> found;
  for (auto& named : objective.kept_tensors()) {
    if (known.insert(named.first).second) found.push_back(std::move(named));
  }
  return found;
}

void add_parts(const std::vector<optim::StateTensor>& tensors, std::vector<checkpoint::Piece>& pieces) {
  for (const optim::StateTensor& tensor : tensors) {
    if (tensor.saved_here) pieces.push_back({tensor.name, tensor.shape, tensor.begin, tensor.part.detach()});
  }
}

// Reads into a tensor of any layout that is contiguous, wherever it lives.
void fill(const checkpoint::Checkpoint& from, Kind kind, const std::string& name, int64_t begin, at::Tensor part) {
  if (part.numel() == 0) return;
  if (part.is_cpu()) return from.read(kind, name, begin, part);
  at::Tensor on_cpu = at::empty(part.sizes(), part.options().device(at::kCPU));
  from.read(kind, name, begin, on_cpu);
  part.copy_(on_cpu);
}

// Names of the checkpoint that nothing asked for, and shapes that differ.
void check_names(const checkpoint::Checkpoint& from,
                 const std::map<std::pair<Kind, std::string>, std::vector<int64_t>>& wanted) {
  std::vector<std::string> extra;
  for (const checkpoint::LogicalTensor& tensor : from.tensors()) {
    const auto found = wanted.find({tensor.kind, tensor.name});
    if (found == wanted.end()) {
      extra.push_back(tensor.name);
    } else if (found->second != tensor.shape) {
      throw WeightsError(fmt::format("{}: {} is [{}], wanted [{}]: the recipe builds another model than was saved",
                                     from.path().string(), tensor.name, fmt::join(tensor.shape, ","),
                                     fmt::join(found->second, ",")));
    }
  }
  if (extra.empty()) return;
  throw WeightsError(
      fmt::format("{}: holds {} that this recipe does not train or keep: resume with the recipe that it "
                  "was saved by",
                  from.path().string(), fmt::join(extra, ", ")));
}

}  // namespace

checkpoint::SaveRequest save_request(const RunState& run, const objective::Distillation& objective,
                                     const optim::Optimizer& optimizer, bool first_rank) {
  checkpoint::SaveRequest request;
  request.step = run.step;
  request.run_id = run.record.run_id;
  const auto trained = optimizer.weight_tensors();
  add_parts(trained, request.model);
  add_parts(optimizer.state_tensors(), request.optimizer);
  if (!first_rank) return request;
  for (const auto& [name, tensor] : untrained(objective, trained)) {
    request.model.push_back(checkpoint::whole_tensor(name, tensor.detach().contiguous()));
  }
  json scalars = json::object();
  for (const auto& [name, value] : optimizer.state_scalars()) scalars[name] = number(value);
  request.state = {{"step", run.step},
                   {"seconds", run.record.seconds},
                   {"tokens", run.tokens},
                   {"peak_bytes", run.record.peak_bytes},
                   {"evaluated", run.record.evaluated},
                   {"last", as_json(run.record.last)},
                   {"best", as_json(run.record.best)},
                   {"best_step", run.record.best_step},
                   {"last_step", run.record.last_step},
                   {"optimizer", scalars},
                   {"recipe", run.identity.recipe},
                   {"data", run.identity.data},
                   {"build", run.identity.build}};
  return request;
}

RunState read_run_state(const checkpoint::Checkpoint& from) {
  RunState run;
  const io::JsonFile state = state_file(from);
  try {
    run.record.run_id = from.run_id();
    run.step = state.integer("step", 0, kMost);
    run.record.seconds = state.number("seconds", 0, kLargest);
    run.tokens = state.integer("tokens", 0, kMost);
    run.record.peak_bytes = state.integer("peak_bytes", 0, kMost);
    run.record.evaluated = state.value().at("evaluated").get<bool>();
    run.record.last = evaluation_of(state.child("last"));
    run.record.best = evaluation_of(state.child("best"));
    run.record.best_step = state.integer("best_step", 0, kMost);
    run.record.last_step = state.integer_or("last_step", 0, 0, kMost);  // checkpoints of before have none
    run.identity.recipe = state.value().at("recipe").get<std::map<std::string, std::string>>();
    run.identity.data = state.value().at("data").get<std::map<std::string, std::string>>();
    run.identity.build = state.value().at("build").get<std::map<std::string, std::string>>();
    optimizer_scalars(state);
  } catch (const json::exception& error) {
    throw WeightsError(
        fmt::format("{}/state.json: is no state of a training run ({}): name a checkpoint that `limbeck "
                    "train` saved",
                    from.path().string(), error.what()));
  }
  if (run.step != from.step()) {
    throw WeightsError(
        fmt::format("{}: state.json is of step {}, MANIFEST.json of step {}: the two do not belong together",
                    from.path().string(), run.step, from.step()));
  }
  return run;
}

void restore(const checkpoint::Checkpoint& from, objective::Distillation& objective, optim::Optimizer& optimizer) {
  const at::NoGradGuard no_gradient;
  const auto weights = optimizer.weight_tensors(), states = optimizer.state_tensors();
  const auto others = untrained(objective, weights);
  std::map<std::pair<Kind, std::string>, std::vector<int64_t>> wanted;
  for (const auto& tensor : weights) wanted[{Kind::kModel, tensor.name}] = tensor.shape;
  for (const auto& tensor : states) wanted[{Kind::kOptimizer, tensor.name}] = tensor.shape;
  for (const auto& [name, tensor] : others) wanted[{Kind::kModel, name}] = tensor.sizes().vec();
  check_names(from, wanted);
  for (const auto& tensor : weights) fill(from, Kind::kModel, tensor.name, tensor.begin, tensor.part);
  for (const auto& tensor : states) fill(from, Kind::kOptimizer, tensor.name, tensor.begin, tensor.part);
  objective.fill([&] {
    for (const auto& [name, tensor] : others) fill(from, Kind::kModel, name, 0, tensor.detach());
  });
  optimizer.load_state_scalars(optimizer_scalars(state_file(from)));
}

}  // namespace limbeck::session
