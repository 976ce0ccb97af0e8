// The terms that a loss may have, one row each: its weight's key, what it is where the recipe says nothing, and how the
// curriculum lets it in. The options, the weights and who needs a teacher all follow from the rows.
#pragma once
#include <array>
#include <cstddef>

namespace limbeck::recipe {

enum class TermKind {
  kKd,
  kCe,
  kFeature,
  kLayer,
  kMixer,
  kAttention,
  kContrastive,
  kEmbedding,
  kBalance,
  kExpertMix,
  kProjectorCe,
  kEquivalence,
  kTerms  // their number
};

// Which keys of the curriculum a weight follows: objective.curriculum_NAME_from and _until; of kd _start and _until.
enum class Ramp { kNone, kKd, kFeature, kLayer, kContrastive };

struct TermRow {
  TermKind kind;
  const char* key;            // objective.KEY
  const char* fallback = "";  // as a user would type it; "": the two below, else 0
  double in_curriculum = 0;   // unless the recipe says otherwise
  double headless = 0;        // of a student without a head, unless the recipe says otherwise
  Ramp ramp = Ramp::kNone;    // with a curriculum
  bool of_a_head = false;     // a student without one does not have it, whatever the recipe says
  bool needs_teacher = true;
  double most = 1e6;
  const char* help;
};

inline constexpr std::array<TermRow, static_cast<size_t>(TermKind::kTerms)> kTermRows = {{
    {.kind = TermKind::kKd,
     .key = "alpha",
     .fallback = "0.7",
     .ramp = Ramp::kKd,
     .of_a_head = true,
     .most = 1,
     .help = "Weight of the divergence (kd); the cross-entropy (ce) gets 1 - alpha."},
    {.kind = TermKind::kCe,
     .key = "ce_weight",
     .of_a_head = true,
     .needs_teacher = false,
     .help = "Weight of the cross-entropy, in place of 1 - alpha."},
    {.kind = TermKind::kFeature,
     .key = "feature_weight",
     .in_curriculum = 0.1,
     .ramp = Ramp::kFeature,
     .help = "Weight of the last hidden states' distance. Default 0; 0.1 with the curriculum."},
    {.kind = TermKind::kLayer,
     .key = "layer_weight",
     .in_curriculum = 0.05,
     .ramp = Ramp::kLayer,
     .help = "Weight of the mapped layers' distance. Default 0; 0.05 with the curriculum."},
    {.kind = TermKind::kMixer,
     .key = "mixer_weight",
     .fallback = "0",
     .help = "Weight of the distance between what the layers' token mixers give (attention, or what a family has in "
             "its place), each of the student's beside the teacher's at the same place."},
    {.kind = TermKind::kAttention,
     .key = "attention_weight",
     .in_curriculum = 0.1,
     .ramp = Ramp::kFeature,
     .help = "Weight of attention transfer. Default 0; 0.1 with the curriculum."},
    {.kind = TermKind::kContrastive,
     .key = "contrastive_weight",
     .in_curriculum = 0.05,
     .ramp = Ramp::kContrastive,
     .help = "Weight of InfoNCE on pooled states. Default 0; 0.05 with the curriculum."},
    {.kind = TermKind::kEmbedding,
     .key = "embedding_weight",
     .headless = 1,
     .help = "Weight of 1 - cosine of pooled states. Default 0; 1 for a student without a head (MiniLM)."},
    {.kind = TermKind::kBalance,
     .key = "balance_weight",
     .fallback = "0",
     .needs_teacher = false,
     .help = "Weight of KL(uniform || mean routing) of MoE students and the expert mix; try 0.01."},
    {.kind = TermKind::kExpertMix,
     .key = "expert_mix_weight",
     .fallback = "0",
     .help = "Weight of the expert mix: a router on the student's states learns a MoE teacher's routing."},
    {.kind = TermKind::kProjectorCe,
     .key = "projector_ce_weight",
     .fallback = "1",
     .needs_teacher = false,
     .help = "Weight of the logit projector's own cross-entropy."},
    {.kind = TermKind::kEquivalence,
     .key = "equivalence_weight",
     .fallback = "0",
     .help = "Weight of the distance between the states of every layer with the adapter and without: equivalence "
             "pretraining."},
}};

// A row stands at the place of its kind.
constexpr bool in_order() {
  for (size_t i = 0; i < kTermRows.size(); ++i) {
    if (kTermRows[i].kind != static_cast<TermKind>(i)) return false;
  }
  return true;
}
static_assert(in_order());

}  // namespace limbeck::recipe
