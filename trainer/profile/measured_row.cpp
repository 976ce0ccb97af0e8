#include "trainer/profile/measured_row.h"

#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <thread>

#include "kernels/operator/cuda_library.h"
#include "modules/errors.h"
#include "modules/memory/allocator.h"
#include "modules/memory/device_memory.h"
#include "modules/memory/host_memory.h"
#include "modules/precision/contract_modules.h"
#include "trainer/build/recipe_models.h"
#include "trainer/energy/machine_meters.h"
#include "trainer/objective/forward_pass.h"
#include "trainer/profile/module_replay.h"
#include "trainer/profile/module_times.h"
#include "trainer/profile/subject.h"

namespace limbeck::profile {
namespace {

using nlohmann::ordered_json;

constexpr int kObservedPasses = 10;

ordered_json latency_json(const Latency& latency) {
  return {{"mean", latency.mean},
          {"p50", latency.p50},
          {"p95", latency.p95},
          {"std", latency.std},
          {"trials", latency.trials}};
}

ordered_json energy_json(const energy::EnergyOfWork& work) {
  ordered_json json{{"joules", or_null(work.joules.value)},
                    {"reason", work.joules.value ? ordered_json() : ordered_json(work.joules.reason)},
                    {"above_idle", or_null(work.above_idle.value)},
                    {"idle_watts", or_null(work.idle.total().value)},
                    {"by_device", ordered_json::object()},
                    {"reasons", ordered_json::object()},
                    {"seconds", work.seconds},
                    {"repetitions", work.repetitions},
                    {"windows", work.windows},
                    {"spread", work.windows > 0 ? ordered_json(work.spread) : ordered_json()},
                    {"settled", work.settled}};
  for (const auto& [device, joules] : work.by_device) {
    json["by_device"][device] = or_null(joules.value);
    if (!joules.value) json["reasons"][device] = joules.reason;
  }
  return json;
}

// Energy of modules by their replay, and of what is left of the forward.
struct ModuleEnergy {
  std::map<std::string, energy::Joules> by_module;
  energy::Joules rest;
  std::string reason;  // of those that are not in by_module
};

ModuleEnergy replayed_energy(Subject& subject, const std::vector<energy::DeviceMeters>& meters,
                             const energy::EnergyOfWork& whole, const RowRequest& request,
                             const std::map<std::string, int64_t>& calls) {
  ModuleEnergy found;
  if (!whole.above_idle.value) return {{}, {{}, whole.above_idle.reason}, whole.above_idle.reason};
  const auto because = [&](const char* reason) { return ModuleEnergy{{}, {{}, reason}, reason}; };
  if (request.work != Work::kForward) return because("modules are replayed for the forward alone");
  if (!request.options.measures_modules) return because("not asked for (profile.energy = modules)");
  const c10::InferenceMode inference;
  CapturedInputs captured(*subject.student().model);
  {
    const precision::Observing observing(captured);
    subject.pass();
  }
  std::vector<double> parts;
  for (const auto& [path, replay] : captured.replays()) {
    const auto again = [&, once = replay] {
      once();
      finish_device(request.device);
    };
    const energy::Joules joules = energy::measure_energy(meters, whole.idle, request.options.energy, again).above_idle;
    if (!joules.value) return {{}, joules, joules.reason};
    const auto times = calls.find(path);
    parts.push_back(std::max(0.0, *joules.value) * static_cast<double>(times == calls.end() ? 1 : times->second));
    found.by_module[path] = joules;
  }
  // In the same order: by path.
  const energy::Division division = energy::divide(*whole.above_idle.value, parts);
  size_t number = 0;
  for (auto& [path, joules] : found.by_module) joules.value = division.parts[number++];
  found.rest.value = division.rest;
  found.reason = "it has no weights to replay: its energy is in the rest";
  return found;
}

ordered_json module_json(const ModuleTime& time, double passes, double total_ms, const Ceilings& ceilings) {
  const double seconds = time.ms / passes / 1000, flops = time.flops / passes;
  const auto bytes = static_cast<double>(time.bytes) / passes;
  const double most = ceilings.gflops_of(time.operands) * 1e9;
  const double compute = flops > 0 && most > 0 ? flops / most : 0;
  const double memory = ceilings.gb_per_second > 0 ? bytes / (ceilings.gb_per_second * 1e9) : 0;
  const bool known = (flops == 0 || most > 0) && seconds > 0 && (flops > 0 || bytes > 0);
  ordered_json json{{"module", time.module},
                    {"role", time.role},
                    {"calls", static_cast<double>(time.calls) / passes},
                    {"ms", 1000 * seconds},
                    {"share", 1000 * seconds / total_ms},
                    {"flops", flops},
                    {"bytes", bytes},
                    {"gflops", flops > 0 && seconds > 0 ? ordered_json(flops / seconds / 1e9) : ordered_json()},
                    {"roofline_share", known ? ordered_json(std::max(compute, memory) / seconds) : ordered_json()},
                    {"bound", known ? ordered_json(compute >= memory ? "compute" : "memory") : ordered_json()}};
  return json;
}

void put_energy(ordered_json& module, const energy::Joules& joules) {
  module["joules"] = or_null(joules.value);
  module["reason"] = joules.value ? ordered_json() : ordered_json(joules.reason);
}

struct Observed {
  std::vector<ModuleTime> modules;
  std::vector<TraceSpan> spans;
  double passes = 0, total_ms = 0;       // of a pass
  std::map<std::string, int64_t> calls;  // of a pass
};

Observed observe(Subject& subject, int64_t timed_passes) {
  ModuleTimes times(*subject.student().model, subject.device());
  const int64_t passes = std::clamp<int64_t>(timed_passes, 1, kObservedPasses);
  const auto begin = energy::steady_seconds();
  {
    const precision::Observing observing(times);
    for (int64_t i = 0; i < passes; ++i) {
      times.begin_pass();
      subject.pass();
    }
  }
  Observed found{times.modules(), times.spans(), static_cast<double>(passes), 0, {}};
  found.total_ms = 1000 * (energy::steady_seconds() - begin) / found.passes;
  for (const ModuleTime& module : found.modules) found.calls[module.module] = module.calls / passes;
  return found;
}

// Of the pass what no module of the student says of itself: of training backward, loss and update, of generation the
// choice of ids.
ordered_json rest_json(const Observed& observed) {
  double ms = observed.total_ms;
  for (const ModuleTime& module : observed.modules) ms -= module.ms / observed.passes;
  return {{"module", "(rest)"},
          {"role", ""},
          {"calls", 1},
          {"ms", ms},
          {"share", ms / observed.total_ms},
          {"flops", nullptr},
          {"bytes", nullptr},
          {"gflops", nullptr},
          {"roofline_share", nullptr},
          {"bound", nullptr}};
}

ordered_json modules_json(const Observed& observed, const ModuleEnergy& energies, const Ceilings& ceilings) {
  ordered_json modules = ordered_json::array();
  for (const ModuleTime& time : observed.modules) {
    ordered_json module = module_json(time, observed.passes, observed.total_ms, ceilings);
    const auto found = energies.by_module.find(time.module);
    put_energy(module, found != energies.by_module.end() ? found->second : energy::Joules{{}, energies.reason});
    modules.push_back(std::move(module));
  }
  ordered_json rest = rest_json(observed);
  put_energy(rest, energies.rest);
  modules.push_back(std::move(rest));
  return modules;
}

ordered_json spans_json(const std::vector<TraceSpan>& spans) {
  ordered_json json = ordered_json::array();
  for (const TraceSpan& span : spans) json.push_back({span.module, span.begin_us, span.microseconds});
  return json;
}

void require_possible(const recipe::Settings& placed, const RowRequest& request) {
  const models::BuiltModel student = build::build_student(placed, /*meta=*/true);
  const std::string reason =
      refusal(placed, request.precision, request.work, student.config.architecture, student.config.layout != nullptr);
  if (!reason.empty()) throw UsageError(reason);
}

ordered_json rows_json(const Subject& subject) {
  const ProfiledRows& rows = subject.rows();
  return {{"from", rows.from},
          {"reason", rows.reason.empty() ? ordered_json() : ordered_json(rows.reason)},
          {"rows", subject.rows_of_a_pass()},
          {"length", rows.batch.student.ids.size(1)},
          {"tokens", objective::valid_tokens(rows.batch.student).sum().item<int64_t>()}};
}

void measure_speed(Subject& subject, const RowRequest& request, ordered_json& row) {
  row["read"] = rows_json(subject);
  memory::DeviceMemory(subject.device()).reset_peak();
  const Repetitions& asked = request.options.repetitions;
  const Latency latency = measure(asked, [&] { subject.pass(); });
  row["latency_ms"] = latency_json(latency);
  row["passes"] = latency.passes;
  row["passes_asked"] = asked.measured * asked.trials;
  row["cut"] = latency.passes < asked.measured * asked.trials;  // by profile.most_seconds
  row["rows_per_second"] = 1000 * static_cast<double>(subject.rows_of_a_pass()) / latency.mean;
  row["tokens_per_second"] = 1000 * static_cast<double>(subject.tokens_of_a_pass()) / latency.mean;
  row["peak_bytes"] = memory::DeviceMemory(subject.device()).peak_bytes();
  row["bytes_of_weights"] = precision::total_footprint(*subject.student().model).bytes;
}

}  // namespace

ordered_json or_null(const std::optional<double>& value) { return value ? ordered_json(*value) : ordered_json(); }

ordered_json empty_row(const RowRequest& request) {
  ordered_json row{{"precision", request.precision.name},
                   {"device", request.device.str()},
                   {"work", work_name(request.work)},
                   {"refused", nullptr}};
  for (const char* name :
       {"read", "latency_ms", "passes", "passes_asked", "cut", "rows_per_second", "tokens_per_second", "bytes_on_disk",
        "bytes_on_disk_reason", "bytes_of_weights", "peak_bytes", "peak_rss_bytes", "temperature_c",
        "temperature_reason", "quality", "quality_reason", "energy"}) {
    row[name] = nullptr;
  }
  row["modules"] = ordered_json::array();
  return row;
}

namespace {

// Before the first tensor of a process.
Subject prepared_subject(const RowRequest& request) {
  memory::tune_allocator();
  memory::HostMemory::count_tensors();
  if (request.device.is_cuda()) kernels::cuda_available();  // in the process before its first backward
  const recipe::Settings placed = placed_settings(request.settings, request.precision, request.device);
  require_possible(placed, request);
  return {placed, request.registries, request.options, request.work};
}

}  // namespace

ordered_json measured_row(const RowRequest& request) {
  Subject subject = prepared_subject(request);
  ordered_json row = empty_row(request);
  measure_speed(subject, request, row);
  std::string no_temperature;
  row["temperature_c"] = or_null(energy::celsius_of(subject.device(), no_temperature));
  if (row["temperature_c"].is_null()) row["temperature_reason"] = no_temperature;
  return row;
}

ordered_json unknown_energy(const std::string& reason) {
  energy::EnergyOfWork energy;
  energy.joules = energy.above_idle = {{}, reason};
  return energy_json(energy);
}

ordered_json observed_row(const RowRequest& request, const Ceilings& ceilings, int64_t passes) {
  Subject subject = prepared_subject(request);
  subject.pass();  // warm, as those that were timed
  const Observed observed = observe(subject, passes);
  energy::EnergyOfWork energy;
  std::vector<energy::DeviceMeters> meters;
  if (request.options.measures_energy) {
    meters = energy::meters_of_work_on(subject.device());
    const auto rest = [](double seconds) { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); };
    const energy::IdleDraw idle = energy::measure_idle(meters, request.options.energy, rest);
    energy = energy::measure_energy(meters, idle, request.options.energy, [&] { subject.pass(); });
  } else {
    energy.joules = energy.above_idle = {{}, "not asked for (profile.energy = off)"};
  }
  return {
      {"energy", energy_json(energy)},
      {"modules", modules_json(observed, replayed_energy(subject, meters, energy, request, observed.calls), ceilings)},
      {"spans", spans_json(observed.spans)}};
}

}  // namespace limbeck::profile
