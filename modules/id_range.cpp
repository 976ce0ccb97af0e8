#include "modules/id_range.h"

namespace limbeck {

std::string ids_below(int64_t count) {
  if (count <= 0) return "none";
  return count == 1 ? "0" : "0 to " + std::to_string(count - 1);
}

}  // namespace limbeck
