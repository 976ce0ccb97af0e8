#include "trainer/recipe/settings.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <stdexcept>

#include "tests/support/temporary_folder.h"
#include "tests/trainer/message_of.h"
#include "trainer/recipe/recipe_options.h"
#include "trainer/recipe/spellings.h"

namespace limbeck::recipe {
namespace {

using test::message_of;

OptionTable table() {
  OptionTable out;
  declare_recipe_options(out);
  out.group("For the test");
  out.add({.name = "train.length",
           .kind = OptionKind::kCount,
           .fallback = "1 epoch",
           .help = "x",
           .units = {CountUnit::kSteps, CountUnit::kTokens, CountUnit::kEpochs},
           .aliases = {"longest"}});
  out.add({.name = "train.tags", .kind = OptionKind::kList, .fallback = "first", .help = "x"});
  out.add({.name = "train.verbose", .kind = OptionKind::kSwitch, .help = "x"});
  out.add({.name = "train.note", .help = "x"});
  out.add({.name = "json", .help = "x", .flag_only = true});
  return out;
}

Settings resolved(const std::string& recipe, const std::vector<std::string>& flags = {},
                  const std::string& name = "/r/my.ini") {
  const RecipeFile file(recipe, name);
  return Settings(table(), &file, table().parse(flags, "limbeck test").flags);
}

std::string fault(const std::string& recipe, const std::vector<std::string>& flags = {}) {
  return message_of([&] { resolved(recipe, flags, "my.ini"); });
}

TEST(Settings, FlagWinsOverRecipeAndRecipeOverDefault) {
  const auto settings =
      resolved("[student]\ndtype = float16\n[teacher]\ndtype = float16\n", {"--student.dtype=bfloat16"});
  EXPECT_EQ(settings.dtype("student.dtype"), c10::kBFloat16);
  EXPECT_EQ(settings.dtype("teacher.dtype"), c10::kHalf);
  EXPECT_EQ(settings.dtype("projector.dtype"), std::nullopt);
  EXPECT_EQ(settings.text("projector.dtype"), "teacher");
}

TEST(Settings, AValueThatIsTakenBackIsNotGiven) {
  const auto settings = resolved("[objective]\nembedding_weight =\n[student]\nmodel =\n[train]\nnote =\n");
  for (const char* name : {"objective.embedding_weight", "student.model", "train.note"}) {
    EXPECT_FALSE(settings.given(name)) << name;
  }
}

TEST(Settings, ShorthandsSayWhatAnotherOptionIs) {
  const auto settings = resolved("use_quantization = true\n", {"--use_fp16", "--num_samples=900"});
  EXPECT_EQ(settings.dtype("student.dtype"), c10::kHalf);
  EXPECT_EQ(settings.where("student.dtype"), "(--use_fp16)");
  EXPECT_EQ(settings.text("teacher.dtype"), "auto");
  EXPECT_EQ(settings.text("student.quantize"), "nf4");
  EXPECT_EQ(settings.where("student.quantize"), "(/r/my.ini:1)");
  EXPECT_EQ(settings.count("train.steps"), (Count{900, CountUnit::kSamples}));
  EXPECT_EQ(settings.to_ini(false).find("use_"), std::string::npos);

  const std::string recipe = "[student]\ndtype = bfloat16\n";
  EXPECT_EQ(resolved(recipe, {"--use_fp16=false"}).dtype("student.dtype"), c10::kBFloat16) << "off says nothing";
  EXPECT_EQ(resolved(recipe, {"--mixed_precision", "--use_fp16"}).dtype("student.dtype"), c10::kHalf);
  EXPECT_EQ(resolved(recipe, {"--use_fp16", "--student.dtype=float16"}).dtype("student.dtype"), c10::kHalf);
}

TEST(Settings, ShorthandsAreRefusedLikeWhatTheyStandFor) {
  EXPECT_EQ(fault("seed = 1\n", {"--use_fp16", "--student.dtype=bfloat16"}),
            "2: --student.dtype=bfloat16: given already as --use_fp16=true; keep one of the two");
  EXPECT_EQ(fault("use_fp16 = yes\n[student]\ndtype = float32\n"),
            "2: my.ini:3: student.dtype is set already on line 1 (there as use_fp16); keep one of the two");
  EXPECT_EQ(fault("seed = 1\n", {"--use_fp16=maybe"}), "2: --use_fp16=maybe: wanted true or false");
  EXPECT_EQ(fault("seed = 1\n", {"--num_samples=0"}), "2: --num_samples=0: wanted a whole number, 1 or more");
  EXPECT_EQ(fault("seed = 1\n", {"--num_samples=9", "--train.steps=9 steps"}),
            "2: --train.steps=9 steps: given already as --num_samples=9; keep one of the two");
}

TEST(Settings, SpellingsOfOtherTrainersMeanOurOptions) {
  const auto text = [](const std::string& flag, const std::string& option) {
    return resolved("seed = 1\n", {"--" + flag}).text(option);
  };
  const std::tuple<const char*, const char*, const char*> cases[] = {
      {"bf16", "student.dtype", "bfloat16"},
      {"fp16=true", "student.dtype", "float16"},
      {"mixed_precision=bf16", "student.dtype", "bfloat16"},
      {"mixed_precision=fp16", "student.dtype", "float16"},
      {"mixed_precision=no", "student.dtype", "auto"},
      {"lora_r=8", "adapter.rank", "8"},
      {"lora_alpha=16", "adapter.alpha", "16"},
      {"lora_dropout=0.05", "adapter.dropout", "0.05"},
      {"max_seq_length=128", "data.sequence_length", "128"},
      {"per_device_train_batch_size=2", "data.batch_size", "2"},
      {"num_train_epochs=3", "train.steps", "3 epochs"},
      {"max_steps=70", "train.steps", "70 steps"},
      {"warmup_ratio=0.03", "optim.warmup", "0.03"},
      {"warmup_steps=0", "optim.warmup", "0 steps"},
      {"lr_scheduler_type=constant_with_warmup", "optim.schedule", "constant"},
      {"adam_beta1=0.8", "optim.beta1", "0.8"},
      {"max_grad_norm=0.5", "optim.clip", "0.5"},
      {"eval_steps=9", "eval.every", "9"},
      {"logging_steps=9", "train.log_every", "9"},
      {"gradient_checkpointing", "train.checkpoint_activations", "true"},
      {"packing=false", "data.packing", "padded"},
      {"load_in_4bit", "student.quantize", "nf4"}};
  for (const auto& [flag, option, value] : cases) EXPECT_EQ(text(flag, option), value) << flag;
  EXPECT_EQ(resolved("seed = 1\n", {"--mixed_precision", "bf16"}).text("student.dtype"), "bfloat16");
  EXPECT_EQ(
      resolved("seed = 1\n", {"--target_modules=q_proj", "--target_modules=v_proj"}).list("adapter.target").size(), 2u);
  EXPECT_EQ(fault("seed = 1\n", {"--mixed_precision=int8"}),
            "2: --mixed_precision=int8: wanted fp16, bf16, no, true or false");
  EXPECT_EQ(fault("seed = 1\n", {"--lr_scheduler_type=polynomial"}),
            "2: --lr_scheduler_type=polynomial: wanted linear, cosine, constant, constant_with_warmup or "
            "warmup_stable_decay");
}

TEST(Settings, EverySpellingOfTheTableIsOnceAndOfADeclaredOption) {
  OptionTable declared;
  declare_recipe_options(declared);
  declare_resume_options(declared);
  std::set<std::string> names;
  for (const NamedKind& row : spellings()) {
    EXPECT_TRUE(names.insert(row.name).second) << row.name;
    const Option* option = declared.find(row.name);
    ASSERT_NE(option, nullptr) << row.name;
    EXPECT_EQ(row.summary.substr(0, row.summary.find(' ')), option->name) << row.name;
  }
  EXPECT_GT(names.size(), 40u);
}

TEST(Settings, AnUnknownNameIsAnsweredByItsLastPart) {
  const auto answer = [](const std::string& flag) { return fault("seed = 1\n", {"--" + flag}); };
  EXPECT_NE(answer("divergence=x").find("did you mean objective.divergence?"), std::string::npos);
  EXPECT_NE(answer("optim.lr=1").find("did you mean optim.learning_rate?"), std::string::npos);
  EXPECT_NE(answer("alpha=1").find("did you mean adapter.alpha or objective.alpha?"), std::string::npos)
      << answer("alpha=1");
  EXPECT_NE(fault("[optim]\nlr = 1\n").find("learning_rate stands under [optim]"), std::string::npos);
  EXPECT_NE(fault("[train]\ndivergence = x\n").find("did you mean objective.divergence?"), std::string::npos);
}

TEST(Settings, EveryValueKnowsItsOrigin) {
  const auto settings =
      resolved("# x\n[student]\ndtype = float16\n[teacher]\ndtype = float16\n", {"--teacher.dtype=bfloat16"});
  EXPECT_EQ(settings.origin("student.dtype").to_string(), "/r/my.ini:3");
  EXPECT_EQ(settings.origin("teacher.dtype").to_string(), "command line");
  EXPECT_EQ(settings.origin("seed").to_string(), "default");
  EXPECT_EQ(settings.where("student.dtype"), "(/r/my.ini:3)");
  EXPECT_EQ(settings.where("teacher.dtype"), "(--teacher.dtype)");
  EXPECT_EQ(settings.where("seed"), "(default of seed)");
  EXPECT_TRUE(settings.given("student.dtype"));
  EXPECT_FALSE(settings.given("seed"));
}

TEST(Settings, TypedGettersReadEveryKind) {
  const auto settings = resolved(
      "seed = 7\n[projector]\nkind = logit\ninit_std = 2.5e-2\n[student]\ndevice = cuda:1\n[teacher]\ndevice = "
      "auto\n[train]\n"
      "length = 2M tokens\nverbose = yes\nnote = \" a # b \"\n");
  EXPECT_EQ(settings.integer("seed"), 7);
  EXPECT_EQ(settings.text("projector.kind"), "logit");
  EXPECT_DOUBLE_EQ(settings.number("projector.init_std"), 0.025);
  EXPECT_EQ(settings.device("student.device"), c10::Device(c10::kCUDA, 1));
  EXPECT_EQ(settings.device("teacher.device"), std::nullopt);
  EXPECT_EQ(settings.count("train.length"), (Count{2'000'000, CountUnit::kTokens}));
  EXPECT_TRUE(settings.enabled("train.verbose"));
  EXPECT_EQ(settings.text("train.note"), " a # b ");
  EXPECT_FALSE(resolved("seed = 7").enabled("train.verbose"));
}

TEST(Settings, AGetterOfAnotherKindIsAFaultOfTheProgram) {
  const auto settings = resolved("seed = 7\n");
  EXPECT_THROW(settings.number("seed"), std::logic_error);
  EXPECT_THROW(settings.text("precision.rule"), std::logic_error);
  EXPECT_THROW(settings.list("seed"), std::logic_error);
  EXPECT_THROW(settings.integer("no.such"), std::logic_error);
}

TEST(Settings, ListsAccumulateInOrderAndNoneEmptiesThem) {
  const std::string recipe = "[precision]\nrule = a float16\nrule = b float32\n";
  const auto settings = resolved(recipe, {"--precision.rule=c float32"});
  EXPECT_EQ(settings.list("precision.rule"), (std::vector<std::string>{"a float16", "b float32", "c float32"}));
  EXPECT_EQ(settings.values("precision.rule").at(1).origin.to_string(), "/r/my.ini:3");
  EXPECT_EQ(resolved(recipe, {"--precision.rule=none", "--precision.rule=c float32"}).list("precision.rule"),
            std::vector<std::string>{"c float32"});
  EXPECT_TRUE(resolved("seed = 1").list("precision.rule").empty());
  EXPECT_EQ(resolved("seed = 1").list("train.tags"), std::vector<std::string>{"first"});
  EXPECT_EQ(resolved("[train]\ntags = second\ntags = third").list("train.tags"),
            (std::vector<std::string>{"second", "third"}));
}

TEST(Settings, PathsAreRelativeToWhereTheyWereWritten) {
  const std::string here = std::filesystem::current_path().string();
  const auto settings =
      resolved("[teacher]\nmodel = ../models/big\n[student]\nmodel = /abs/small\n", {}, "/data/recipes/my.ini");
  EXPECT_EQ(settings.path("teacher.model"), "/data/models/big");
  EXPECT_EQ(settings.path("student.model"), "/abs/small");
  EXPECT_EQ(resolved("seed = 1", {"--teacher.model=big"}, "/data/my.ini").path("teacher.model"), here + "/big");
  EXPECT_EQ(resolved("[teacher]\nmodel = big\n", {}, "my.ini").path("teacher.model"), here + "/big");
  EXPECT_EQ(resolved("seed = 1").path("teacher.model"), "");
}

TEST(Settings, AliasesStandForTheOptionTheyName) {
  EXPECT_EQ(resolved("seed = 1", {"--longest=5 steps"}).count("train.length"), (Count{5, CountUnit::kSteps}));
  EXPECT_EQ(resolved("longest = 5 steps\n").count("train.length"), (Count{5, CountUnit::kSteps}));
  EXPECT_EQ(fault("longest = 5 steps\n[train]\nlength = 6 steps\n"),
            "2: my.ini:3: train.length is set already on line 1 (there as longest); keep one of the two");
}

TEST(Settings, TheResolvedRecipeReadsBackAsTheSame) {
  const auto settings = resolved(
      "seed = 7\n[teacher]\nmodel = ../big # x\n[precision]\nrule = student.* float16\nrule = \"a # "
      "b\"\n[train]\nlength = 2M tokens\n"
      "tags = none\nnote = \"  \\\"x\\\" \"\n",
      {"--student.dtype=bfloat16", "--precision.rule=last float32"});
  for (const bool with_origins : {false, true}) {
    const std::string ini = settings.to_ini(with_origins);
    const auto again = resolved(ini, {}, "/elsewhere/recipe.ini");
    for (const Option& option : settings.table().options()) {
      if (option.kind == OptionKind::kList)
        EXPECT_EQ(again.list(option.name), settings.list(option.name)) << ini;
      else
        EXPECT_EQ(again.text(option.name), settings.text(option.name)) << option.name << "\n" << ini;
    }
    EXPECT_EQ(again.to_ini(false), settings.to_ini(false));
  }
  EXPECT_NE(settings.to_ini(true).find("dtype = bfloat16                          # command line\n"), std::string::npos)
      << settings.to_ini(true);
  EXPECT_NE(settings.to_ini(true).find("# /r/my.ini:1\n"), std::string::npos);
  EXPECT_EQ(settings.to_ini(false).find("json"), std::string::npos);
}

TEST(Settings, UnknownKeysAreAnsweredWithTheNearestOrTheRightPlace) {
  const std::string tail = "; 'limbeck check --help' lists every key";
  EXPECT_EQ(fault("seed = 1\n[student]\ndtpe = x\n"),
            "2: my.ini:3: unknown key student.dtpe, did you mean student.dtype?" + tail);
  EXPECT_EQ(fault("[student]\nseed = 1\n"),
            "2: my.ini:2: unknown key student.seed, seed stands before the first [section]" + tail);
  EXPECT_EQ(fault("[student]\nteacher.dtype = float16\n"),
            "2: my.ini:2: unknown key student.teacher.dtype, dtype stands under [teacher]" + tail);
  EXPECT_EQ(fault("[student]\nqqqqqqqqqqqqqqqqqq = 1\n"), "2: my.ini:2: unknown key student.qqqqqqqqqqqqqqqqqq" + tail);
  EXPECT_EQ(fault("[studnet]\ndtype = float16\n"), "2: my.ini:1: unknown section [studnet], did you mean student?");
  EXPECT_EQ(fault("json = x\n"), "2: my.ini:1: json is a flag and no recipe key; remove the line and pass --json");
}

TEST(Settings, RepeatedValuesNameBothPlaces) {
  EXPECT_EQ(fault("[student]\ndtype = float16\n\n[student]\ndtype = float32\n"),
            "2: my.ini:5: student.dtype is set already on line 2; keep one of the two");
  EXPECT_EQ(fault("seed = 1\n", {"--seed=1", "--seed", "2"}),
            "2: --seed=2: given already as --seed=1; keep one of the two");
}

TEST(Settings, BadValuesNameTheirLineOrFlag) {
  EXPECT_EQ(fault("[projector]\ninit_std = 7\n"), "2: my.ini:2: projector.init_std = 7: wanted a number from 0 to 1");
  EXPECT_EQ(fault("seed = 1\n", {"--projector.init_std", "7"}),
            "2: --projector.init_std=7: wanted a number from 0 to 1");
  EXPECT_EQ(fault("seed = -1\n"), "2: my.ini:1: seed = -1: wanted a whole number, 0 or more");
  EXPECT_EQ(fault("[data]\nbatch_size =\n"),
            "2: my.ini:2: data.batch_size = : wanted a whole number from 1 to 1048576, got nothing");
  EXPECT_EQ(fault("[student]\ndtype = fp16\n"),
            "2: my.ini:2: student.dtype = fp16: wanted auto, float32, bfloat16 or float16; write float16");
  EXPECT_EQ(fault("[student]\ndtype = bfloat61\n"),
            "2: my.ini:2: student.dtype = bfloat61: did you mean bfloat16? wanted auto, float32, bfloat16 or float16");
  EXPECT_EQ(fault("[train]\nverbose = maybe\n"), "2: my.ini:2: train.verbose = maybe: wanted true or false");
  EXPECT_EQ(fault("[train]\nlength = 500\n"),
            "2: my.ini:2: train.length = 500: the unit is missing: write 500 steps, 500 tokens or 500 epochs");
  EXPECT_EQ(fault("[train]\nlength = 5 stepps\n"),
            "2: my.ini:2: train.length = 5 stepps: unit \"stepps\" is unknown: did you mean steps? wanted a count with "
            "its unit, "
            "such as 500 steps, 2M tokens or 1 epoch");
  EXPECT_EQ(fault("[precision]\nrule =\n"),
            "2: my.ini:2: precision.rule = : wanted a value, or none to empty the list");
}

TEST(Settings, AValueTheCommandNeedsSaysHowToSetIt) {
  const auto with_recipe = resolved("seed = 1", {}, "my.ini");
  EXPECT_EQ(message_of([&] { with_recipe.required_path("student.model"); }),
            "2: my.ini: student.model is not set: add `model = DIR` under [student], or pass --student.model=DIR");
  const Settings without(table(), nullptr, {});
  EXPECT_EQ(message_of([&] { without.required_path("student.model"); }),
            "2: --student.model is missing: add --student.model=DIR");
}

// What ships must parse, and its models must be where it says.
TEST(ShippedRecipes, ResolveAndFindTheirModels) {
  OptionTable keys;
  declare_recipe_options(keys);
  size_t recipes = 0;
  for (const auto& entry : std::filesystem::directory_iterator(LIMBECK_RECIPES)) {
    if (entry.path().extension() != ".ini") continue;
    ++recipes;
    const auto file = RecipeFile::read(entry.path());
    const Settings settings(keys, &file, {});
    for (const char* role : {"teacher.model", "student.model"}) {
      // Without a teacher a recipe trains on the text alone.
      if (!settings.given(role) && role == std::string("teacher.model") && settings.number("objective.alpha") == 0)
        continue;
      EXPECT_TRUE(std::filesystem::is_regular_file(settings.required_path(role) / "config.json"))
          << entry.path() << " " << role;
    }
  }
  EXPECT_GE(recipes, 2u);
}

TEST(Settings, AModelOfTheHubBecomesItsSnapshotAndIsPrintedSo) {
  namespace fs = std::filesystem;
  const test::TemporaryFolder folder;
  const std::string commit(40, 'c');
  const fs::path repository = folder / "hub" / "models--Org--tiny";
  fs::create_directories(repository / "refs");
  fs::create_directories(repository / "snapshots" / commit);
  std::ofstream(repository / "refs" / "main") << commit;
  ::setenv("HF_HUB_CACHE", (folder / "hub").c_str(), 1);
  const std::string snapshot = (repository / "snapshots" / commit).string();
  const auto settings = resolved("[student]\nmodel = Org/tiny\n[teacher]\nmodel = Org/big@v2\n");
  EXPECT_EQ(settings.path("student.model"), snapshot);
  EXPECT_NE(settings.to_ini(false).find("model = " + snapshot), std::string::npos);
  EXPECT_EQ(message_of([&] { settings.path_here("teacher.model"); }),
            "4: \"Org/big\": no folder /r/Org/big@v2, and no snapshot of revision v2 in " +
                (folder / "hub" / "models--Org--big").string() +
                ": name a folder, or type: hf download Org/big --revision v2 (/r/my.ini:4)");
  EXPECT_EQ(settings.with("teacher.model", snapshot).path_here("teacher.model"), snapshot);  // no longer wanted
  ::unsetenv("HF_HUB_CACHE");
}

}  // namespace
}  // namespace limbeck::recipe
