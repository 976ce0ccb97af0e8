// A plug-in as a user writes one: registers an entry of its own kind of product under "objectives".
#include <functional>

#include "trainer/plugin.h"

LIMBECK_PLUGIN(host) {
  using Loss = std::function<double(double, double)>;
  host.registries.of<Loss>("objectives")
      .add("absolute_error", "mean absolute difference",
           [](double got, double wanted) { return got < wanted ? wanted - got : got - wanted; });
}
