// What of NVIDIA's management library energy/nvml_library.cpp asks, for machines without a GPU: two GPUs whose counters
// are files, DIR/0 and DIR/1 of LIMBECK_STAND_IN_NVML, in millijoules; every reading is noted in DIR/readings.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>

namespace {

std::string folder() {
  const char* named = std::getenv("LIMBECK_STAND_IN_NVML");
  return named == nullptr ? "" : named;
}

constexpr int kDone = 0, kNotFound = 6, kNotSupported = 3;
int gpus[2] = {0, 1};

}  // namespace

extern "C" {

__attribute__((visibility("default"))) int nvmlInit_v2() { return folder().empty() ? kNotFound : kDone; }
__attribute__((visibility("default"))) int nvmlShutdown() { return kDone; }
__attribute__((visibility("default"))) const char* nvmlErrorString(int code) {
  return code == kNotSupported ? "Not Supported" : "Not Found";
}
__attribute__((visibility("default"))) int nvmlDeviceGetHandleByPciBusId_v2(const char* bus, void** device) {
  for (int& gpu : gpus) {
    char own[32];
    std::snprintf(own, sizeof(own), "0000:%02x:00.0", static_cast<unsigned>(gpu) + 1);
    if (std::strcmp(bus, own) != 0) continue;
    *device = &gpu;
    return kDone;
  }
  return kNotFound;
}
__attribute__((visibility("default"))) int nvmlDeviceGetTotalEnergyConsumption(void* device,
                                                                               unsigned long long* energy) {
  const std::string number = std::to_string(*static_cast<int*>(device));
  std::ofstream(folder() + "/readings", std::ios::app) << number << "\n";
  std::ifstream file(folder() + "/" + number);
  return file >> *energy ? kDone : kNotSupported;
}
__attribute__((visibility("default"))) int nvmlDeviceGetTemperature(void* device, int /*sensor*/, unsigned* degrees) {
  *degrees = 40 + static_cast<unsigned>(*static_cast<int*>(device));
  return kDone;
}
}
