#include "trainer/recipe/option_table.h"

#include <gtest/gtest.h>

#include <stdexcept>

#include "tests/trainer/message_of.h"

namespace limbeck::recipe {
namespace {

using test::message_of;

OptionTable small_table() {
  OptionTable table;
  table.group("First");
  table.add({.name = "student.dtype",
             .kind = OptionKind::kDtype,
             .fallback = "auto",
             .help = "storage",
             .words = {"auto", "float32", "bfloat16"}});
  table.add({.name = "lr", .kind = OptionKind::kNumber, .help = "rate", .aliases = {"learning_rate"}});
  table.group("Second");
  table.add({.name = "rule", .kind = OptionKind::kList, .help = "rules"});
  table.add({.name = "quiet", .kind = OptionKind::kSwitch, .help = "less", .letter = 'q', .flag_only = true});
  return table;
}

std::string fault_of_line(const std::vector<std::string>& arguments) {
  return message_of([&] { small_table().parse(arguments, "limbeck test"); });
}

TEST(OptionTable, SplitsFlagsAndOperandsInTheOrderTyped) {
  const auto parsed = small_table().parse({"my.ini", "--student.dtype=bfloat16", "--rule", "a b", "-q", "--rule=c",
                                           "more", "--learning_rate", "1e-4", "--", "--lr"},
                                          "limbeck test");
  EXPECT_EQ(parsed.operands, (std::vector<std::string>{"my.ini", "more", "--lr"}));
  const std::tuple<const char*, const char*, const char*> wanted[] = {{"student.dtype", "student.dtype", "bfloat16"},
                                                                      {"rule", "rule", "a b"},
                                                                      {"quiet", "quiet", "true"},
                                                                      {"rule", "rule", "c"},
                                                                      {"lr", "learning_rate", "1e-4"}};
  ASSERT_EQ(parsed.flags.size(), std::size(wanted));
  for (size_t i = 0; i < parsed.flags.size(); ++i) {
    EXPECT_EQ(std::tuple(parsed.flags[i].name, parsed.flags[i].spelled, parsed.flags[i].value), wanted[i]);
  }
}

TEST(OptionTable, ASwitchTakesNoValueFromTheNextWord) {
  const auto parsed = small_table().parse({"--quiet", "my.ini", "--quiet=false"}, "limbeck test");
  EXPECT_EQ(parsed.operands, std::vector<std::string>{"my.ini"});
  EXPECT_EQ(parsed.flags.at(1).value, "false");
}

TEST(OptionTable, AnswersUnknownFlagsWithTheNearest) {
  const std::string tail = "; 'limbeck test --help' lists every option";
  EXPECT_EQ(fault_of_line({"--student.dtpe=x"}),
            "2: --student.dtpe: no such option, did you mean student.dtype?" + tail);
  EXPECT_EQ(fault_of_line({"--learning-rate", "1"}),
            "2: --learning-rate: no such option, did you mean learning_rate?" + tail);
  EXPECT_EQ(fault_of_line({"--zzzzzzzzzz"}), "2: --zzzzzzzzzz: no such option" + tail);
  EXPECT_EQ(fault_of_line({"--student.d=float32"}),
            "2: --student.d: no such option, did you mean student.dtype?" + tail);
  EXPECT_EQ(fault_of_line({"-x"}), "2: -x: no such option" + tail);
}

TEST(OptionTable, SaysWhichValueIsMissing) {
  const std::string tail = "; 'limbeck test --help' lists every option";
  const std::string wanted =
      "2: --student.dtype: the value is missing, wanted --student.dtype=auto|float32|bfloat16" + tail;
  EXPECT_EQ(fault_of_line({"--student.dtype"}), wanted);
  EXPECT_EQ(fault_of_line({"--student.dtype="}), wanted);
  EXPECT_EQ(fault_of_line({"--student.dtype", "--quiet"}), wanted);
}

TEST(OptionTable, RefusesFaultyDeclarations) {
  OptionTable table = small_table();
  EXPECT_THROW(table.add({.name = "lr"}), std::logic_error);
  EXPECT_THROW(table.add({.name = "learning_rate"}), std::logic_error);
  EXPECT_THROW(table.add({.name = "rate", .aliases = {"rule"}}), std::logic_error);
  EXPECT_THROW(table.add({.name = "n", .kind = OptionKind::kInteger, .fallback = "x"}), std::logic_error);
  EXPECT_THROW(table.at("nothing"), std::logic_error);
}

TEST(OptionTable, HelpShowsEveryOptionWithItsDefaultUnderItsHeading) {
  const std::string help = small_table().help(100);
  for (const char* part : {"First:", "--student.dtype auto|float32|bfloat16 (=auto)", "storage", "--lr NUMBER",
                           "Second:", "--rule TEXT", "-q [ --quiet ]", "less"}) {
    EXPECT_NE(help.find(part), std::string::npos) << part << "\n" << help;
  }
  EXPECT_EQ(help.find("learning_rate"), std::string::npos) << "aliases are accepted, not advertised";
}

TEST(OptionTable, KnowsSectionsAndRecipeKeys) {
  const OptionTable table = small_table();
  EXPECT_TRUE(table.has_section("student"));
  EXPECT_FALSE(table.has_section("stud"));
  EXPECT_EQ(table.recipe_keys(), (std::vector<std::string>{"student.dtype", "lr", "rule"}));
}

struct BadValue {
  Option option;
  std::string value, fault;
};

TEST(Option, SaysWhatWasWanted) {
  const Option dtype{.name = "d", .kind = OptionKind::kDtype, .words = {"auto", "float32", "bfloat16"}};
  const Option device{.name = "d", .kind = OptionKind::kDevice, .words = {"auto"}};
  const Option range{.name = "n", .kind = OptionKind::kInteger, .fallback = "8", .range = {1, 64}};
  const Option open{.name = "n", .kind = OptionKind::kInteger, .range = {.low = 0}};
  const Option std_dev{.name = "x", .kind = OptionKind::kNumber, .interval = {.low = 0, .high = 1}};
  const Option top_p{.name = "x", .kind = OptionKind::kNumber, .interval = {.low = 0, .high = 1, .above_low = true}};
  const Option rate{.name = "x", .kind = OptionKind::kNumber, .interval = {.low = 0, .high = 1, .below_high = true}};
  const Option positive{.name = "x", .kind = OptionKind::kNumber, .interval = {.low = 0}};
  const Option boolean{.name = "b", .kind = OptionKind::kSwitch};
  const Option length{.name = "l", .kind = OptionKind::kCount, .units = {CountUnit::kSteps}};
  const std::string devices = "wanted auto, cpu, cuda, cuda:0 (or another number) or meta";
  const BadValue cases[] = {{dtype, "bfloat61", "did you mean bfloat16? wanted auto, float32 or bfloat16"},
                            {dtype, "bf16", "wanted auto, float32 or bfloat16; write bfloat16"},
                            {dtype, "torch.float32", "wanted auto, float32 or bfloat16; write float32"},
                            {dtype, "int3", "wanted auto, float32 or bfloat16"},
                            {device, "gpu", devices},
                            {device, "cuda:x", devices},
                            {device, "cuda:-1", devices},
                            {device, "cuda:999", devices},
                            {range, "0", "wanted a whole number from 1 to 64"},
                            {range, "65", "wanted a whole number from 1 to 64"},
                            {rate, "1", "wanted a number from 0 to below 1"},
                            {rate, "-0.1", "wanted a number from 0 to below 1"},
                            {range, "8.0", "wanted a whole number from 1 to 64"},
                            {range, "8x", "wanted a whole number from 1 to 64"},
                            {range, "", "wanted a whole number from 1 to 64, got nothing"},
                            {range, "99999999999999999999", "wanted a whole number from 1 to 64"},
                            {open, "-1", "wanted a whole number, 0 or more"},
                            {std_dev, "1.5", "wanted a number from 0 to 1"},
                            {std_dev, "nan", "wanted a number from 0 to 1"},
                            {std_dev, "0,5", "wanted a number from 0 to 1"},
                            {top_p, "0", "wanted a number above 0 and up to 1"},
                            {positive, "inf", "wanted a number from 0 on"},
                            {boolean, "maybe", "wanted true or false"},
                            {boolean, "ture", "wanted true or false"},
                            {length, "5", "the unit is missing: write 5 steps"},
                            {boolean, "a\nb", "control characters are not allowed"}};
  for (const auto& [option, value, fault] : cases) EXPECT_EQ(value_fault(option, value), fault) << value;
}

TEST(Option, AcceptsEveryFormOfAGoodValue) {
  const Option boolean{.name = "b", .kind = OptionKind::kSwitch};
  for (const char* value : {"true", "false", "True", "False", "yes", "no", "on", "off", "1", "0"})
    EXPECT_EQ(value_fault(boolean, value), "");
  const Option number{.name = "x", .kind = OptionKind::kNumber};
  for (const char* value : {"1", "-1", "+1", "1e-4", ".5", "5.", "1E5"})
    EXPECT_EQ(value_fault(number, value), "") << value;
  const Option device{.name = "d", .kind = OptionKind::kDevice};
  for (const char* value : {"cpu", "cuda", "cuda:0", "cuda:7", "meta"}) EXPECT_EQ(value_fault(device, value), "");
}

}  // namespace
}  // namespace limbeck::recipe
