// Which tensor of a checkpoint fills which parameter of ours, and the loading and naming that follows from it.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "modules/io/safetensors.h"
#include "modules/models/family/family.h"
#include "modules/models/network/transformer.h"

namespace limbeck::models {

struct WeightBinding {
  std::string path;                      // ours, "student.layers.0.self_attn.q_proj.weight"
  std::string name;                      // the checkpoint's; after loading, the spelling that was found
  std::vector<std::string> other_names;  // older spellings, tried in order
  precision::ContractModule* owner = nullptr;
  std::string leaf;           // what the owner calls it, "weight"
  at::Tensor parameter;       // the whole parameter (undefined where it is packed) …
  std::string stack;          // of packed experts: what the owner calls theirs, "up_proj"
  int64_t expert = -1;        // … of which this is one expert's part,
  int64_t row = 0, rows = 0;  // from this row on (rows 0: all)
  bool transposed = false;

  bool is_packed() const { return !parameter.defined(); }
  // Where it is packed and no parameter; of packed experts this one's matrix.
  std::optional<precision::PackedWeight> packed() const;
  void replace_packed(const precision::PackedWeight& weight) const;
  // The part of `whole` (the parameter, or its gradient) that the checkpoint tensor holds, in the checkpoint's layout.
  at::Tensor part_of(const at::Tensor& whole) const;
  // The sizes of that part, of a parameter whose memory need not be there: no view is made.
  std::vector<int64_t> shape() const;
  // Its present values in the checkpoint's layout; of a packed weight what the codes stand for, in float32.
  at::Tensor values() const;
};

// A parameter as the checkpoint calls it: "layers.0.mlp.up_proj", "weight" -> "model.layers.0.mlp.up_proj.weight".
std::string stored_name(const Family& family, const std::string& module, const std::string& leaf);
// The head's module as the checkpoint calls it, also where it is tied and has no weight of its own there.
std::string stored_head_name(const Family& family);

std::vector<WeightBinding> bind_weights(const Transformer& model, const Family& family);

struct LoadOptions {
  const quantization::FolderLayout* layout = nullptr;  // of the packed weights of the folder; null: all are plain
  bool cast = false;  // the run's dtype was asked for: convert what the file holds in another one
  bool allow_nonfinite = false;
  at::ScalarType scales = at::kFloat;  // of codes that are made
  bool new_head = false;               // of a classifier: drawn from `seed`, whatever the file holds (new_head.h)
  uint64_t seed = 0;
};

struct LoadReport {
  std::vector<WeightBinding> bindings;  // with the names found
  std::vector<std::string> ignored;     // tensors of the file that carry no weight of ours
  std::vector<std::string> notes;       // about the files, for the user
  std::vector<std::string> drawn;       // of a new head
  int64_t cast_tensors = 0;
  int64_t packed_tensors = 0;
};

// Fills every parameter, by what is read but for a new head. Missing, extra, misshapen, wrongly typed and non-finite
// tensors are refused by name.
LoadReport load_weights(Transformer& model, const Family& family, const io::WeightsFolder& weights,
                        const LoadOptions& options);

}  // namespace limbeck::models
