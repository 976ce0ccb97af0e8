// A model in llama.cpp's words: its architecture, what it calls our parameters, in which order it wants their rows, and
// the numbers of config.json. What it would compute otherwise than we do is refused.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "modules/io/gguf_file.h"
#include "modules/models/family/architecture.h"

namespace limbeck::gguf {

// What Gemma's queries are divided by the root of: llama.cpp goes by the number of layers, because the largest model of
// each generation has a rule of its own.
int64_t gemma_query_scalar(const std::string& family, int64_t layers, int64_t hidden, int64_t heads, int64_t head_dim);
// Which layers of Gemma see a window alone is no number of the file, but every layer except each of these.
int64_t gemma_window_period(const std::string& family);

// What frequencies of rotary positions are divided by, one for each pair of a head, beside those of the plain rope.
at::Tensor rope_divisors(const models::Rope& rope, int64_t max_positions);

class LlamaCppModel {
 public:
  // Keeps a reference. UsageError for a family, or for a value of its config.json, that llama.cpp has no word for;
  // `where` is the model's folder.
  LlamaCppModel(const models::Architecture& architecture, const std::string& where);

  const std::string& architecture_name() const { return name_; }
  // Of a parameter by its path below the model's root: "layers.3.mlp.up_proj", "weight" is "blk.3.ffn_up.weight".
  std::string tensor_name(const std::string& module, const std::string& leaf) const;
  // Which row of ours comes i-th. llama.cpp's "llama" turns neighbours of a head by one angle, we turn the i-th value
  // of its one half with the i-th of the other.
  std::vector<int64_t> row_order(const std::string& module, int64_t rows) const;
  // Norms that multiply by 1 + weight are stored with the 1.
  bool adds_one_to_norms() const { return a_.norm == models::NormKind::kRmsUnitOffset; }
  io::GgufMetadata hyperparameters() const;
  // By which the frequencies of rotary positions are divided, one for each pair of a head; none: by no such factors.
  std::optional<at::Tensor> rope_factors() const;
  // The longest text that both compute alike, and whether that is less than config.json says.
  int64_t context_length() const;
  bool window_bounds_context() const { return context_length() < a_.max_positions; }

 private:
  const models::Architecture& a_;
  std::string name_;
  bool neighbours_;  // see row_order()
};

}  // namespace limbeck::gguf
