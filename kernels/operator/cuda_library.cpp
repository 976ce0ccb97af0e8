#include "kernels/operator/cuda_library.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <dlfcn.h>

#include <filesystem>
#include <mutex>

namespace limbeck::kernels {
namespace {

constexpr const char* kOperators = "liblimbeck_cuda.so";

std::filesystem::path beside_this_one(const std::string& file) {
  Dl_info info{};
  TORCH_CHECK(dladdr(reinterpret_cast<const void*>(&load_cuda_library), &info) != 0 && info.dli_fname != nullptr,
              "[cuda] cannot find the place of liblimbeck_kernels.so");
  return std::filesystem::absolute(info.dli_fname).parent_path() / file;
}

}  // namespace

bool cuda_library_loaded() {
  static const auto handle = c10::Dispatcher::singleton().findSchemaOrThrow("limbeck::rms_norm_forward", "");
  return handle.hasKernelForDispatchKey(c10::DispatchKey::CUDA);
}

void* open_library_beside(const std::string& file) {
  const std::filesystem::path path = beside_this_one(file);
  TORCH_CHECK(std::filesystem::exists(path), "[cuda] ", path.string(),
              " is missing: this build has no part for CUDA, or not this one; configure with -DLIMBECK_CUDA=ON, or use "
              "device cpu");
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* reason = dlerror();
    TORCH_CHECK(false, "[cuda] cannot load ", path.string(), ": ", reason == nullptr ? "unknown reason" : reason,
                "; install the CUDA build of torch and its nvidia wheels (tools/setup does), or use device cpu");
  }
  return handle;
}

void load_cuda_library() {
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  if (cuda_library_loaded()) return;
  open_library_beside(kOperators);
  TORCH_CHECK(cuda_library_loaded(), "[cuda] ", beside_this_one(kOperators).string(),
              " registered no operators: it belongs to another build");
}

void* cuda_library_symbol(const char* name) {
  if (!cuda_library_loaded()) return nullptr;
  if (void* linked = dlsym(RTLD_DEFAULT, name)) return linked;
  void* handle = dlopen(beside_this_one(kOperators).c_str(), RTLD_NOW | RTLD_NOLOAD);
  return handle == nullptr ? nullptr : dlsym(handle, name);
}

bool cuda_available() {
  try {
    load_cuda_library();
    // Asked of the library itself and not of ATen, which may have stored its answer before the library came.
    using DeviceCount = int (*)();
    void* symbol = cuda_library_symbol("limbeck_cuda_device_count");
    return symbol != nullptr && reinterpret_cast<DeviceCount>(symbol)() > 0;
  } catch (const std::exception&) {
    return false;
  }
}

int cuda_compute_capability(int device) {
  using Capability = int (*)(int);
  void* symbol = cuda_available() ? cuda_library_symbol("limbeck_cuda_compute_capability") : nullptr;
  return symbol == nullptr ? 0 : reinterpret_cast<Capability>(symbol)(device);
}

std::string cuda_bus_place(int device) {
  using Place = bool (*)(int, char*, int);
  void* symbol = cuda_available() ? cuda_library_symbol("limbeck_cuda_bus_place") : nullptr;
  char text[32] = "";
  return symbol != nullptr && reinterpret_cast<Place>(symbol)(device, text, sizeof(text)) ? text : "";
}

}  // namespace limbeck::kernels
