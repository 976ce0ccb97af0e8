// Which layer of the teacher each layer of the student looks at.
#pragma once
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "trainer/recipe/settings.h"

namespace limbeck::objective {

// Pairs (student, teacher) of hidden states, counted in layers passed: 1 is the state after the first layer.
using LayerPairs = std::vector<std::pair<int64_t, int64_t>>;

// As objective.layer_map says it, whatever the models.
struct LayerMap {
  LayerPairs pairs = {};  // empty: auto
  std::string said = {};  // "objective.layer_map = \"1:2\" (my.ini:3)", for messages
};
LayerMap read_layer_map(const recipe::Settings& settings);

// Of models with so many layers. The last state has gone through the final norm, so it pairs with the teacher's last
// alone. auto: s -> floor(s Lt / Ls) for s = 1 .. Ls - 1. A fault is a UsageError.
LayerPairs layer_map(const LayerMap& map, int64_t student_layers, int64_t teacher_layers);

// floor(layer Lt / Ls): the teacher's layer at the place of this layer, both counted from 0.
int64_t layer_at_same_place(int64_t layer, int64_t student_layers, int64_t teacher_layers);

}  // namespace limbeck::objective
