#include "trainer/session/graph_places.h"

#include <algorithm>
#include <tuple>

namespace limbeck::session {

std::optional<GraphPlaces::Found> GraphPlaces::find(const std::string& kind) {
  ++came_;
  const auto known = std::find_if(kinds_.begin(), kinds_.end(), [&](const Kind& one) { return one.name == kind; });
  if (known != kinds_.end()) {
    known->last_came = came_;
    return Found{static_cast<size_t>(known - kinds_.begin()), false};
  }
  if (kinds_.size() < kMost) {
    kinds_.push_back({kind, came_, false});
    return Found{kinds_.size() - 1, true};
  }
  const auto oldest = std::min_element(kinds_.begin(), kinds_.end(), [](const Kind& a, const Kind& b) {
    return std::tie(a.has_graph, a.last_came) < std::tie(b.has_graph, b.last_came);
  });
  if (oldest->has_graph && came_ - oldest->last_came < kLong) {
    ++without_place_;
    return std::nullopt;
  }
  *oldest = {kind, came_, false};
  return Found{static_cast<size_t>(oldest - kinds_.begin()), true};
}

}  // namespace limbeck::session
