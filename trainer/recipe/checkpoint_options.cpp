#include "trainer/recipe/recipe_options.h"

namespace limbeck::recipe {

void declare_checkpoint_options(OptionTable& table) {
  table.group("Checkpoints and resume");
  table.add(
      {.name = "checkpoint.every",
       .kind = OptionKind::kInteger,
       .fallback = "0",
       .help = "Updates between checkpoints; 0: as often as their measured cost and checkpoint.mtbf make it worth.",
       .range = {0, 1 << 30}});
  table.add({.name = "checkpoint.keep",
             .kind = OptionKind::kInteger,
             .fallback = "2",
             .help = "Good checkpoints that stay in RUN/checkpoints; 0: none are written.",
             .range = {0, 1 << 20}});
  table.add({.name = "checkpoint.async",
             .kind = OptionKind::kSwitch,
             .fallback = "true",
             .help = "Training goes on while a copy of its state is written; false: it waits."});
  table.add({.name = "checkpoint.mtbf",
             .kind = OptionKind::kNumber,
             .fallback = "12",
             .help =
                 "Hours between failures that you expect: with checkpoint.every = 0 the time between checkpoints is "
                 "the root of twice that times the cost of one (Young and Daly).",
             .interval = {.low = 0, .above_low = true}});
  table.add({.name = "checkpoint.overhead",
             .kind = OptionKind::kNumber,
             .fallback = "0.03",
             .help = "With checkpoint.every = 0, the share of training time that checkpoints may take at most.",
             .interval = {.low = 0, .high = 1, .above_low = true}});
  table.add({.name = "checkpoint.max_failures",
             .kind = OptionKind::kInteger,
             .fallback = "5",
             .help = "Checkpoints that may fail in a row before the run is stopped.",
             .range = {1, 1 << 20}});
}

void declare_resume_options(OptionTable& table) {
  table.group("Resume");
  table.add({.name = "resume",
             .fallback = "auto",
             .help = "auto: go on from the newest good checkpoint of --run, if there is one; never: a new run; or the "
                     "folder of a checkpoint.",
             .value_name = "auto|never|DIR",
             .flag_only = true});
  table.add({.name = "resume.allow",
             .kind = OptionKind::kList,
             .help =
                 "A recipe key that may differ from the checkpoint's; may be repeated. data.train also allows other "
                 "data under the same name.",
             .value_name = "KEY",
             .flag_only = true});
  table.add({.name = "resume.strict",
             .kind = OptionKind::kSwitch,
             .fallback = "false",
             .help = "A damaged newest checkpoint is an error, instead of going on from the one before it.",
             .flag_only = true});
  table.add({.name = "verify-resume",
             .kind = OptionKind::kInteger,
             .fallback = "0",
             .help = "Train so many updates, go back to a checkpoint, train them again, and compare the bits of every "
                     "tensor; then end.",
             .range = {0, 1 << 20},
             .flag_only = true});
}

}  // namespace limbeck::recipe
