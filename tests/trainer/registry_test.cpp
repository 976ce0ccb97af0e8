#include "trainer/registry.h"

#include <gtest/gtest.h>

#include "tests/trainer/message_of.h"
#include "trainer/build/builtins.h"

namespace limbeck {
namespace {

using test::message_of;
using Maker = std::function<int()>;

TEST(Registry, FindsWhatWasAddedAndListsItInOrder) {
  Registries registries;
  registries.of<Maker>("objectives").add("kd", "soft targets", [] { return 1; });
  registries.of<Maker>("objectives").add("ce", "hard targets", [] { return 2; });
  EXPECT_EQ(registries.of<Maker>("objectives").find("ce")(), 2);
  const auto entries = registries.find("objectives")->entries();
  ASSERT_EQ(entries.size(), 2u);
  EXPECT_EQ(entries[0].name, "kd");
  EXPECT_EQ(entries[1].summary, "hard targets");
}

TEST(Registry, RefusesDuplicatesAndAnswersUnknownNamesWithAll) {
  Registries registries;
  auto& objectives = registries.of<Maker>("objectives");
  EXPECT_EQ(message_of([&] { objectives.find("kd"); }),
            "2: objectives: kd is unknown: none is registered yet; 'limbeck list objectives' shows them");
  objectives.add("kd", "", [] { return 1; });
  objectives.add("ce", "", [] { return 2; });
  EXPECT_EQ(message_of([&] { objectives.add("kd", "", [] { return 1; }); }),
            "2: objectives: kd is registered twice; give one of them another name");
  EXPECT_EQ(message_of([&] { objectives.find("hinge"); }),
            "2: objectives: hinge is unknown: wanted kd or ce; 'limbeck list objectives' shows them");
  objectives.add("forward_kl", "", [] { return 3; });
  EXPECT_EQ(message_of([&] { objectives.find("froward_kl"); }),
            "2: objectives: froward_kl is unknown: did you mean forward_kl? wanted kd, ce or forward_kl; 'limbeck list "
            "objectives' shows them");
}

TEST(Registry, RefusesAnotherTypeUnderTheSameKind) {
  Registries registries;
  registries.of<Maker>("objectives");
  EXPECT_EQ(message_of([&] { registries.of<std::string>("objectives"); }),
            "2: objectives: the registry holds another type; rebuild the plug-in against this limbeck");
}

TEST(Registry, BuiltinsHoldTheModelFamilies) {
  Registries registries;
  build::register_builtins(registries);
  ASSERT_NE(registries.find("models"), nullptr);
  EXPECT_FALSE(registries.find("models")->entries().empty());
  EXPECT_EQ(registries.find("nothing"), nullptr);
}

}  // namespace
}  // namespace limbeck
