// From a Hugging Face folder to a Transformer in the dtypes that were asked for; with weights, or on meta without.
#pragma once
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "modules/models/weights/weights.h"

namespace limbeck::models {

// Whether the resolvents of a model's layers see 8-bit codes, where somebody says so beside config.json.
struct ChosenResolvents {
  bool int8 = false;
  std::string source;
  // UsageError for a model that has none.
  void put(ModelConfig& config, const std::string& root) const;
};

struct ModelRequest {
  std::filesystem::path folder;
  std::string root = "model";            // first part of every module path: "teacher", "student"
  std::optional<at::ScalarType> dtype;   // none: what config.json (or the weights) say
  std::string dtype_source = "default";  // where the choice came from
  c10::Device device = c10::Device(c10::kCPU);
  std::vector<precision::Rule> rules;
  precision::Packing packing;  // of weights, which are then frozen
  // Of int8 and int4 codes that are made while floats are read: another one than float32 is for a folder to be written.
  at::ScalarType scales = at::kFloat;
  std::optional<ChosenResolvents> resolvents;  // none: as config.json says
  bool unpacked = false;                       // what a folder of packed weights stands for, in the dtype of the run
  bool for_training = false;  // gradients will flow through it: float16 beside quantized weights is refused
  bool trainable = false;
  bool adapted = false;  // whoever adds adapters asks the policy, when they are there, whether every rule was used
  bool allow_nonfinite = false;
  bool random_init = false;  // fresh weights from `seed` instead of the folder's: it may hold config.json alone
  bool new_head = false;     // of a classifier, from `seed`, over the folder's encoder
  uint64_t seed = 0;
};

struct BuiltModel {
  ModelConfig config;
  std::shared_ptr<precision::PrecisionPolicy> policy;
  std::shared_ptr<Transformer> model;
  LoadReport report;  // bindings always; the rest is empty when no weights were read
};

// Structure and contract alone, every tensor on meta: no weights are read, the folder may hold config.json only.
BuiltModel build_on_meta(const ModelRequest& request);
// With its weights, read or drawn, on the request's device.
BuiltModel load_model(const ModelRequest& request);

}  // namespace limbeck::models
