// A model as one GGUF file that llama.cpp loads: packed weights as blocks with the same codes, float ones as they are,
// norms and biases in float32.
#pragma once
#include <filesystem>
#include <string>
#include <vector>

#include "modules/io/gguf_file.h"
#include "modules/models/weights/load_model.h"

namespace limbeck::gguf {

struct PlannedTensor {
  std::string name;  // in the file
  io::GgufType type = io::GgufType::kFloat32;
  int64_t values = 0, bytes = 0;
};

// Of a model on any device, meta too. UsageError where llama.cpp would compute something else, and where packed weights
// have no twin among GGUF's types: all of them are named.
std::vector<PlannedTensor> plan_gguf(const models::BuiltModel& built);

// How far what the file stands for is from what the model computes with.
struct ExportReport {
  double scale_change = 0.0;    // the largest, of a scale by float16, as a part of it; 0: none changed
  std::string scale_of;         // the weight that has it
  double minimum_change = 0.0;  // the largest, of what a code of 0 stands for in a Q4_1 block, in steps of its codes
  std::string minimum_of;
  int64_t widened = 0;  // weights of 2 or 3 bits a code, which the file has in 4
};

// `vocabulary`: the tokenizer's metadata. The file appears complete or not at all.
ExportReport export_gguf(const models::BuiltModel& built, const std::filesystem::path& file,
                         const io::GgufMetadata& vocabulary);

}  // namespace limbeck::gguf
