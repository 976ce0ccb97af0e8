#include "trainer/recipe/recipe_options.h"

#include "modules/quantization/quantized_formats.h"

namespace limbeck::recipe {
namespace {

const std::vector<std::string> kModelDtypes = {"auto", "float32", "bfloat16", "float16"};

void declare_model(OptionTable& table, const std::string& role) {
  table.add({.name = role + ".model",
             .kind = OptionKind::kPath,
             .help = "Hugging Face folder of the " + role +
                     ", or ORG/NAME[@REVISION] in the local cache: config.json, safetensors.",
             .value_name = "DIR",
             .on_hub = true});
  table.add({.name = role + ".dtype",
             .kind = OptionKind::kDtype,
             .fallback = "auto",
             .help = "Storage dtype of its weights; auto: the one config.json names.",
             .words = kModelDtypes});
  table.add(
      {.name = role + ".quantize",
       .kind = OptionKind::kChoice,
       .fallback = "none",
       .help = "Its linear weights of attention and MLP and its experts in 8 to 2 bits, frozen then: none, or a format "
               "of 'limbeck list quantizers'.",
       .words = none_or(quantization::quantized_formats()),
       .value_name = "FORMAT"});
  table.add(bk_activations_option(role + ".bk_activations"));
  table.add({.name = role + ".device",
             .kind = OptionKind::kDevice,
             .fallback = "auto",
             .help = "Where it lives; auto: where --device says.",
             .words = {"auto"}});
  std::vector<std::string> words = {"weights", "random"};
  std::string more = ".";
  if (role == "student") {
    words.emplace_back("new_head");
    more = "; new_head: its folder's encoder under a classifier's head from that seed.";
  }
  table.add(
      {.name = role + ".init",
       .kind = OptionKind::kChoice,
       .fallback = "weights",
       .help = "weights: those of its folder; random: a fresh model of its config.json, from the run's seed" + more,
       .words = words});
}

}  // namespace

Option bk_activations_option(const std::string& name) {
  return {.name = name,
          .kind = OptionKind::kChoice,
          .fallback = "auto",
          .help =
              "What a ResNet-BK's resolvents take and give: float, or int8: as 8-bit codes, a scale a token, or where "
              "bk_heads is 1 by the bounds that bk_clamp and 1/bk_z set; auto: as config.json says.",
          .words = {"auto", "float", "int8"}};
}

std::vector<std::string> none_or(const std::vector<NamedKind>& kinds) {
  std::vector<std::string> words = {"none"};
  for (const NamedKind& kind : kinds) words.push_back(kind.name);
  return words;
}

void declare_run_options(OptionTable& table) {
  table.group("Run");
  table.add({.name = "seed",
             .kind = OptionKind::kInteger,
             .fallback = "0",
             .help = "Seed of every random number.",
             .range = {.low = 0}});
  table.add({.name = "run",
             .kind = OptionKind::kPath,
             .help = "Folder of the run: recipe.ini, contract.json, metrics.jsonl, best/ and final/ models.",
             .value_name = "DIR",
             .writes = Writes::kFolder});
}

void declare_model_options(OptionTable& table) {
  table.group("Teacher and student");
  declare_model(table, "teacher");
  declare_model(table, "student");
  table.add({.name = "student.train_codes",
             .kind = OptionKind::kSwitch,
             .fallback = "false",
             .help = "Train what student.quantize and precision.rule store in few bits: floats that every forward sees "
                     "as their codes, gradients straight through; what is saved are the codes."});
  table.group("Projector");
  table.add({.name = "projector.kind",
             .kind = OptionKind::kChoice,
             .fallback = "none",
             .help = "logit: a linear map of the teacher's logits onto the student's vocabulary.",
             .words = {"none", "logit"}});
  table.add({.name = "projector.dtype",
             .kind = OptionKind::kDtype,
             .fallback = "teacher",
             .help = "Storage dtype; teacher: the dtype of the module it attaches to.",
             .words = {"teacher", "float32"}});
  table.add({.name = "projector.init_std",
             .kind = OptionKind::kNumber,
             .fallback = "0.01",
             .help = "Standard deviation of its first weights.",
             .interval = {.low = 0, .high = 1}});
  table.group("Precision");
  table.add(
      {.name = "precision.rule",
       .kind = OptionKind::kList,
       .help =
           "A module pattern and its dtype, such as \"student.layers.*.mlp.* float16\", or the format that its linear "
           "weights are packed in, such as \"teacher.layers.0.** int8\". May be repeated; the last rule that "
           "matches wins; none drops the rules so far.",
       .value_name = "\"PATTERN DTYPE\""});
}

void declare_pooling_option(OptionTable& table) {
  table.group("Encoders");
  table.add({.name = "model.pooling",
             .kind = OptionKind::kChoice,
             .fallback = "none",
             .help = "One vector a sentence from an encoder: the mean of its tokens, or its first token.",
             .words = {"none", "mean", "cls"}});
}

void declare_generation_options(OptionTable& table) {
  table.group("Generation");
  table.add({.name = "generation.max_new_tokens",
             .kind = OptionKind::kInteger,
             .fallback = "64",
             .help = "Tokens that generation with the student adds at most: what check plans its cache for.",
             .range = {1, 1 << 24}});
  table.add({.name = "generation.temperature",
             .kind = OptionKind::kNumber,
             .fallback = "0",
             .help = "Of the generation that check rehearses: 0: greedy; above: sampled from logits divided by it.",
             .interval = {.low = 0, .high = 100}});
  table.add({.name = "generation.top_k",
             .kind = OptionKind::kInteger,
             .fallback = "0",
             .help = "Of it: sample among the k likeliest tokens; 0: among all.",
             .range = {0, 1 << 24}});
  table.add({.name = "generation.top_p",
             .kind = OptionKind::kNumber,
             .fallback = "1",
             .help = "Of it: sample among the likeliest tokens that hold this share of the probability.",
             .interval = {.low = 0, .high = 1, .above_low = true}});
}

void declare_recipe_options(OptionTable& table) {
  declare_run_options(table);
  declare_model_options(table);
  declare_adapter_options(table);
  declare_pooling_option(table);
  declare_data_options(table);
  declare_objective_options(table);
  declare_optimizer_options(table);
  declare_training_options(table);
  declare_profile_options(table);
  declare_checkpoint_options(table);
  declare_parallel_options(table);
  declare_generation_options(table);
}

}  // namespace limbeck::recipe
