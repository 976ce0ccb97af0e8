#include "modules/adapters/adapter_config.h"
#include "trainer/recipe/recipe_options.h"

namespace limbeck::recipe {

void declare_adapter_options(OptionTable& table) {
  table.group("Adapter");
  table.add({.name = "adapter.kind",
             .kind = OptionKind::kChoice,
             .fallback = "none",
             .help = "Trains an adapter on the student, whose own weights stay as they are; none: the student itself.",
             .words = none_or(adapters::adapter_kinds())});
  table.add({.name = "adapter.from",
             .kind = OptionKind::kPath,
             .help = "PEFT folder of the adapter to start from; what it says replaces kind, rank, alpha and target, "
                     "and dropout where "
                     "adapter.dropout is not set.",
             .value_name = "DIR"});
  table.add({.name = "adapter.rank",
             .kind = OptionKind::kInteger,
             .fallback = "16",
             .help = "Of LoRA, DoRA and NPT.",
             .range = {1, 1 << 16}});
  table.add({.name = "adapter.alpha",
             .kind = OptionKind::kNumber,
             .fallback = "32",
             .help = "The change is scaled by alpha / rank.",
             .interval = {.low = -1e9, .high = 1e9}});
  table.add({.name = "adapter.dropout",
             .kind = OptionKind::kNumber,
             .fallback = "0",
             .help = "Of what LoRA and DoRA read on linear modules, in training: the share that becomes zero.",
             .interval = {.low = 0, .high = 1, .below_high = true}});
  table.add({.name = "adapter.rslora",
             .kind = OptionKind::kSwitch,
             .fallback = "false",
             .help = "Scales by alpha / sqrt(rank)."});
  table.add(
      {.name = "adapter.npt",
       .kind = OptionKind::kChoice,
       .fallback = "delta",
       .help = "NPT: attention moves and scales the MLP's gate (delta), or changes its weight for each token (outer).",
       .words = {"delta", "outer"}});
  table.add({.name = "adapter.modulation",
             .kind = OptionKind::kChoice,
             .fallback = "both",
             .help = "Of NPT's delta; train.safe_mode: additive.",
             .words = {"both", "additive", "multiplicative"}});
  table.add({.name = "adapter.modulation_curve",
             .kind = OptionKind::kChoice,
             .fallback = "neutral",
             .help = "Of the factor: 0.5 + sigmoid, which starts at 1, or 0.5 + 0.5 sigmoid, which starts at 0.75.",
             .words = {"neutral", "legacy"}});
  table.add({.name = "adapter.scale",
             .kind = OptionKind::kNumber,
             .fallback = "0.1",
             .help = "Of what NPT adds to the gate; kinds of a plug-in may use it as well.",
             .interval = {.low = 0, .high = 1e9, .above_low = true}});
  table.add(
      {.name = "adapter.target",
       .kind = OptionKind::kList,
       .help =
           "A module to adapt, as PEFT names it: q_proj, layers.0.self_attn.v_proj, or a regular expression; for lora "
           "embed_tokens and experts.down_proj too. May be repeated. Default: every linear module of the layers but "
           "routers; for ia3 keys, values and "
           "the MLP's last.",
       .value_name = "MODULE"});
  table.add(
      {.name = "adapter.rank_pattern",
       .kind = OptionKind::kList,
       .help = "Another rank for some modules, such as \"down_proj 8\". May be repeated; the first that matches wins.",
       .value_name = "\"MODULE RANK\""});
  table.add({.name = "adapter.alpha_pattern",
             .kind = OptionKind::kList,
             .help = "Another alpha for some modules, such as \"layers.0.self_attn.v_proj 64\".",
             .value_name = "\"MODULE ALPHA\""});
}

}  // namespace limbeck::recipe
