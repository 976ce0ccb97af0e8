#include "trainer/profile/profile.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <fstream>
#include <map>
#include <set>
#include <utility>

#include "kernels/cpu/cpu_isa.h"
#include "kernels/operator/cuda_library.h"
#include "modules/errors.h"
#include "modules/memory/allocator.h"
#include "modules/precision/precision.h"
#include "trainer/energy/machine_meters.h"
#include "trainer/profile/assessment.h"
#include "trainer/profile/child_process.h"
#include "trainer/profile/measured_row.h"
#include "trainer/recipe/value.h"

namespace limbeck::profile {
namespace {

using nlohmann::ordered_json;

// `peak_bytes`, unless null: of the process's resident memory, as the system accounts it.
ordered_json in_child(const std::function<ordered_json()>& work, int64_t* peak_bytes = nullptr) {
  const ChildOutcome outcome = run_in_child([&] { return work().dump(); });
  if (!outcome.fault.empty()) throw ContractError(outcome.fault);
  if (peak_bytes != nullptr) *peak_bytes = outcome.peak_bytes;
  return ordered_json::parse(outcome.text);
}

// A process that asks for GPUs can have no children that use them.
std::vector<std::string> devices_there(const ProfileOptions& options) {
  if (!options.devices.empty()) return options.devices;
  const ordered_json found = in_child([] {
    ordered_json devices = {"cpu"};
    if (kernels::cuda_available()) devices.push_back("cuda:0");
    return devices;
  });
  return found.get<std::vector<std::string>>();
}

std::string processor_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("model name")) return line.substr(std::min(line.size(), line.find(':') + 2));
  }
  return "";
}

const char* vector_name(kernels::CpuIsa isa) {
  switch (isa) {
    case kernels::CpuIsa::kBaseline:
      return "baseline";
    case kernels::CpuIsa::kAvx2:
      return "avx2";
    case kernels::CpuIsa::kAvx512:
      return "avx512";
    case kernels::CpuIsa::kAvx512Vnni:
      return "avx512_vnni";
    case kernels::CpuIsa::kAvx512Bf16:
      return "avx512_bf16";
    case kernels::CpuIsa::kAmx:
      return "amx";
  }
  return "";
}

// What products of these precisions multiply.
std::vector<std::string> operands_of(const ProfileOptions& options) {
  std::set<std::string> found{"float32"};
  for (const std::string& name : options.precisions) {
    const auto precision = ProfiledPrecision::parse(name, "");
    if (precision.dtype) found.insert(precision::dtype_name(*precision.dtype));
    if (precision.format && precision.format->dynamic) found.insert(kernels::format_name(*precision.format));
    if (precision.as_recipe) found.insert({"bfloat16", "float16"});
  }
  return {found.begin(), found.end()};
}

ordered_json meters_json(c10::Device device) {
  ordered_json meters = ordered_json::array();
  for (const energy::DeviceMeters& found : energy::meters_of_work_on(device)) {
    for (const auto& meter : found.meters) {
      meters.push_back({{"name", meter->name()}, {"device", found.device}, {"available", true}, {"reason", nullptr}});
    }
    if (!found.meters.empty()) continue;
    const char* name = found.device == "cpu" ? "RAPL" : "NVML";
    meters.push_back({{"name", name}, {"device", found.device}, {"available", false}, {"reason", found.absent}});
  }
  return meters;
}

// Of one device: what it can do, and what measures it.
ordered_json device_json(c10::Device device, const ProfileOptions& options) {
  memory::tune_allocator();
  if (device.is_cuda() && !kernels::cuda_available())
    throw ContractError(fmt::format("{}: no GPU can be used on this machine: --devices=cpu", device.str()));
  std::string reason;
  const auto celsius = energy::celsius_of(device, reason);
  const Ceilings ceilings = measure_ceilings(device, operands_of(options));
  return {{"threads", at::get_num_threads()},
          {"vector", vector_name(kernels::product_isa())},
          {"ceilings", {{"gflops", ceilings.gflops}, {"gb_per_second", ceilings.gb_per_second}}},
          {"temperature_c", or_null(celsius)},
          {"temperature_reason", celsius ? ordered_json() : ordered_json(reason)},
          {"meters", meters_json(device)}};
}

