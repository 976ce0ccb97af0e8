#include "trainer/recipe/recipe_options.h"

namespace limbeck::recipe {
namespace {

void declare_masking(OptionTable& table) {
  table.add({.name = "data.masking",
             .kind = OptionKind::kChoice,
             .fallback = "none",
             .help = "What is hidden for a masked language model to fill in: all pieces of a word together, or tokens "
                     "each for itself. Evaluation hides the same ones in every run.",
             .words = {"none", "whole_word", "token"}});
  const auto share = [&](const char* name, const char* fallback, const char* help, bool above) {
    table.add({.name = name,
               .kind = OptionKind::kNumber,
               .fallback = fallback,
               .help = help,
               .interval = {.low = 0, .high = 1, .above_low = above}});
  };
  share("data.mask_fraction", "0.15", "Share of the words (or tokens) that are hidden.", true);
  share("data.mask_replaced", "0.8", "Share of the hidden tokens that become the mask token.", false);
  share("data.mask_random", "0.1", "Share of the hidden tokens that become another token; the rest stays.", false);
}

}  // namespace

void declare_data_options(OptionTable& table) {
  table.group("Data");
  table.add({.name = "data.train",
             .kind = OptionKind::kPath,
             .help = "Folder of token shards to train on, written by tools/prepare_data.py.",
             .value_name = "DIR"});
  table.add({.name = "data.validation",
             .kind = OptionKind::kPath,
             .help = "Folder of token shards to evaluate on.",
             .value_name = "DIR"});
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
  table.add({.name = "data.teacher_sequence_length",
             .kind = OptionKind::kInteger,
             .fallback = "0",
             .help = "The same for a teacher with a tokenizer of its own; 0: as data.sequence_length.",
             .range = {0, 1 << 24}});
  table.add({.name = "data.packing",
             .kind = OptionKind::kChoice,
             .fallback = "packed",
             .help = "packed: documents end to end, no attention across them; padded: one document a sequence.",
             .words = {"packed", "padded"}});
  table.add({.name = "data.long_documents",
             .kind = OptionKind::kChoice,
             .fallback = "truncate",
             .help = "What becomes of a document longer than a padded sequence.",
             .words = {"truncate", "split"}});
  declare_masking(table);
  table.add({.name = "data.shuffle",
             .kind = OptionKind::kSwitch,
             .fallback = "true",
             .help = "A new order in every epoch, given by seed, epoch and place alone."});
  table.add({.name = "data.prefetch",
             .kind = OptionKind::kInteger,
             .fallback = "4",
             .help = "Batches made ahead on a thread of their own; 0: none.",
             .range = {0, 1024}});
  table.add({.name = "data.skip_bad_shards",
             .kind = OptionKind::kSwitch,
             .fallback = "false",
             .help = "Train on without shards that are missing or damaged; each is named."});
}

}  // namespace limbeck::recipe
