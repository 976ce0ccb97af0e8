#include "trainer/recipe/spellings.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace limbeck::recipe {
namespace {

struct Plain {
  std::vector<const char*> spelled;
  const char* option;
};

// The same values as the option's own.
const std::vector<Plain>& plain() {
  static const std::vector<Plain> kPlain = {
      {{"model_name", "model_name_or_path"}, "student.model"},
      {{"teacher_model_name_or_path"}, "teacher.model"},
      {{"output_dir"}, "run"},
      {{"adapter_rank", "lora_r", "lora_rank"}, "adapter.rank"},
      {{"lora_alpha"}, "adapter.alpha"},
      {{"lora_dropout"}, "adapter.dropout"},
      {{"use_rslora"}, "adapter.rslora"},
      {{"target_modules", "lora_target_modules"}, "adapter.target"},
      {{"batch_size", "per_device_train_batch_size"}, "data.batch_size"},
      {{"max_length", "max_seq_length", "max_seq_len"}, "data.sequence_length"},
      {{"gradient_accumulation_steps"}, "train.accumulate"},
      {{"gradient_checkpointing"}, "train.checkpoint_activations"},
      {{"safe_mode"}, "train.safe_mode"},
      {{"early_stopping_patience"}, "train.early_stopping_patience"},
      {{"log_steps", "logging_steps"}, "train.log_every"},
      {{"eval_steps"}, "eval.every"},
      {{"save_steps"}, "checkpoint.every"},
      {{"save_total_limit"}, "checkpoint.keep"},
      {{"learning_rate", "lr"}, "optim.learning_rate"},
      {{"weight_decay"}, "optim.weight_decay"},
      {{"adam_beta1"}, "optim.beta1"},
      {{"adam_beta2"}, "optim.beta2"},
      {{"adam_epsilon"}, "optim.epsilon"},
      {{"max_grad_norm", "gradient_clipping"}, "optim.clip"},
      {{"warmup_ratio"}, "optim.warmup"},
      {{"label_smoothing_factor"}, "objective.label_smoothing"},
      {{"resume_from_checkpoint"}, "resume"},
  };
  return kPlain;
}

struct Other {
  const char* option;
  Shorthand shorthand;
};

// Values of another kind.
const std::vector<Other>& others() {
  static const std::vector<Other> kOthers = {
      {"student.dtype", {.name = "use_fp16", .when_on = "float16"}},
      {"student.dtype", {.name = "fp16", .when_on = "float16"}},
      {"student.dtype", {.name = "bf16", .when_on = "bfloat16"}},
      {"student.dtype",
       {.name = "mixed_precision",
        .when_on = "float16",
        .words = {{"fp16", "float16"}, {"bf16", "bfloat16"}, {"no", ""}}}},
      {"student.quantize", {.name = "use_quantization", .when_on = "nf4"}},
      {"student.quantize", {.name = "load_in_4bit", .when_on = "nf4"}},
      {"student.quantize", {.name = "load_in_8bit", .when_on = "int8"}},
      {"adapter.kind", {.name = "use_peft", .when_on = "lora"}},
      {"adapter.kind", {.name = "use_dora", .when_on = "dora"}},
      {"data.packing", {.name = "packing", .words = {{"true", "packed"}, {"false", "padded"}}}},
      {"train.steps", {.name = "num_samples", .unit = "samples"}},
      {"train.steps", {.name = "max_steps", .unit = "steps"}},
      {"train.steps", {.name = "num_train_epochs", .unit = "epochs"}},
      {"optim.warmup", {.name = "warmup_steps", .unit = "steps", .least = 0}},
      {"optim.warmup", {.name = "num_warmup_steps", .unit = "steps", .least = 0}},
      {"optim.schedule",
       {.name = "lr_scheduler_type",
        .words = {{"linear", "linear"},
                  {"cosine", "cosine"},
                  {"constant", "constant"},
                  {"constant_with_warmup", "constant"},
                  {"warmup_stable_decay", "wsd"}}}},
  };
  return kOthers;
}

std::string meaning(const std::string& option, const Shorthand& shorthand) {
  if (!shorthand.unit.empty()) return fmt::format("{} = N {}", option, shorthand.unit);
  std::vector<std::string> values;
  for (const auto& [word, value] : shorthand.words) {
    values.push_back(fmt::format("{} ({})", value.empty() ? "as it is" : value, word));
  }
  return fmt::format("{} = {}", option,
                     values.empty() ? shorthand.when_on : fmt::format("{}", fmt::join(values, ", ")));
}

}  // namespace

void add_spellings(Option& option) {
  for (const Plain& row : plain()) {
    if (option.name == row.option) option.aliases.insert(option.aliases.end(), row.spelled.begin(), row.spelled.end());
  }
  for (const Other& row : others()) {
    if (option.name == row.option) option.shorthands.push_back(row.shorthand);
  }
}

std::vector<NamedKind> spellings() {
  std::vector<NamedKind> rows;
  for (const Plain& row : plain()) {
    for (const char* spelled : row.spelled) rows.push_back({spelled, row.option});
  }
  for (const Other& row : others()) rows.push_back({row.shorthand.name, meaning(row.option, row.shorthand)});
  return rows;
}

}  // namespace limbeck::recipe
