#include "trainer/recipe/recipe_options.h"
#include "trainer/recipe/term_weights.h"

namespace limbeck::recipe {
namespace {

void share(OptionTable& table, const std::string& name, const std::string& fallback, const std::string& help) {
  table.add({.name = "objective." + name,
             .kind = OptionKind::kNumber,
             .fallback = fallback,
             .help = help,
             .interval = {.low = 0, .high = 1}});
}

void declare_teacher(OptionTable& table) {
  table.add(
      {.name = "teacher.kind",
       .kind = OptionKind::kChoice,
       .fallback = "model",
       .help =
           "model: teacher.model; self: the student as it starts, frozen; ema: a moving average of the student; none: "
           "the student alone, whatever teacher.model says.",
       .words = {"model", "self", "ema", "none"}});
  share(table, "ema_decay", "0.9999", "Of teacher.kind = ema: share of the old average kept at each update.");
}

void declare_divergence(OptionTable& table) {
  table.add({.name = "objective.divergence",
             .fallback = "forward_kl",
             .help = "What compares student and teacher, token by token; 'limbeck list objectives' shows them all.",
             .value_name = "NAME"});
  share(table, "beta", "0.5", "Of jsd: the teacher's share of the mixture and of the sum.");
  share(table, "skew", "0.1",
        "Of skew_forward_kl and skew_reverse_kl: share of the first distribution in the mixture.");
  table.add({.name = "objective.top_k",
             .kind = OptionKind::kInteger,
             .fallback = "256",
             .help = "Of topk_union: likeliest ids taken from each model.",
             .range = {1, 1 << 24}});
  table.add({.name = "objective.temperature",
             .kind = OptionKind::kNumber,
             .help = "Divides the logits of the divergence, which is multiplied by its square. Default 1; with the "
                     "curriculum s2 from 2 to 1.5.",
             .interval = {.low = 0, .high = 1000, .above_low = true}});
  table.add({.name = "objective.temperature_end",
             .kind = OptionKind::kNumber,
             .help = "Temperature at the last step, in a straight line; not set: it stays.",
             .interval = {.low = 0, .high = 1000, .above_low = true}});
  table.add({.name = "objective.clamp",
             .kind = OptionKind::kNumber,
             .fallback = "0",
             .help = "Clamps the divergence's logits (over T) to plus and minus this; 0: no clamp.",
             .interval = {.low = 0, .high = 1e6}});
  table.add({.name = "objective.vocabulary_parallel",
             .kind = OptionKind::kSwitch,
             .fallback = "false",
             .help =
                 "Divides the vocabulary of the language-model heads among the ranks: each computes its slice of the "
                 "logits for the tokens of all. Without effect with one rank."});
  table.add({.name = "objective.alignment",
             .kind = OptionKind::kChoice,
             .fallback = "offsets",
             .help = "Two tokenizers: tokens that end at the same character, or linear interpolation over time.",
             .words = {"offsets", "interpolate"}});
  table.add({.name = "objective.dskd_mask",
             .kind = OptionKind::kChoice,
             .fallback = "none",
             .help = "Of dskd, right: its KD counts only tokens that the projected teacher predicts rightly.",
             .words = {"none", "right"}});
}

void declare_smoothing(OptionTable& table) {
  table.add({.name = "objective.label_smoothing",
             .kind = OptionKind::kNumber,
             .fallback = "0",
             .help = "Of the cross-entropy: probability spread over all ids.",
             .interval = {.low = 0, .high = 0.99}});
}

void declare_weights(OptionTable& table) {
  for (const TermRow& row : kTermRows) {
    table.add({.name = std::string("objective.") + row.key,
               .kind = OptionKind::kNumber,
               .fallback = row.fallback,
               .help = row.help,
               .interval = {.low = 0, .high = row.most}});
    if (row.kind == TermKind::kCe) declare_smoothing(table);  // beside what it is of
  }
  table.add({.name = "objective.equivalence_loss",
             .kind = OptionKind::kChoice,
             .fallback = "direct",
             .help = "Mean squared difference of each token's states: as they are, of unit size, or over the teacher's "
                     "mean magnitude.",
             .words = {"direct", "normalised", "relative"}});
  table.add({.name = "objective.equivalence_guided",
             .kind = OptionKind::kSwitch,
             .fallback = "false",
             .help = "Each layer starts from the teacher's state instead of the adapted one of the layer before."});
  table.add({.name = "objective.regularization",
             .kind = OptionKind::kNumber,
             .fallback = "0.01",
             .help = "Weight of what an adapter does at all, within equivalence_weight.",
             .interval = {.low = 0, .high = 1e6}});
  table.add({.name = "objective.hidden_loss",
             .kind = OptionKind::kChoice,
             .fallback = "mse",
             .help = "Distance of hidden states (feature, layer and mixer terms).",
             .words = {"mse", "cosine"}});
  table.add({.name = "objective.hidden_projector",
             .kind = OptionKind::kChoice,
             .fallback = "linear",
             .help = "From the student's width to the teacher's; mlp: two layers, GELU, LayerNorm; none: equal widths.",
             .words = {"linear", "mlp", "none"}});
  table.add({.name = "objective.layer_map",
             .kind = OptionKind::kText,
             .fallback = "auto",
             .help = "Pairs of the layer term as \"STUDENT:TEACHER ...\", counted in layers passed; auto: s to "
                     "floor(s * teacher layers / student layers).",
             .value_name = "\"S:T ...\""});
  table.add({.name = "objective.contrastive_temperature",
             .kind = OptionKind::kNumber,
             .fallback = "0.07",
             .help = "Of InfoNCE.",
             .interval = {.low = 0, .high = 100, .above_low = true}});
  table.add({.name = "projector.supervision",
             .kind = OptionKind::kChoice,
             .fallback = "ce",
             .help =
                 "Of the logit projector. ce: it learns from the labels, detached in the divergence; none: from the "
                 "divergence alone, which it can lower by moving toward the student.",
             .words = {"ce", "none"}});
}

void declare_curriculum(OptionTable& table) {
  table.add({.name = "objective.curriculum",
             .kind = OptionKind::kChoice,
             .fallback = "none",
             .help = "s2: weights follow the progress of the run, as the curriculum_ keys say.",
             .words = {"none", "s2"}});
  share(table, "curriculum_kd_start", "0.1", "Weight of kd at the start.");
  share(table, "curriculum_kd_until", "0.2", "Progress at which kd has reached alpha.");
  share(table, "curriculum_feature_from", "0.1", "Progress at which feature and attention terms come in.");
  share(table, "curriculum_feature_until", "0.4", "Progress at which they have their whole weight.");
  share(table, "curriculum_layer_from", "0.4", "Progress at which the layer term comes in.");
  share(table, "curriculum_layer_until", "0.7", "Progress at which it has its whole weight.");
  share(table, "curriculum_contrastive_from", "0.7", "Progress at which the contrastive term comes in.");
  share(table, "curriculum_contrastive_until", "1", "Progress at which it has its whole weight.");
}

}  // namespace

void declare_objective_options(OptionTable& table) {
  table.group("Objective");
  declare_teacher(table);
  declare_divergence(table);
  declare_weights(table);
  declare_curriculum(table);
}

}  // namespace limbeck::recipe