Ceilings ceilings_from(const ordered_json& device) {
  Ceilings ceilings;
  if (device.is_null()) return ceilings;
  ceilings.gflops = device.at("ceilings").at("gflops").get<std::map<std::string, double>>();
  ceilings.gb_per_second = device.at("ceilings").at("gb_per_second").get<double>();
  return ceilings;
}

// An ordered object moves its values when it grows: none is held by reference while another is added.
void put_machine(const std::map<std::string, ordered_json>& devices, const std::string& first, ordered_json& report) {
  ordered_json machine = ordered_json::object(), meters = ordered_json::array(), each = ordered_json::object();
  machine["processor"] = processor_name();
  std::set<std::string> seen;
  for (const auto& [name, device] : devices) {
    if (device.is_null()) continue;
    for (const auto& meter : device.at("meters")) {
      if (seen.insert(meter.dump()).second) meters.push_back(meter);
    }
    each[name] = device;
    each[name].erase("meters");
  }
  const auto main = devices.find(first);
  if (main != devices.end() && !main->second.is_null()) {
    for (const char* key : {"vector", "threads", "ceilings", "temperature_c", "temperature_reason"})
      machine[key] = main->second.at(key);
  }
  machine["devices"] = std::move(each);
  report["machine"] = std::move(machine);
  report["meters"] = std::move(meters);
}

// What was timed stays, whatever becomes of the rest.
void assess(const RowRequest& request, ordered_json& row) {
  try {
    row.update(in_child([&] { return assessment(request); }));
  } catch (const ContractError& error) {
    row["quality_reason"] = row["bytes_on_disk_reason"] = error.what();
  }
}

// {"energy", "modules", "spans"}, whatever becomes of the process that looks into the work.
ordered_json seen_in(const RowRequest& request, const ordered_json& device, const ordered_json& row) {
  try {
    return in_child([&] { return observed_row(request, ceilings_from(device), row.at("passes").get<int64_t>()); });
  } catch (const ContractError& error) {
    return {
        {"energy", unknown_energy(error.what())}, {"modules", ordered_json::array()}, {"spans", ordered_json::array()}};
  }
}

void add_trace(const ordered_json& row, const ordered_json& spans, ordered_json& events) {
  const auto number = row.at("number").get<int64_t>();
  const std::string name = fmt::format("{} on {}, {}", row.at("precision").get<std::string>(),
                                       row.at("device").get<std::string>(), row.at("work").get<std::string>());
  events.push_back({{"name", "process_name"}, {"ph", "M"}, {"pid", number}, {"tid", 1}, {"args", {{"name", name}}}});
  std::map<std::string, ordered_json> arguments;
  for (const auto& module : row.at("modules")) {
    arguments[module.at("module").get<std::string>()] = {
        {"role", module.at("role")}, {"flops", module.at("flops")}, {"bytes", module.at("bytes")}};
  }
  for (const auto& span : spans) {
    const auto module = span.at(0).get<std::string>();
    events.push_back({{"name", module},
                      {"cat", arguments[module].value("role", "")},
                      {"ph", "X"},
                      {"ts", span.at(1)},
                      {"dur", span.at(2)},
                      {"pid", number},
                      {"tid", 1},
                      {"args", arguments[module]}});
  }
}

std::string cell(const ordered_json& value) {
  if (value.is_null()) return "";
  if (!value.is_string()) return value.dump();
  const auto text = value.get<std::string>();
  if (text.find_first_of(",\"\n") == text.npos) return text;
  std::string quoted = "\"";
  for (const char c : text) quoted += c == '"' ? "\"\"" : std::string(1, c);
  return quoted + "\"";
}

}  // namespace

