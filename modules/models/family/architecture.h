// What distinguishes one supported transformer from another, as data. A family reads it from config.json; the blocks
// are built from it. Nothing here names a family's code path: a new model is a new row of values; what no value can say
// is made by a function that the family gives (other_mixer).
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace limbeck::precision {
struct Scope;
}

namespace limbeck::models {

enum class ModelKind { kDecoder, kEncoder };
enum class HeadKind { kNone, kLanguageModel, kBertClassifier, kDistilBertClassifier };
inline bool is_classifier(HeadKind head) {
  return head == HeadKind::kBertClassifier || head == HeadKind::kDistilBertClassifier;
}
enum class NormKind { kRms, kRmsUnitOffset, kLayer };
// kPre: x + f(norm(x)); kPost: norm(x + f(x)); kSandwich: x + norm(f(norm(x))); kParallel: one norm for both parts of
// the layer, x + mixer(norm(x)) + f(norm(x))
enum class NormPlacement { kPre, kPost, kSandwich, kParallel };
enum class Activation { kSilu, kGelu, kGeluTanh, kRelu };
enum class RopeType { kNone, kDefault, kLinear, kDynamic, kYarn, kLongRope, kLlama3 };

struct Rope {
  RopeType type = RopeType::kNone;
  double theta = 10000.0;
  int64_t rotary_dim = 0;  // <= head_dim
  double factor = 1.0;
  double attention_factor = 1.0;             // multiplies cos and sin
  int64_t original_positions = 0;            // positions of the original pretraining (yarn, longrope, llama3, dynamic)
  double beta_fast = 32.0, beta_slow = 1.0;  // yarn
  bool truncate = true;                      // yarn
  double low_freq_factor = 1.0, high_freq_factor = 4.0;  // llama3
  std::vector<double> short_factor, long_factor;         // longrope, rotary_dim / 2 each
};

struct Experts {
  int64_t count = 0;  // 0: dense
  int64_t per_token = 0;
  int64_t intermediate = 0;
  bool normalize = true;  // the chosen weights sum to one
};

// A tridiagonal resolvent in place of attention (modules/models/network/resolvent_mixer.h).
struct Resolvent {
  int64_t heads = 0;       // matrices a layer; 0: there is attention
  double height = 1.0;     // Im z
  double potential = 3.0;  // bound of what the layer adds to the diagonal
  // The biases of v before training, spread over the matrices. At 0 the free matrix is at the edge of its band, where
  // what a token does fades within a few places; inside of it, between 0 and 4, it goes as far as 1 / height allows.
  double first_bias = 0.0, last_bias = 0.0;
  bool int8 = false;  // what goes in and what comes out of a token are seen as 8-bit codes
};

struct Architecture;
class TokenMixer;

// What some or all layers have in place of attention (modules/models/network/token_mixer.h).
struct OtherMixer {
  std::string name;  // of the module in its layer, where attention is "self_attn"
  // Of the layer of this number, built in `scope`; null: that layer has attention. Empty: every layer has.
  std::function<std::shared_ptr<TokenMixer>(const precision::Scope& scope, const Architecture&, int64_t layer)> make;
};

struct Architecture {
  std::string family;
  ModelKind kind = ModelKind::kDecoder;
  HeadKind head = HeadKind::kLanguageModel;
  int64_t vocabulary = 0, hidden = 0, layers = 0, heads = 0, key_value_heads = 0, head_dim = 0, intermediate = 0;
  int64_t max_positions = 0;
  int64_t learned_positions = 0;  // rows of a learned position table; 0: none
  int64_t token_types = 0;        // rows of a token type table; 0: none
  int64_t labels = 0;             // of a classifier

  NormKind norm = NormKind::kRms;
  NormPlacement placement = NormPlacement::kPre;
  double norm_epsilon = 1e-6;
  bool query_key_norm = false;
  bool embedding_norm = false;  // BERT
  bool final_norm = true;

  bool query_key_value_bias = false, output_bias = false, mlp_bias = false;
  bool fused_query_key_value = false, fused_gate_up = false;
  bool gated = true;
  Activation activation = Activation::kSilu;
  double embedding_scale = 1.0;
  double attention_scale = 1.0;
  double attention_softcap = 0.0, logit_softcap = 0.0;

  std::vector<int64_t> window;       // a layer: 0 sees everything, else the sliding window
  std::vector<bool> layer_is_local;  // which rope a layer uses
  Rope rope, local_rope;
  Experts experts;
  std::vector<bool> layer_is_sparse;  // empty: every layer when experts.count > 0

  bool tied = false;  // head shares the embedding
  // A masked language model's head: dense, activation and norm before the product, and a bias of its own after it.
  bool head_transform = false, head_bias = false;
  bool pooler = false;                // BERT's pooler is part of the checkpoint
  double initializer_range = 0.02;    // standard deviation of random first weights
  bool scaled_residual_init = false;  // those that write to the residual stream: over sqrt(2 layers)
  bool sinusoidal_positions = false;  // first values of the position table
  std::string dtype;                  // as config.json says, or empty
  std::vector<int64_t> end_of_sequence;
  int64_t padding_id = -1;  // row of the embedding without gradient; -1: none
  Resolvent resolvent;
  OtherMixer other_mixer;
  int64_t pad_with = -1;  // fills finished rows of a generation; -1: the end-of-sequence id

  // Predicts each token from both of its sides, where a decoder predicts the next one.
  bool masked_language_model() const { return kind == ModelKind::kEncoder && head == HeadKind::kLanguageModel; }

  bool sparse(int64_t layer) const {
    return experts.count > 0 && (layer_is_sparse.empty() || layer_is_sparse[static_cast<size_t>(layer)]);
  }
};

}  // namespace limbeck::models
