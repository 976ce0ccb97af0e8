#include "trainer/recipe/recipe_options.h"

namespace limbeck::recipe {

void declare_data_options(OptionTable& table) {
  table.group("Data");
  table.add({.name = "data.batch_size",
             .kind = OptionKind::kInteger,
             .fallback = "8",
             .help = "Sequences in one forward on one rank.",
             .range = {1, 1 << 20}});
  table.add({.name = "data.sequence_length",
             .kind = OptionKind::kInteger,
             .fallback = "512",
             .help = "Tokens a sequence.",
             .range = {1, 1 << 24}});
}

}  // namespace limbeck::recipe
