#include "trainer/cli/plugin_loader.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <filesystem>

#include "modules/errors.h"
#include "trainer/plugin.h"
#include "trainer/recipe/message.h"

namespace limbeck::cli {

void load_plugin(const std::string& path, Registries& registries) {
  const std::string name = "--plugin=" + recipe::shown(path);
  // Absolute: dlopen looks a bare name up in the system's folders, and LIB.so means the one that lies here.
  const std::filesystem::path file = std::filesystem::absolute(path);
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(file, ignored)) {
    throw UsageError(fmt::format("{}: no such file, wanted a shared library built against trainer/plugin.h", name));
  }
  void* library = ::dlopen(file.c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (!library) throw UsageError(fmt::format("{}: cannot load it: {}", name, ::dlerror()));

  const auto* interface = static_cast<const int*>(::dlsym(library, "limbeck_plugin_interface"));
  using Register = void (*)(PluginHost&);
  const auto register_plugin = reinterpret_cast<Register>(::dlsym(library, "limbeck_register_plugin"));
  if (!interface || !register_plugin) {
    throw UsageError(
        fmt::format("{}: is no limbeck plug-in: it lacks limbeck_register_plugin; write it with LIMBECK_PLUGIN "
                    "(trainer/plugin.h)",
                    name));
  }
  if (*interface != kPluginInterface) {
    throw UsageError(fmt::format("{}: built for plug-in interface {}, this limbeck has {}; rebuild it", name,
                                 *interface, kPluginInterface));
  }
  PluginHost host{registries};
  register_plugin(host);
}

}  // namespace limbeck::cli
