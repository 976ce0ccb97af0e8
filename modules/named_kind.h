// One of the things that a recipe chooses by name, with the line that `limbeck list` shows of it.
#pragma once
#include <string>

namespace limbeck {

struct NamedKind {
  std::string name, summary;
};

}  // namespace limbeck
