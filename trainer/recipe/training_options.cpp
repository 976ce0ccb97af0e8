#include "trainer/recipe/recipe_options.h"

namespace limbeck::recipe {

void declare_training_options(OptionTable& table) {
  table.group("Training and evaluation");
  table.add({.name = "train.steps",
             .kind = OptionKind::kCount,
             .fallback = "1000 steps",
             .help = "How long to train: `1000 steps` (updates), `20M tokens`, `50k samples` (rows of a batch) or "
                     "`3 epochs`.",
             .units = {CountUnit::kSteps, CountUnit::kTokens, CountUnit::kSamples, CountUnit::kEpochs}});
  table.add({.name = "train.accumulate",
             .kind = OptionKind::kInteger,
             .fallback = "1",
             .help = "Micro-batches (forwards and backwards) of one update.",
             .range = {1, 1 << 20}});
  table.add({.name = "train.checkpoint_activations",
             .kind = OptionKind::kSwitch,
             .fallback = "false",
             .help = "Keep one activation a layer of the student and compute the rest again in the backward."});
  table.add({.name = "train.cuda_graphs",
             .kind = OptionKind::kChoice,
             .fallback = "off",
             .help = "on: forward and backward are recorded once as a CUDA graph and played again, with the same bits; "
                     "one GPU, weights of terms that stay as they are.",
             .words = {"off", "on"}});
  table.add({.name = "train.safe_mode",
             .kind = OptionKind::kSwitch,
             .fallback = "false",
             .help = "For a first run: learning rates of at most 1e-4, gradients clipped at 0.5 at least."});
  table.add(
      {.name = "train.early_stopping_patience",
       .kind = OptionKind::kInteger,
       .fallback = "0",
       .help = "Evaluations in a row that are no better (eval.best) at which the run ends; 0: it goes to its end.",
       .range = {0, 1 << 30}});
  table.add({.name = "train.log_every",
             .kind = OptionKind::kInteger,
             .fallback = "1",
             .help = "Updates between lines of metrics.jsonl.",
             .range = {1, 1 << 30}});
  table.add({.name = "train.progress",
             .kind = OptionKind::kChoice,
             .fallback = "loss",
             .help = "What the line of a running training shows; phases: also the peak of its memory and the times of "
                     "the step's parts.",
             .words = {"loss", "phases"}});
  table.add({.name = "eval.every",
             .kind = OptionKind::kInteger,
             .fallback = "0",
             .help = "Updates between evaluations on data.validation; 0: at the end alone.",
             .range = {0, 1 << 30}});
  table.add({.name = "eval.batches",
             .kind = OptionKind::kInteger,
             .fallback = "0",
             .help = "Batches of one evaluation; 0: all of data.validation.",
             .range = {0, 1 << 30}});
  table.add({.name = "eval.skip",
             .kind = OptionKind::kInteger,
             .fallback = "0",
             .help = "Batches of data.validation before those of an evaluation: rows that have decided something, such "
                     "as which modules limbeck sweep converts, measure nothing afterwards.",
             .range = {0, 1 << 30}});
  table.add({.name = "eval.best",
             .kind = OptionKind::kChoice,
             .fallback = "auto",
             .help = "What makes an evaluation the best so far; auto: perplexity of a language model, accuracy of a "
                     "classifier, cosine of an encoder.",
             .words = {"auto", "loss"}});
}

}  // namespace limbeck::recipe
