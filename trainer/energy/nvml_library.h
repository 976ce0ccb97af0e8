// NVIDIA's management library, which comes with the driver, by its plain functions: opened when a GPU works, and asked
// of the GPUs that do. Nothing of ours is linked to it.
#pragma once
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "trainer/energy/energy_meter.h"

namespace limbeck::energy {

inline constexpr const char* kNvml = "libnvidia-ml.so.1";

class NvmlLibrary : public std::enable_shared_from_this<NvmlLibrary> {
 public:
  // Null where it cannot be used; `fault` then says why, and is empty otherwise. `file`: a name that the loader looks
  // up, or a path.
  static std::shared_ptr<NvmlLibrary> open(const std::filesystem::path& file, std::string& fault);
  ~NvmlLibrary();
  NvmlLibrary(const NvmlLibrary&) = delete;
  NvmlLibrary& operator=(const NvmlLibrary&) = delete;

  // Of the GPU at this place on the bus ("0000:01:00.0"), as `device`.
  DeviceMeters meters(const std::string& bus, const std::string& device);
  std::optional<double> celsius(const std::string& bus);

 private:
  struct Functions;
  NvmlLibrary(void* handle, std::unique_ptr<Functions> functions);
  std::string words(int code) const;

  void* handle_;
  std::unique_ptr<Functions> functions_;
  friend class NvmlMeter;
};

}  // namespace limbeck::energy
