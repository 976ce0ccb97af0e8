#include "modules/text/growth.h"

#include <fmt/format.h>

#include "modules/errors.h"

namespace limbeck::text {

void refuse_growth(const std::string& where, size_t most) {
  throw WeightsError(
      fmt::format("{}: makes more than {} bytes of a text, wanted steps that do not multiply it: take a tokenizer.json "
                  "from its author",
                  where, most));
}

}  // namespace limbeck::text
