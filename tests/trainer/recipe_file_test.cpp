#include "trainer/recipe/recipe_file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdlib>
#include <fstream>

#include "tests/support/temporary_folder.h"
#include "tests/trainer/message_of.h"

namespace limbeck::recipe {
namespace {

using test::message_of;

RecipeFile parsed(const std::string& text) { return RecipeFile(text, "my.ini"); }

std::string fault_of_file(const std::string& text) {
  return message_of([&] { parsed(text); });
}

class RecipeOnDisk : public ::testing::Test {
 protected:
  std::string write(const std::string& name, const std::string& text) {
    std::ofstream(folder_ / name, std::ios::binary) << text;
    return (folder_ / name).string();
  }
  const test::TemporaryFolder folder_;
};

TEST(RecipeFile, KeepsTheLineOfEveryKey) {
  const auto file =
      parsed("seed = 7\n\n# comment\n[student]\n  dtype=bfloat16 \n; another\n[precision]\nrule = a b\nrule = c d\n");
  ASSERT_EQ(file.entries().size(), 4u);
  const std::tuple<const char*, const char*, int> wanted[] = {
      {"seed", "7", 1}, {"student.dtype", "bfloat16", 5}, {"precision.rule", "a b", 8}, {"precision.rule", "c d", 9}};
  for (size_t i = 0; i < 4; ++i) {
    const auto& entry = file.entries()[i];
    EXPECT_EQ(std::tuple(entry.key, entry.value, entry.line), wanted[i]);
  }
}

TEST(RecipeFile, ReadsCommentsQuotesAndForeignLineEndsAlike) {
  const std::pair<const char*, const char*> cases[] = {{"a = x # why", "x"},
                                                       {"a = x#y", "x#y"},
                                                       {"a = \"x # y\"  # why", "x # y"},
                                                       {"a = \"say \\\"hi\\\" \\\\\"", "say \"hi\" \\"},
                                                       {"a = x y\tz\r\n", "x y\tz"},
                                                       {"\xEF\xBB\xBF"
                                                        "a = x",
                                                        "x"},
                                                       {"a =", ""},
                                                       {"a = # nothing", ""},
                                                       {"a=b=c", "b=c"},
                                                       {"a = caf\xC3\xA9", "caf\xC3\xA9"},
                                                       {"a = \"  x \"", "  x "}};
  for (const auto& [text, value] : cases) EXPECT_EQ(parsed(text).entries().at(0).value, value) << text;
}

TEST(RecipeFile, WritesValuesThatReadBackTheSame) {
  for (const std::string value :
       {"x", "", " x", "x ", "a # b", "#", "a#b", "\"", "\\", "\"x\" y", "caf\xC3\xA9", "; x", "a=b", "[x]"}) {
    EXPECT_EQ(parsed("a = " + written_value(value)).entries().at(0).value, value);
  }
}

TEST(RecipeFile, NamesTheLineOfBadSyntax) {
  EXPECT_EQ(fault_of_file("seed = 1\n[student\ndtype = x"),
            "2: my.ini:2: [student is no section, wanted [name], such as [student]");
  EXPECT_EQ(fault_of_file("[]\na = 1"), "2: my.ini:1: [] is no section, wanted [name], such as [student]");
  EXPECT_EQ(fault_of_file("[\na = 1"), "2: my.ini:1: [ is no section, wanted [name], such as [student]");
  EXPECT_EQ(fault_of_file("seed 7"),
            "2: my.ini:1: `seed 7` is neither [section] nor key = value; a comment starts with #");
  EXPECT_EQ(fault_of_file("= 7"), "2: my.ini:1: `= 7` is neither [section] nor key = value; a comment starts with #");
  EXPECT_EQ(fault_of_file("a = \"x"), "2: my.ini:1: the quote in \"x is never closed; end it with \"");
  EXPECT_EQ(fault_of_file("a = \"x\" y"), "2: my.ini:1: `y` after the closing quote; put the whole value in quotes");
  EXPECT_EQ(fault_of_file("a = \"x\\n\""),
            "2: my.ini:1: a backslash in quotes stands before \" or \\ only; write \\\\ for a backslash");
}

TEST(RecipeFile, RefusesWhatIsNoText) {
  EXPECT_EQ(fault_of_file(std::string("a = 1\nb = \0x", 11)),
            "2: my.ini:2: control character \\x00, wanted plain text");
  EXPECT_EQ(fault_of_file("a = 1\rb = 2"), "2: my.ini:1: control character \\x0d, wanted plain text");
  for (const char* bad : {"a = \xFF", "a = \xC0\xAF", "a = \xED\xA0\x80", "a = \xF5\x80\x80\x80", "a = \xE2\x82",
                          "a = \xF0\x80\x80\x80"}) {
    EXPECT_EQ(fault_of_file(bad), "2: my.ini:1: byte 5 is not UTF-8; save the file as UTF-8 text");
  }
  EXPECT_EQ(fault_of_file("a = " + std::string(20'000, 'x')), "2: my.ini:1: line of 20004 bytes, wanted at most 16384");
}

TEST(RecipeFile, RefusesARecipeWithoutKeys) {
  const std::string wanted =
      "2: my.ini: sets no key; a recipe needs at least `model = FOLDER` under [teacher] or [student]";
  for (const char* text : {"", "\n\n", "# only a comment\n", "[student]\n", "\xEF\xBB\xBF"})
    EXPECT_EQ(fault_of_file(text), wanted);
}

TEST(RecipeFile, SurvivesEveryCutAndEveryByte) {
  const std::string whole = "\xEF\xBB\xBFseed = 7 # x\r\n[student]\ndtype = \"caf\xC3\xA9 \\\\ \\\" #\"\nname = x\n";
  size_t read = 0;
  const auto attempt = [&](const std::string& text) {
    try {
      read += parsed(text).entries().size();
    } catch (const UsageError& error) {
      EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
    }
  };
  for (size_t cut = 0; cut <= whole.size(); ++cut) attempt(whole.substr(0, cut));
  for (size_t at = 0; at < whole.size(); ++at) {
    for (int byte = 0; byte < 256; ++byte) {
      std::string text = whole;
      text[at] = static_cast<char>(byte);
      attempt(text);
    }
  }
  EXPECT_GT(read, 1000u);
}

TEST_F(RecipeOnDisk, ReadsAFile) {
  const auto path = write("my.ini", "seed = 7\n");
  const auto file = RecipeFile::read(path);
  EXPECT_EQ(file.name(), path);
  EXPECT_EQ(file.folder(), folder_.path());
}

TEST_F(RecipeOnDisk, NamesANeighbourOfAMissingRecipe) {
  write("check.ini", "seed = 7\n");
  const std::string folder = folder_.path().string();
  EXPECT_EQ(message_of([&] { RecipeFile::read(folder + "/chekc.ini"); }),
            "2: " + folder + "/chekc.ini: no such recipe; did you mean " + folder + "/check.ini?");
  EXPECT_EQ(message_of([&] { RecipeFile::read("/nowhere/my.ini"); }),
            "2: /nowhere/my.ini: no such recipe; name an .ini file, such as those in recipes/");
}

TEST_F(RecipeOnDisk, RefusesWhatIsNoFile) {
  EXPECT_EQ(message_of([&] { RecipeFile::read(folder_.path()); }),
            "2: " + folder_.path().string() + ": is a folder, wanted a recipe file; name an .ini file in it");
  const std::string fifo = (folder_ / "fifo").string();
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
  EXPECT_EQ(message_of([&] { RecipeFile::read(fifo); }), "2: " + fifo + ": is no regular file, wanted a recipe (.ini)");
  EXPECT_EQ(message_of([&] { RecipeFile::read("/dev/zero"); }),
            "2: /dev/zero: is no regular file, wanted a recipe (.ini)");
}

TEST_F(RecipeOnDisk, RefusesAHugeFileWithoutReadingAllOfIt) {
  const auto path = write("huge.ini", "seed = 7\n");
  std::filesystem::resize_file(path, 1ull << 40);  // sparse
  EXPECT_EQ(message_of([&] { RecipeFile::read(path); }),
            "2: " + path + ": 1099511627776 bytes, wanted a recipe of at most 1048576; is this the right file?");
}

}  // namespace
}  // namespace limbeck::recipe
