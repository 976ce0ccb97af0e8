// The names by which other trainers call our options, in one table: OptionTable gives them to an option as it is
// declared, `limbeck list aliases` prints them.
#pragma once
#include <string>
#include <vector>

#include "modules/named_kind.h"
#include "trainer/recipe/option.h"

namespace limbeck::recipe {

// Adds the table's aliases and shorthands of that name.
void add_spellings(Option& option);

// Each spelling and what it means: {"bf16", "student.dtype = bfloat16"}.
std::vector<NamedKind> spellings();

}  // namespace limbeck::recipe
