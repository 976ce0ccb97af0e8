#include "trainer/plugin/plugin.h"
#include "own_kinds.h"

LIMBECK_PLUGIN(host) {
  host.add_family(own::short_conv_family());
  host.add_objective("brier", "squared distance of the probabilities", own::brier());
  host.add_adapter(own::row_gain());
  host.add_adapter(own::bottleneck());
}
