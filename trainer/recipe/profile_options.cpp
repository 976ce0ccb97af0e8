#include "trainer/recipe/recipe_options.h"

namespace limbeck::recipe {
namespace {

void declare_amounts(OptionTable& table) {
  const auto amount = [&](const char* name, const char* fallback, IntegerRange range, const char* help) {
    table.add({.name = name, .kind = OptionKind::kInteger, .fallback = fallback, .help = help, .range = range});
  };
  amount("profile.batch", "16", {1, 1 << 20}, "Rows of one pass.");
  amount("profile.length", "128", {1, 1 << 24}, "Tokens a row; of generation, of the prompt.");
  amount("profile.warmup", "50", {0, 1 << 20}, "Passes before the measured ones.");
  amount("profile.measured", "500", {1, 1 << 20}, "Measured passes of a trial.");
  amount("profile.trials", "5", {1, 1 << 10}, "Trials, each with as many passes.");
  amount("profile.new_tokens", "32", {1, 1 << 20}, "Tokens that one pass of generation adds.");
  table.add({.name = "profile.most_seconds",
             .kind = OptionKind::kNumber,
             .fallback = "60",
             .help = "Of one row of the table: each trial ends after its part of it, with one pass at least, and the "
                     "row says how many passes it has; 0: never.",
             .interval = {.low = 0, .high = 1e6}});
}

}  // namespace

void declare_profile_options(OptionTable& table) {
  table.group("Profile");
  table.add({.name = "profile.precisions",
             .fallback = "float32,float16,bfloat16,int8-dynamic,int8,int4,nf4",
             .help = "What the student is stored in, one after the other: dtypes, formats of linear weights (beside "
                     "floats of student.dtype, or of another: int4+bfloat16), and recipe, which is as the recipe says.",
             .value_name = "LIST",
             .aliases = {"precisions"}});
  table.add({.name = "profile.work",
             .fallback = "forward,training,generation",
             .help = "What is timed: the student's forward, whole updates of the recipe, tokens by the cache.",
             .value_name = "LIST",
             .aliases = {"work"}});
  table.add({.name = "profile.devices",
             .fallback = "auto",
             .help = "Where model and data are together: cpu,cuda:0; auto: where the recipe's student is, or the CPU "
                     "and a GPU that is there.",
             .value_name = "LIST",
             .aliases = {"devices"}});
  declare_amounts(table);
  table.add({.name = "profile.energy",
             .kind = OptionKind::kChoice,
             .fallback = "modules",
             .help = "Whose energy is measured where the machine has meters: each row's, by replay each module's of a "
                     "forward too, or none.",
             .words = {"modules", "rows", "off"}});
  table.add({.name = "profile.energy_seconds",
             .kind = OptionKind::kNumber,
             .fallback = "1",
             .help = "Of one window of energy at least; longer where a counter is updated seldom.",
             .interval = {.low = 0.01, .high = 3600}});
  table.add({.name = "profile.energy_spread",
             .kind = OptionKind::kNumber,
             .fallback = "0.02",
             .help = "Windows are repeated, ten times at most, until their standard deviation over their mean is "
                     "under it.",
             .interval = {.low = 0, .high = 1}});
}

}  // namespace limbeck::recipe
