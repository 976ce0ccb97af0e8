#include "trainer/energy/nvml_library.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <utility>

namespace limbeck::energy {
namespace {

// As nvml.h has them, which keeps its binary interface for good.
using NvmlDevice = void*;
constexpr int kNvmlDone = 0;
constexpr int kNvmlTemperatureGpu = 0;
constexpr double kNvmlUpdate = 0.1;  // of the slowest drivers
constexpr double kMostOfGpu = 10'000.0;

}  // namespace

struct NvmlLibrary::Functions {
  int (*init)() = nullptr;
  int (*shutdown)() = nullptr;
  const char* (*error_text)(int) = nullptr;
  int (*handle_by_bus)(const char*, NvmlDevice*) = nullptr;
  int (*total_energy)(NvmlDevice, unsigned long long*) = nullptr;  // millijoules since the driver was loaded
  int (*temperature)(NvmlDevice, int, unsigned*) = nullptr;
};

class NvmlMeter : public EnergyMeter {
 public:
  NvmlMeter(std::shared_ptr<NvmlLibrary> library, NvmlDevice handle, std::string device, const std::string& bus)
      : library_(std::move(library)),
        handle_(handle),
        device_(std::move(device)),
        name_(fmt::format("NVML total energy of {} at {}", device_, bus)) {}

  const std::string& name() const override { return name_; }
  const std::string& device() const override { return device_; }
  Reading read() override {
    unsigned long long millijoules = 0;
    const int code = library_->functions_->total_energy(handle_, &millijoules);
    if (code != kNvmlDone) return {0, fmt::format("{} cannot be read ({})", name_, library_->words(code))};
    return {static_cast<uint64_t>(millijoules) * 1000, ""};
  }
  uint64_t range() const override { return 0; }
  double update_seconds() const override { return kNvmlUpdate; }
  double most_watts() const override { return kMostOfGpu; }

 private:
  std::shared_ptr<NvmlLibrary> library_;
  NvmlDevice handle_;
  std::string device_, name_;
};

NvmlLibrary::NvmlLibrary(void* handle, std::unique_ptr<Functions> functions)
    : handle_(handle), functions_(std::move(functions)) {}

NvmlLibrary::~NvmlLibrary() {
  functions_->shutdown();
  dlclose(handle_);
}

std::string NvmlLibrary::words(int code) const {
  return fmt::format("{}, code {}", functions_->error_text(code), code);
}

std::shared_ptr<NvmlLibrary> NvmlLibrary::open(const std::filesystem::path& file, std::string& fault) {
  fault.clear();
  void* handle = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* reason = dlerror();
    fault = fmt::format("NVML cannot be loaded: {}", reason == nullptr ? file.string() : reason);
    return nullptr;
  }
  auto functions = std::make_unique<Functions>();
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(handle, name));
    if (function == nullptr && fault.empty()) fault = fmt::format("{} has no {}", file.string(), name);
  };
  find(functions->init, "nvmlInit_v2");
  find(functions->shutdown, "nvmlShutdown");
  find(functions->error_text, "nvmlErrorString");
  find(functions->handle_by_bus, "nvmlDeviceGetHandleByPciBusId_v2");
  find(functions->total_energy, "nvmlDeviceGetTotalEnergyConsumption");
  find(functions->temperature, "nvmlDeviceGetTemperature");
  const int code = fault.empty() ? functions->init() : kNvmlDone;
  if (code != kNvmlDone) fault = fmt::format("NVML cannot begin ({}, code {})", functions->error_text(code), code);
  if (!fault.empty()) {
    dlclose(handle);
    return nullptr;
  }
  return std::shared_ptr<NvmlLibrary>(new NvmlLibrary(handle, std::move(functions)));
}

DeviceMeters NvmlLibrary::meters(const std::string& bus, const std::string& device) {
  NvmlDevice handle = nullptr;
  int code = functions_->handle_by_bus(bus.c_str(), &handle);
  if (code != kNvmlDone) return {device, {}, fmt::format("NVML knows no GPU at {} ({})", bus, words(code))};
  auto meter = std::make_shared<NvmlMeter>(shared_from_this(), handle, device, bus);
  const Reading first = meter->read();  // GPUs older than Volta have no such counter
  if (!first.fault.empty()) return {device, {}, first.fault};
  return {device, {std::move(meter)}, ""};
}

std::optional<double> NvmlLibrary::celsius(const std::string& bus) {
  NvmlDevice handle = nullptr;
  unsigned degrees = 0;
  if (functions_->handle_by_bus(bus.c_str(), &handle) != kNvmlDone) return std::nullopt;
  if (functions_->temperature(handle, kNvmlTemperatureGpu, &degrees) != kNvmlDone) return std::nullopt;
  return degrees;
}

}  // namespace limbeck::energy
