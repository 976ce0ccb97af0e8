// What a plug-in implements: a shared library, built against these headers and linked to nothing that limbeck does not
// link, that registers more objectives when `--plugin LIB.so` loads it. Only objectives are looked up where a run
// chooses them; what is added to another registry appears in `limbeck list` and is used by nothing.
//
//   #include "trainer/plugin.h"
//   LIMBECK_PLUGIN(host) { host.registries.of<Factory>("objectives").add("mine", "what it does", make_mine); }
#pragma once
#include "trainer/registry.h"

namespace limbeck {

// Raised whenever PluginHost, or a type a plug-in can reach through it, changes its layout.
inline constexpr int kPluginInterface = 1;

struct PluginHost {
  Registries& registries;
};

}  // namespace limbeck

#define LIMBECK_PLUGIN(host)                                                 \
  extern "C" const int limbeck_plugin_interface;                             \
  extern "C" const int limbeck_plugin_interface = limbeck::kPluginInterface; \
  extern "C" void limbeck_register_plugin(limbeck::PluginHost& host);        \
  void limbeck_register_plugin([[maybe_unused]] limbeck::PluginHost& host)
