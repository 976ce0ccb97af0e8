#include "trainer/recipe/recipe_options.h"

namespace limbeck::recipe {
namespace {

void add_number(OptionTable& table, const std::string& name, const std::string& fallback, const Interval& interval,
                const std::string& help) {
  table.add(
      {.name = "optim." + name, .kind = OptionKind::kNumber, .fallback = fallback, .help = help, .interval = interval});
}

void declare_update(OptionTable& table) {
  add_number(table, "learning_rate", "3e-4", {0, 1e3}, "Of the student, at the schedule's height.");
  add_number(table, "projector_factor", "5", {0, 1e6}, "The projectors' learning rate over the student's.");
  add_number(table, "router_learning_rate", "1e-4", {0, 1e3}, "Of the routers of a mixture of experts.");
  add_number(table, "weight_decay", "0.01", {0, 1e3}, "Decoupled; norms and biases do not decay.");
  add_number(table, "beta1", "0.9", {0, 1}, "Share of the first moment that an update keeps.");
  add_number(table, "beta2", "0.999", {0, 1}, "Share of the second moment that an update keeps.");
  add_number(table, "epsilon", "1e-8", {.low = 0, .high = 1, .above_low = true}, "Added to the root, in float32.");
  add_number(table, "clip", "1.0", {0, 1e9}, "Greatest global norm of the gradient; 0: no clipping.");
  add_number(table, "ema", "0", {0, 1}, "Share that the average of the weights keeps at each update; 0: no average.");
}

void declare_schedule(OptionTable& table) {
  table.add({.name = "optim.schedule",
             .kind = OptionKind::kChoice,
             .fallback = "cosine",
             .help = "Course of the learning rates after the warmup; wsd: constant, then a linear fall at the end.",
             .words = {"constant", "linear", "cosine", "wsd"}});
  table.add({.name = "optim.warmup",
             .kind = OptionKind::kCount,
             .fallback = "0 steps",
             .help = "Updates in which the learning rates rise to their height, or their share of all: `3 %` or 0.03.",
             .units = {CountUnit::kSteps, CountUnit::kPercent}});
  add_number(table, "final_factor", "0", {0, 1}, "What is left of the learning rates at the end.");
  add_number(table, "wsd_decay", "0.1", {0, 1}, "Share of the updates in which wsd falls.");
}

void declare_loss_scale(OptionTable& table) {
  const Interval scales = {.low = 0, .high = 1e30, .above_low = true};
  add_number(table, "loss_scale_start", "65536", scales, "First loss scale where float16 weights are trained.");
  table.add({.name = "optim.loss_scale_growth_interval",
             .kind = OptionKind::kInteger,
             .fallback = "2000",
             .help = "Good updates in a row after which the loss scale doubles.",
             .range = {1, 1 << 30}});
  add_number(table, "loss_scale_floor", "1.0", scales, "The loss scale never falls below.");
  table.add({.name = "optim.max_skipped",
             .kind = OptionKind::kInteger,
             .fallback = "10",
             .help = "Updates skipped in a row, for gradients that are not finite, at which the run stops.",
             .range = {1, 1 << 30}});
}

}  // namespace

void declare_optimizer_options(OptionTable& table) {
  table.group("Optimizer");
  declare_update(table);
  declare_schedule(table);
  declare_loss_scale(table);
}

}  // namespace limbeck::recipe
