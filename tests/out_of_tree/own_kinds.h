// What this plug-in brings: a family, an objective, two kinds of adapter. plugin.cpp registers them.
#pragma once
#include "modules/adapters/added/added_kind.h"
#include "modules/models/family/family.h"
#include "trainer/objective/head/divergence.h"

namespace own {

limbeck::models::Family short_conv_family();
limbeck::objective::DivergenceFactory brier();
limbeck::adapters::AddedKind row_gain();
limbeck::adapters::AddedKind bottleneck();

}  // namespace own
