#include "trainer/profile/module_times.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "modules/models/network/experts.h"
#include "trainer/profile/subject.h"

namespace limbeck::profile {
namespace {

const std::string kAttentionName = ".self_attn";

// What queries see of the keys that end with their own, `past` of which came before them: see AttentionOptions.
struct Seen {
  int64_t pairs = 0, keys = 0;
};

Seen seen_by(int64_t queries, int64_t past, bool causal, int64_t window) {
  const int64_t keys = past + queries;
  Seen seen;
  int64_t earliest = keys, latest = 0;
  for (int64_t own = past; own < keys; ++own) {
    const int64_t first = window > 0 ? std::max<int64_t>(0, own - window + 1) : 0;
    const int64_t end = causal ? own + 1 : window > 0 ? std::min(keys, own + window) : keys;
    seen.pairs += end - first;
    earliest = std::min(earliest, first), latest = std::max(latest, end);
  }
  seen.keys = latest - earliest;
  return seen;
}

int64_t stored_bytes(const models::Linear& linear) {
  return linear.is_quantized() ? linear.packed()->bytes() : static_cast<int64_t>(linear.weight().nbytes());
}

std::string operands_of(const precision::ContractModule& module) {
  const precision::Precision& precision = module.precision();
  if (precision.quantized && precision.quantized->dynamic) return kernels::format_name(*precision.quantized);
  return precision::dtype_name(precision.compute);
}

}  // namespace

ModuleTimes::ModuleTimes(const models::Transformer& model, c10::Device device) : model_(model), device_(device) {
  const std::vector<int64_t>& windows = model.architecture().window;
  for (size_t layer = 0; layer < windows.size(); ++layer)
    windows_[fmt::format("{}.layers.{}{}", model.path(), layer, kAttentionName)] = windows[layer];
  begin_pass();
}

void ModuleTimes::begin_pass() {
  past_.clear();
  spans_.clear();
  finish_device(device_);
  pass_begin_ = SpanClock::now();
}

ModuleTime& ModuleTimes::of(const std::string& path) {
  const auto [found, fresh] = kept_.try_emplace(path);
  if (fresh) {
    found->second.order = kept_.size();
    found->second.time.module = path;
    if (path == model_.path()) found->second.time.role = "model";
  }
  return found->second.time;
}

void ModuleTimes::begin(const std::string& path) {
  finish_device(device_);
  of(path);
  running_.push_back({path, SpanClock::now(), 0, 0, 0});
}

void ModuleTimes::end(const std::string& path) {
  if (running_.empty() || running_.back().path != path) return;  // it began before anybody heard
  finish_device(device_);
  const auto now = SpanClock::now();
  const Running last = running_.back();
  running_.pop_back();
  const double ms = std::chrono::duration<double, std::milli>(now - last.begin).count();
  if (!running_.empty()) running_.back().inside_ms += ms;
  ModuleTime& time = of(path);
  ++time.calls;
  time.ms += ms - last.inside_ms;
  if (last.queries > 0) add_attention(last, time);
  spans_.push_back({path, std::chrono::duration<double, std::micro>(last.begin - pass_begin_).count(), 1000 * ms});
}

// Scores and their mix, of the pairs that masks leave.
void ModuleTimes::add_attention(const Running& running, ModuleTime& time) {
  const models::Architecture& a = model_.architecture();
  int64_t& past = past_[running.path];
  const bool causal = a.kind == models::ModelKind::kDecoder;
  const auto window = windows_.find(running.path);
  const Seen seen = seen_by(running.queries, past, causal, window == windows_.end() ? 0 : window->second);
  const auto queries = static_cast<double>(running.queries), keys = static_cast<double>(seen.keys);
  const auto batch = static_cast<double>(running.batch), width = static_cast<double>(a.heads * a.head_dim);
  time.role = "attention";
  time.operands = time.operands.empty() ? "float32" : time.operands;
  time.flops += 4 * batch * static_cast<double>(seen.pairs) * width;
  const double bytes_of_a_value = time.operands == "float32" ? 4 : 2;
  const auto held = static_cast<double>(2 * a.key_value_heads * a.head_dim);
  time.bytes += static_cast<int64_t>(batch * bytes_of_a_value * (2 * queries * width + keys * held));
  if (causal) past += running.queries;
}

void ModuleTimes::input(const precision::ContractModule& module, const at::Tensor& x) {
  ModuleTime& time = of(module.path());
  time.role = precision::role_name(module.role());
  time.bytes += static_cast<int64_t>(x.nbytes());
  const auto* embedding = dynamic_cast<const models::Embedding*>(&module);
  if (embedding == nullptr) time.bytes += module.footprint().bytes;  // of a table the rows that come out
  const auto* linear = dynamic_cast<const models::Linear*>(&module);
  if (linear == nullptr || linear->in_features() == 0) return;
  time.operands = operands_of(module);
  time.flops += 2.0 * static_cast<double>(x.numel()) * static_cast<double>(linear->out_features());
  if (linear->is_tied()) time.bytes += stored_bytes(*linear);  // which is no part of its footprint
  // The mixer that this is the first projection of: its products are of as many queries.
  if (!module.path().starts_with(model_.path() + ".")) return;  // a teacher's, of another shape
  if (running_.size() < 2 || module.role() != precision::Role::kAttention || x.dim() != 3) return;
  Running& mixer = running_[running_.size() - 2];
  if (!mixer.path.ends_with(kAttentionName) || mixer.queries > 0) return;
  mixer.batch = x.size(0), mixer.queries = x.size(1);
  of(mixer.path).operands = precision::dtype_name(x.scalar_type());
}

void ModuleTimes::output(const precision::ContractModule& module, const at::Tensor& y) {
  of(module.path()).bytes += static_cast<int64_t>(y.nbytes());
}

void ModuleTimes::routing(const precision::ContractModule& module, const at::Tensor& experts_nk, const at::Tensor&) {
  const auto* experts = dynamic_cast<const models::ExpertWeights*>(&module);
  if (experts == nullptr) return;
  ModuleTime& time = of(module.path());
  time.operands = operands_of(module);
  for (const auto& stack : experts->stacks()) {
    const models::StackSizes& sizes = stack->sizes();
    time.flops += 2.0 * static_cast<double>(experts_nk.numel()) * static_cast<double>(sizes.out * sizes.in);
  }
}

std::vector<ModuleTime> ModuleTimes::modules() const {
  std::vector<std::pair<size_t, ModuleTime>> ordered;
  for (const auto& [path, kept] : kept_) {
    if (kept.time.calls > 0) ordered.emplace_back(kept.order, kept.time);
  }
  std::sort(ordered.begin(), ordered.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<ModuleTime> result;
  for (auto& [order, time] : ordered) result.push_back(std::move(time));
  return result;
}

}  // namespace limbeck::profile