Profile run_profile(const ProfileRequest& request) {
  const ProfileOptions options = read_profile_options(request.settings);
  const std::vector<std::string> names = devices_there(options);
  std::map<std::string, ordered_json> devices;
  std::map<std::string, std::string> absent;
  for (const std::string& name : names) {
    try {
      devices[name] = in_child([&] { return device_json(c10::Device(name), options); });
    } catch (const ContractError& error) {
      devices[name] = nullptr;
      absent[name] = error.what();
    }
  }
  Profile profile;
  put_machine(devices, names.front(), profile.report);
  profile.report.update({{"batch", options.batch},
                         {"length", options.length},
                         {"new_tokens", options.new_tokens},
                         {"warmup", options.repetitions.warmup},
                         {"measured", options.repetitions.measured},
                         {"trials", options.repetitions.trials}});
  ordered_json rows = ordered_json::array(), events = ordered_json::array();
  const auto all = static_cast<int64_t>(options.precisions.size() * names.size() * options.work.size());
  for (const std::string& precision : options.precisions) {
    for (const std::string& device : names) {
      for (const Work work : options.work) {
        const RowRequest one{request.settings,
                             request.registries,
                             options,
                             ProfiledPrecision::parse(precision, ""),
                             c10::Device(device),
                             work};
        const auto number = static_cast<int64_t>(rows.size());
        if (request.tick) request.tick(fmt::format("{} on {}, {}", precision, device, work_name(work)), number, all);
        ordered_json row = empty_row(one), spans = ordered_json::array();
        try {
          if (absent.contains(device)) throw ContractError(absent.at(device));
          int64_t peak = 0;
          row = in_child([&] { return measured_row(one); }, &peak);
          row["peak_rss_bytes"] = peak;
          ordered_json seen = seen_in(one, devices.at(device), row);
          row["energy"] = std::move(seen.at("energy"));
          row["modules"] = std::move(seen.at("modules"));
          spans = std::move(seen.at("spans"));
          if (work == Work::kForward) assess(one, row);
        } catch (const ContractError& error) {
          row["refused"] = error.what();
        }
        row["number"] = number;
        add_trace(row, spans, events);
        rows.push_back(std::move(row));
      }
    }
  }
  profile.report["rows"] = std::move(rows);
  profile.trace = {{"traceEvents", std::move(events)}, {"displayTimeUnit", "ms"}};
  return profile;
}

std::string csv_of(const ordered_json& report) {
  std::string text =
      "precision,device,work,refused,mean_ms,p50_ms,p95_ms,std_ms,rows_per_second,tokens_per_second,passes,passes_"
      "asked,cut,"
      "read,bytes_on_disk,bytes_of_weights,peak_bytes,peak_rss_bytes,quality,quality_value,f1,joules,joules_reason,"
      "idle_watts\n";
  for (const auto& row : report.at("rows")) {
    const auto inside = [&](const char* object, const char* key) {
      return row.at(object).is_null() ? "" : cell(row.at(object).at(key));
    };
    std::vector<std::string> cells;
    for (const char* key : {"precision", "device", "work", "refused"}) cells.push_back(cell(row.at(key)));
    for (const char* key : {"mean", "p50", "p95", "std"}) cells.push_back(inside("latency_ms", key));
    for (const char* key : {"rows_per_second", "tokens_per_second", "passes", "passes_asked", "cut"}) {
      cells.push_back(cell(row.at(key)));
    }
    cells.push_back(inside("read", "from"));
    for (const char* key : {"bytes_on_disk", "bytes_of_weights", "peak_bytes", "peak_rss_bytes"})
      cells.push_back(cell(row.at(key)));
    for (const char* key : {"name", "value", "f1"}) cells.push_back(inside("quality", key));
    for (const char* key : {"joules", "reason", "idle_watts"}) cells.push_back(inside("energy", key));
    for (size_t i = 0; i < cells.size(); ++i) text += (i == 0 ? "" : ",") + cells[i];
    text += "\n";
  }
  return text;
}

}  // namespace limbeck::profile
