// What limbeck quantize can be told of data, budgets and rounding.
#include "trainer/cli/commands/quantize_measured.h"

namespace limbeck::cli {

using recipe::OptionKind;

void declare_measured(recipe::OptionTable& table) {
  const auto add = [&table](recipe::Option option) {
    option.flag_only = true;
    table.add(std::move(option));
  };
  add({.name = "budget",
       .kind = OptionKind::kText,
       .help =
           "What the model may weigh, everything counted: \"4.5 bits\" a weight, 6x less than float32, \"123456 "
           "bytes\", or how long a forward of it may take, \"3 ms\" by --times; the format of each module, embeddings "
           "and head too, is then what measured scores make best.",
       .value_name = "AMOUNT"});
  add({.name = "times",
       .kind = OptionKind::kPath,
       .help =
           "What a budget of milliseconds goes by: the profile.json of limbeck profile, of the same model in each of "
           "the formats, beside floats of the same dtype (\"int4+bfloat16\").",
       .value_name = "FILE"});
  add({.name = "budgets",
       .kind = OptionKind::kText,
       .help =
           "The curve over several budgets (a number alone is bits a weight), each with the mix that --budget gives "
           "it, measured; nothing is written. tools/report_budgets.py makes a page of its --json.",
       .value_name = "AMOUNT,..."});
  add({.name = "sweep",
       .kind = OptionKind::kPath,
       .help =
           "The sweep.json of limbeck sweep, whose KL of each module alone a budget then goes by, in place of scores "
           "measured here; embeddings and heads that a sweep does not try stay floats.",
       .value_name = "FILE"});
  add({.name = "formats",
       .kind = OptionKind::kText,
       .fallback = "float,int8,int4-g32,int4",
       .help =
           "What a budget chooses from, of itself int3-g32, int3, int2-g32 and int2 too where these do not hold it; "
           "--policy=dynamic takes the first, the second and the last of them.",
       .value_name = "FORMAT,..."});
  add({.name = "high-ratio",
       .kind = OptionKind::kNumber,
       .fallback = "0.2",
       .help = "Of --policy=dynamic: the share of modules, the most important ones, in the first format.",
       .interval = {.low = 0, .high = 1}});
  add({.name = "low-ratio",
       .kind = OptionKind::kNumber,
       .fallback = "0.4",
       .help = "Of --policy=dynamic: the share of modules, the least important ones, in the last format.",
       .interval = {.low = 0, .high = 1}});
  add({.name = "predict-by",
       .kind = OptionKind::kChoice,
       .fallback = "error",
       .help =
           "What predicts the loss of a module in a format, for a budget. error: of its outputs, weighted with squared "
           "gradients; kl: of the whole model to its floats, with that module alone in that format, a forward each; "
           "both: their mean, on one scale.",
       .words = {"error", "kl", "both"}});
  add({.name = "exchange-steps",
       .kind = OptionKind::kInteger,
       .fallback = "16",
       .help = "Of --budget: mixes that are measured as a whole, to improve the one that scores predict.",
       .range = {0, 1 << 20}});
  add({.name = "rounding",
       .kind = OptionKind::kChoice,
       .fallback = "nearest",
       .help =
           "nearest: each weight to its nearest code; compensated: what one column of a matrix loses is made up for "
           "by the columns behind it, by what --data shows of its inputs (GPTQ); learned: from there, layer by layer, "
           "which weights go up or down and what each scale covers, so that the layer gives what the float one does "
           "(SignRound). All in the same stored format.",
       .words = {"nearest", "compensated", "learned"}});
  add({.name = "rounding-steps",
       .kind = OptionKind::kInteger,
       .fallback = "200",
       .help = "Of --rounding=learned: steps a layer, each by 8 calibration rows; twice as many take twice the time.",
       .range = {1, 1 << 20}});
  table.group("Calibration");
  add({.name = "data",
       .kind = OptionKind::kPath,
       .help = "Folder of token shards to measure on, written by tools/prepare_data.py.",
       .value_name = "DIR"});
  add({.name = "calibration-rows",
       .kind = OptionKind::kInteger,
       .fallback = "64",
       .help = "Rows that decide, from the first one on.",
       .range = {1, 1 << 30}});
  add({.name = "held-out-rows",
       .kind = OptionKind::kInteger,
       .fallback = "64",
       .help = "Rows behind them, on which the result is measured.",
       .range = {1, 1 << 30}});
  add({.name = "exchange-rows",
       .kind = OptionKind::kInteger,
       .fallback = "64",
       .help =
           "Rows behind those, by which exchanges are judged: one is kept where drawing them again leaves 95 % of the "
           "paired differences below zero. At most half of what the calibration leaves.",
       .range = {quantize::kLeastPairedRows, 1 << 30}});
  add({.name = "sequence-length",
       .kind = OptionKind::kInteger,
       .fallback = "512",
       .help = "Tokens a row.",
       .range = {2, 1 << 24}});
  add({.name = "packing",
       .kind = OptionKind::kChoice,
       .fallback = "packed",
       .help = "packed: documents end to end, no attention across them; padded: one document a row.",
       .words = {"packed", "padded"}});
  add({.name = "scores",
       .kind = OptionKind::kPath,
       .help = "File of the scores, which is gone on with where it is there; without it, OUTPUT.scores.jsonl.",
       .value_name = "FILE",
       .writes = recipe::Writes::kFile});
}

}  // namespace limbeck::cli
