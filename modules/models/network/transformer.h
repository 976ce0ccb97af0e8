// The one transformer class behind every supported family, decoder or encoder, with its head.
// Built from an Architecture in the dtypes of a PrecisionPolicy; the same forward serves training, evaluation,
// generation and `check` (where its tensors live on meta).
#pragma once
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "modules/models/network/blocks.h"
#include "modules/models/network/rope_table.h"
#include "modules/models/network/weight_keeper.h"

namespace limbeck::models {

struct ModelInput {
  at::Tensor ids;                            // integers [B, T]
  std::optional<at::Tensor> attention_mask;  // [B, T], 0 = padding; for cached decoding of the new tokens alone
  std::optional<at::Tensor> document_ids;    // [B, T], packed documents: no attention across; 0 = padding
  // How many runs of equal numbers the rows of document_ids (without: attention_mask) have together, or more, where no
  // number comes twice in a row; a GPU reads documents one by one with it. Counted where the tensors are on the CPU.
  std::optional<int64_t> runs;
  std::optional<at::Tensor> position_ids;    // [B, T]; default: counted per row (decoders skip padding) and document
  std::optional<at::Tensor> token_type_ids;  // [B, T]
  TokenCache* cache = nullptr;               // decoders: the tokens before these
  Taps* taps = nullptr;                      // what to keep of the inside; appended to
  // Each layer's input, in place of the output of the layer before it.
  const std::vector<at::Tensor>* layer_inputs = nullptr;
  Draws draws;  // of training: adapters with dropout work by them
};

struct Encoded {
  at::Tensor last;                 // [B, T, D], after the final norm
  std::vector<at::Tensor> hidden;  // when asked for: embeddings, every layer, the last after the final norm
};

class Transformer : public torch::nn::Module {
 public:
  Transformer(const Scope& scope, Architecture architecture);

  const Architecture& architecture() const { return architecture_; }
  const std::string& path() const { return path_; }
  const std::vector<std::shared_ptr<Layer>>& layers() const { return layers_; }
  Encoded encode(const ModelInput& input, bool keep_hidden = false) const;
  // The parts of encode(), for whoever goes through the layers one by one: what the first layer gets, what a layer
  // makes of its input x, and the last states, from what the last layer gives.
  at::Tensor embedded(const ModelInput& input) const;
  // `read_tokens`: so many first tokens of each row are wanted of it, where not all are (a classifier reads one).
  at::Tensor through_layer(size_t layer, const at::Tensor& x, const ModelInput& input,
                           std::optional<int64_t> read_tokens = {}) const;
  at::Tensor last_of(const at::Tensor& x) const { return final_norm_ ? final_norm_->forward(x) : x; }
  // Logits [B, T, V] of a language model, [B, labels] of a classifier.
  at::Tensor head(const at::Tensor& last, const Draws& draws = {}) const;
  bool has_head() const { return architecture_.head != HeadKind::kNone; }
  const at::Tensor& head_weight() const { return head_->weight(); }  // throws where it is quantized
  // Of the head's product with what its transform makes of these states, with the adapters that work there; a quantized
  // weight is unpacked in the dtype of the states, as long as these operands live. A bias is
  // part of the product: a column of ones beside the states, and the bias beside the weight.
  ProductOperands head_operands(const at::Tensor& states, bool learns = true, const Draws& draws = {}) const;
  // Training keeps each layer's input alone and runs the layer again in backward: the same bits in less memory.
  void set_checkpointing(bool on) { checkpointing_ = on; }
  // Fetches and frees the weights around every layer; null: they are there. The model does not own it.
  void set_weight_keeper(WeightKeeper* keeper) { keeper_ = keeper; }
  // Rows of the token table, before positions and norms: integers [...] -> [..., D].
  at::Tensor embed_tokens(const at::Tensor& ids) const { return tokens_->forward(ids); }

 private:
  at::Tensor positions_of(const ModelInput& input) const;
  at::Tensor before_head(const at::Tensor& last, bool learns, const Draws& draws) const;
  at::Tensor embed(const ModelInput& input, const at::Tensor& positions) const;
  LayerInput layer_input(const ModelInput& input, const at::Tensor& positions) const;

  Architecture architecture_;
  std::string path_;
  bool checkpointing_ = false;
  WeightKeeper* keeper_ = nullptr;
  RopeTable rope_, local_rope_;
  std::shared_ptr<Embedding> tokens_, positions_, token_types_;
  std::shared_ptr<Norm> embedding_norm_, final_norm_, head_norm_;
  std::vector<std::shared_ptr<Layer>> layers_;
  std::shared_ptr<Linear> head_, pooler_, pre_classifier_, head_dense_;
};

// Mean over the tokens of each row that the mask keeps: [B, T, D] -> [B, D].
at::Tensor mean_pool(const at::Tensor& last, const std::optional<at::Tensor>& attention_mask);

}  // namespace limbeck::models
