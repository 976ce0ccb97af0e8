#include "trainer/plugin/plugin_loader.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <cstdlib>
#include <exception>
#include <filesystem>
#include <iostream>

#include "modules/errors.h"
#include "trainer/plugin/plugin.h"
#include "trainer/recipe/message.h"

namespace limbeck::plugin {

namespace {

std::string loading_plugin;  // the plug-in whose initialisers run

// Nothing can be caught that leaves an initialiser: the exception would have to pass through the dynamic loader.
[[noreturn]] void name_the_plugin() {
  std::string what = "what is no std::exception";
  try {
    if (const std::exception_ptr thrown = std::current_exception()) std::rethrow_exception(thrown);
  } catch (const std::exception& error) {
    what = error.what();
  } catch (...) {
  }
  std::cerr << "limbeck: " << loading_plugin << ": cannot load it: its initialisers threw " << what << std::endl;
  std::_Exit(static_cast<int>(ExitCode::kUsage));
}

void* open_library(const std::filesystem::path& file, const std::string& name) {
  loading_plugin = name;
  const std::terminate_handler before = std::set_terminate(name_the_plugin);
  void* library = ::dlopen(file.c_str(), RTLD_NOW | RTLD_GLOBAL);
  std::set_terminate(before);
  return library;
}

}  // namespace

void load_plugin(const std::string& path, Registries& registries) {
  const std::string name = "--plugin=" + recipe::shown(path);
  if (path.empty())
    throw UsageError(name + ": names no file, wanted a shared library built against trainer/plugin/plugin.h");
  // Absolute: dlopen looks a bare name up in the system's folders, and LIB.so means the one that lies here.
  const std::filesystem::path file = std::filesystem::absolute(path);
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(file, ignored)) {
    throw UsageError(
        fmt::format("{}: no such file, wanted a shared library built against trainer/plugin/plugin.h", name));
  }
  void* library = open_library(file, name);
  if (!library) throw UsageError(fmt::format("{}: cannot load it: {}", name, ::dlerror()));

  const auto* interface = static_cast<const int*>(::dlsym(library, "limbeck_plugin_interface"));
  using Register = void (*)(PluginHost&);
  const auto register_plugin = reinterpret_cast<Register>(::dlsym(library, "limbeck_register_plugin"));
  if (!interface || !register_plugin) {
    throw UsageError(
        fmt::format("{}: is no limbeck plug-in: it lacks limbeck_register_plugin; write it with LIMBECK_PLUGIN "
                    "(trainer/plugin/plugin.h)",
                    name));
  }
  if (*interface != kPluginInterface) {
    throw UsageError(fmt::format("{}: built for plug-in interface {}, this limbeck has {}; rebuild it", name,
                                 *interface, kPluginInterface));
  }
  PluginHost host{registries};
  try {
    register_plugin(host);
  } catch (const Error&) {  // of the registry, which names what is wrong
    throw;
  } catch (const std::exception& error) {
    throw UsageError(fmt::format("{}: its LIMBECK_PLUGIN failed: {}", name, error.what()));
  } catch (...) {
    throw UsageError(fmt::format("{}: its LIMBECK_PLUGIN threw what is no std::exception", name));
  }
}

}  // namespace limbeck::plugin
