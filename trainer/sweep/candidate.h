// What a sweep converts, one at a time: a linear module of any kind, a norm, the experts of a layer, or all of a layer,
// to one dtype or packed format. A candidate is said in precision rules, so that what is measured is what a recipe with
// these rules makes. Embeddings are none, but a head that is tied to one is converted with it.
#pragma once
#include <string>
#include <vector>

#include "modules/models/weights/load_model.h"

namespace limbeck::sweep {

struct Candidate {
  std::string module;  // below the model's root, "layers.0.mlp.down_proj"; of a whole layer "layers.0"
  std::string role;    // of the module, "head (tied)" or "block"
  std::string format;  // "float16", "int4"
  // Where a forward first meets it: 0 before the layers, then the layers, then what is behind them.
  size_t stage = 0;
  std::vector<std::string> rules;  // "student.layers.0.mlp.down_proj float16"

  std::string key() const { return module + " " + format; }
  bool is_block() const { return role == "block"; }
};

// "float16,int8" -> the two; UsageError, which begins with `source`, for an unknown or repeated one, or float32.
std::vector<std::string> parse_sweep_formats(const std::string& names, const std::string& source);

// In the order of the model's modules, each in every format that it can be in; a layer behind its modules.
std::vector<Candidate> candidates_of(const models::BuiltModel& model, const std::vector<std::string>& formats);

// Of the stage of Candidate.
size_t stages_of(const models::Transformer& model);

}  // namespace limbeck::sweep
