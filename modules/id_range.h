// Ranges of ids in error messages: what begins at 0 and ends below a count, which is 0 where there are none.
#pragma once
#include <cstdint>
#include <string>

namespace limbeck {

// "0 to 31999", "0" of one, "none" of no id at all: never a range that ends below its begin.
std::string ids_below(int64_t count);

}  // namespace limbeck
