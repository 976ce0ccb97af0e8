#include "modules/models/family/family.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "modules/errors.h"
#include "modules/models/family/config_reader.h"

namespace limbeck::models {

namespace {

std::vector<int64_t> windows(const std::vector<bool>& local, int64_t window) {
  std::vector<int64_t> result;
  for (const bool is_local : local) result.push_back(is_local ? window : 0);
  return result;
}

Architecture read_llama(const io::JsonFile& config, const std::string&) {
  Architecture a = read_llama_line(config, 1e-6);
  a.query_key_value_bias = a.output_bias = config.boolean_or("attention_bias", false);
  a.mlp_bias = config.boolean_or("mlp_bias", false);
  a.rope = read_rope(config, a.head_dim, a.max_positions, 10000.0, false);
  return a;
}

Architecture read_mistral(const io::JsonFile& config, const std::string&) {
  Architecture a = read_llama_line(config, 1e-6);
  a.rope = read_rope(config, a.head_dim, a.max_positions, 10000.0, false);
  const bool unlimited = config.value().contains("sliding_window") && !config.has("sliding_window");
  const int64_t window = unlimited ? 0 : config.integer_or("sliding_window", 4096, 1, kMaxSize);
  a.window.assign(static_cast<size_t>(a.layers), window);
  return a;
}

// Qwen: a window only with use_sliding_window, on the layers from max_window_layers on.
void read_qwen_window(const io::JsonFile& config, Architecture& a, bool every_layer) {
  if (!config.boolean_or("use_sliding_window", false) || !config.has("sliding_window")) return;
  const int64_t window = config.integer("sliding_window", 1, kMaxSize);
  const int64_t first = every_layer ? 0 : config.integer_or("max_window_layers", 28, 0, 4096);
  std::vector<bool> local = every_layer ? std::vector<bool>{} : read_local_layers(config, a.layers);
  if (local.empty()) {
    for (int64_t i = 0; i < a.layers; ++i) local.push_back(i >= first);
  }
  a.window = windows(local, window);
}

Architecture read_qwen2(const io::JsonFile& config, const std::string&) {
  Architecture a = read_llama_line(config, 1e-6);
  a.query_key_value_bias = true;
  a.rope = read_rope(config, a.head_dim, a.max_positions, 10000.0, false);
  read_qwen_window(config, a, false);
  return a;
}

Architecture read_qwen3(const io::JsonFile& config, const std::string&) {
  Architecture a = read_llama_line(config, 1e-6);
  a.head_dim = config.integer_or("head_dim", 128, 1, kMaxSize);
  a.attention_scale = 1.0 / std::sqrt(static_cast<double>(a.head_dim));
  a.query_key_norm = true;
  a.query_key_value_bias = a.output_bias = config.boolean_or("attention_bias", false);
  a.rope = read_rope(config, a.head_dim, a.max_positions, 10000.0, false);
  read_qwen_window(config, a, false);
  return a;
}

Architecture read_qwen3_moe(const io::JsonFile& config, const std::string&) {
  Architecture a = read_llama_line(config, 1e-6);
  a.query_key_norm = true;
  a.query_key_value_bias = a.output_bias = config.boolean_or("attention_bias", false);
  a.rope = read_rope(config, a.head_dim, a.max_positions, 10000.0, false);
  read_qwen_window(config, a, true);
  const char* count_key = config.has("num_experts") ? "num_experts" : "num_local_experts";
  a.experts.count = config.integer_or(count_key, 128, 1, 65536);
  a.experts.per_token = config.integer_or("num_experts_per_tok", 8, 1, a.experts.count);
  a.experts.intermediate = config.integer_or("moe_intermediate_size", 768, 1, kMaxSize);
  a.experts.normalize = config.boolean_or("norm_topk_prob", false);
  const int64_t step = config.integer_or("decoder_sparse_step", 1, 0, 4096);
  const nlohmann::json dense =
      config.has("mlp_only_layers") ? config.value().at("mlp_only_layers") : nlohmann::json::array();
  for (int64_t i = 0; i < a.layers; ++i) {
    const bool listed = std::find(dense.begin(), dense.end(), nlohmann::json(i)) != dense.end();
    a.layer_is_sparse.push_back(!listed && step > 0 && (i + 1) % step == 0);
  }
  return a;
}

Architecture read_mixtral(const io::JsonFile& config, const std::string&) {
  Architecture a = read_llama_line(config, 1e-5);
  a.rope = read_rope(config, a.head_dim, a.max_positions, 1e6, false);
  const int64_t window = config.integer_or("sliding_window", 0, 0, kMaxSize);
  a.window.assign(static_cast<size_t>(a.layers), window);
  a.experts = {config.integer_or("num_local_experts", 8, 1, 65536), 0, a.intermediate, true};
  a.experts.per_token = config.integer_or("num_experts_per_tok", 2, 1, a.experts.count);
  return a;
}

Architecture read_gemma(const io::JsonFile& config) {
  Architecture a = read_llama_line(config, 1e-6);
  a.head_dim = config.integer_or("head_dim", 256, 1, kMaxSize);
  a.norm = NormKind::kRmsUnitOffset;
  a.placement = NormPlacement::kSandwich;
  a.activation = read_activation(config, "hidden_activation", "gelu_pytorch_tanh");
  a.tied = config.boolean_or("tie_word_embeddings", true);
  a.query_key_value_bias = a.output_bias = config.boolean_or("attention_bias", false);
  a.embedding_scale = std::sqrt(static_cast<double>(a.hidden));
  a.attention_scale = 1.0 / std::sqrt(config.number_or("query_pre_attn_scalar", 256.0, 1e-3, 1e6));
  require_value(config, "use_bidirectional_attention", false);
  return a;
}

Architecture read_gemma2(const io::JsonFile& config, const std::string&) {
  Architecture a = read_gemma(config);
  a.rope = read_rope(config, a.head_dim, a.max_positions, 10000.0, false);
  a.attention_softcap = config.value().contains("attn_logit_softcapping") && !config.has("attn_logit_softcapping")
                            ? 0.0
                            : config.number_or("attn_logit_softcapping", 50.0, 0.0, 1e6);
  a.logit_softcap = config.value().contains("final_logit_softcapping") && !config.has("final_logit_softcapping")
                        ? 0.0
                        : config.number_or("final_logit_softcapping", 30.0, 0.0, 1e6);
  std::vector<bool> local = read_local_layers(config, a.layers);
  for (int64_t i = 0; local.size() < static_cast<size_t>(a.layers); ++i) local.push_back(i % 2 == 0);
  a.window = windows(local, config.integer_or("sliding_window", 4096, 1, kMaxSize));
  return a;
}

Architecture read_gemma3(const io::JsonFile& config, const std::string&) {
  Architecture a = read_gemma(config);
  a.query_key_norm = true;
  a.logit_softcap = config.number_or("final_logit_softcapping", 0.0, 0.0, 1e6);
  std::vector<bool> local = read_local_layers(config, a.layers);
  const int64_t period = config.integer_or("sliding_window_pattern", 6, 1, 4096);
  for (int64_t i = 0; local.size() < static_cast<size_t>(a.layers); ++i) local.push_back((i + 1) % period != 0);
  a.layer_is_local = local;
  a.window = windows(local, config.integer_or("sliding_window", 4096, 1, kMaxSize));
  const bool nested = config.has("rope_parameters") && config.child("rope_parameters").has("full_attention");
  if (nested) {
    const io::JsonFile ropes = config.child("rope_parameters");
    a.rope = read_rope_object(ropes.child("full_attention"), config, a.head_dim, a.max_positions, 1e6, false);
    a.local_rope = ropes.has("sliding_attention") ? read_rope_object(ropes.child("sliding_attention"), config,
                                                                     a.head_dim, a.max_positions, 1e4, false)
                                                  : a.rope;
  } else {
    a.rope = read_rope(config, a.head_dim, a.max_positions, 1e6, false);
    a.local_rope = Rope{};
    a.local_rope.type = RopeType::kDefault;
    a.local_rope.rotary_dim = a.head_dim;
    a.local_rope.theta = config.number_or("rope_local_base_freq", 1e4, 1.0, 1e12);
  }
  return a;
}

Architecture read_phi3(const io::JsonFile& config, const std::string&) {
  Architecture a = read_llama_line(config, 1e-5);
  a.fused_query_key_value = a.fused_gate_up = true;
  a.rope = read_rope(config, a.head_dim, a.max_positions, 10000.0, true);
  a.window.assign(static_cast<size_t>(a.layers), config.integer_or("sliding_window", 0, 0, kMaxSize));
  if (!config.has("pad_token_id")) a.padding_id = 32000;
  return a;
}

Architecture read_gpt2(const io::JsonFile& config, const std::string&) {
  Architecture a;
  a.vocabulary = config.integer("vocab_size", 1, kMaxSize);
  a.hidden = config.integer("n_embd", 1, kMaxSize);
  a.layers = config.integer("n_layer", 1, 4096);
  a.heads = a.key_value_heads = config.integer("n_head", 1, 65536);
  a.head_dim = a.hidden / a.heads;
  a.intermediate = config.integer_or("n_inner", 4 * a.hidden, 1, kMaxSize);
  a.max_positions = a.learned_positions = config.integer_or("n_positions", 1024, 1, kMaxSize);
  a.norm = NormKind::kLayer;
  a.norm_epsilon = config.number_or("layer_norm_epsilon", 1e-5, 0.0, 1.0);
  a.activation = read_activation(config, "activation_function", "gelu_new");
  a.gated = false;
  a.fused_query_key_value = true;
  a.query_key_value_bias = a.output_bias = a.mlp_bias = true;
  a.tied = config.boolean_or("tie_word_embeddings", true);
  a.attention_scale =
      config.boolean_or("scale_attn_weights", true) ? 1.0 / std::sqrt(static_cast<double>(a.head_dim)) : 1.0;
  a.scaled_residual_init = true;
  require_value(config, "scale_attn_by_inverse_layer_idx", false);
  require_value(config, "add_cross_attention", false);
  return a;
}

// What BERT and DistilBERT share; their keys differ.
Architecture encoder(const std::string& architecture, HeadKind classifier) {
  Architecture a;
  a.kind = ModelKind::kEncoder;
  a.head = architecture.ends_with("ForSequenceClassification") ? classifier : HeadKind::kNone;
  if (architecture.ends_with("ForMaskedLM") || architecture.ends_with("ForPreTraining")) {
    a.head = HeadKind::kLanguageModel;
    a.head_transform = a.head_bias = true;
  }
  a.norm = NormKind::kLayer;
  a.norm_epsilon = 1e-12;
  a.placement = NormPlacement::kPost;
  a.gated = false;
  a.query_key_value_bias = a.output_bias = a.mlp_bias = true;
  a.embedding_norm = true;
  a.final_norm = false;
  return a;
}

// Where the two encoders keep their sizes.
struct EncoderKeys {
  const char *hidden, *layers, *heads, *intermediate, *activation;
};

void read_encoder_sizes(const io::JsonFile& config, const EncoderKeys& keys, Architecture& a) {
  a.vocabulary = config.integer("vocab_size", 1, kMaxSize);
  a.hidden = config.integer(keys.hidden, 1, kMaxSize);
  a.layers = config.integer(keys.layers, 1, 4096);
  a.heads = a.key_value_heads = config.integer(keys.heads, 1, 65536);
  a.head_dim = a.hidden / a.heads;
  a.intermediate = config.integer(keys.intermediate, 1, kMaxSize);
  a.max_positions = a.learned_positions = config.integer_or("max_position_embeddings", 512, 1, kMaxSize);
  a.activation = read_activation(config, keys.activation, "gelu");
  a.attention_scale = 1.0 / std::sqrt(static_cast<double>(a.head_dim));
  a.labels = read_labels(config);
  a.padding_id = config.integer_or("pad_token_id", 0, -1, kMaxSize);
}

Architecture read_bert(const io::JsonFile& config, const std::string& architecture) {
  Architecture a = encoder(architecture, HeadKind::kBertClassifier);
  read_encoder_sizes(config,
                     {"hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"}, a);
  a.token_types = config.integer_or("type_vocab_size", 2, 1, kMaxSize);
  a.norm_epsilon = config.number_or("layer_norm_eps", 1e-12, 0.0, 1.0);
  a.pooler = a.head == HeadKind::kBertClassifier || architecture == "BertModel";
  a.tied = a.head == HeadKind::kLanguageModel;
  // Untied, a checkpoint has two biases, of which transformers uses the other one.
  if (a.tied) require_value(config, "tie_word_embeddings", true);
  require_value(config, "position_embedding_type", "absolute");
  require_value(config, "is_decoder", false);
  return a;
}

Architecture read_distilbert(const io::JsonFile& config, const std::string& architecture) {
  Architecture a = encoder(architecture, HeadKind::kDistilBertClassifier);
  read_encoder_sizes(config, {"dim", "n_layers", "n_heads", "hidden_dim", "activation"}, a);
  a.sinusoidal_positions = config.boolean_or("sinusoidal_pos_embds", false);
  a.tied = a.head == HeadKind::kLanguageModel && config.boolean_or("tie_word_embeddings", true);
  return a;
}

bool read_bk_activations(const io::JsonFile& config) {
  const std::string name = config.string_or(kBkActivations, "float");
  if (name == "int8" || name == "float") return name == "int8";
  throw WeightsError(
      fmt::format("{}: \"{}\" = \"{}\" is not supported, wanted float or int8", config.where(), kBkActivations, name));
}

// ResNet-BK, whose config.json is Limbeck's own: an encoder where the resolvent sees both sides of a token.
Architecture read_resnet_bk(const io::JsonFile& config, const std::string& architecture) {
  Architecture a;
  const bool causal = architecture == "ResNetBKForCausalLM";
  require_value(config, "causal", causal);
  a.kind = causal ? ModelKind::kDecoder : ModelKind::kEncoder;
  a.vocabulary = config.integer("vocab_size", 1, kMaxSize);
  a.hidden = a.head_dim = config.integer("hidden_size", 1, kMaxSize);
  a.layers = config.integer("num_hidden_layers", 1, 4096);
  a.heads = a.key_value_heads = 1;
  a.intermediate = config.integer_or("intermediate_size", 2 * a.hidden, 1, kMaxSize);
  a.max_positions = a.learned_positions = config.integer_or("max_position_embeddings", 2048, 1, kMaxSize);
  a.resolvent = {.heads = config.integer_or("bk_heads", 1, 1, 1024),
                 .height = config.number_or("bk_z", 1.0, 1e-6, 1e6),
                 .potential = config.number_or("bk_clamp", 3.0, 1e-6, 1e6),
                 .int8 = read_bk_activations(config)};
  Resolvent& r = a.resolvent;
  r.first_bias = config.number_or("bk_bias_low", 0.0, -r.potential, r.potential);
  r.last_bias = config.number_or("bk_bias_high", r.first_bias, r.first_bias, r.potential);
  a.experts.count = config.integer_or("num_experts", 0, 0, 65536);
  if (a.experts.count > 0) {
    const int64_t usual = std::min<int64_t>(2, a.experts.count);
    a.experts.per_token = config.integer_or("num_experts_per_tok", usual, 1, a.experts.count);
    a.experts.intermediate = a.intermediate;
  }
  a.norm = NormKind::kLayer;
  a.norm_epsilon = config.number_or("layer_norm_eps", 1e-5, 0.0, 1.0);
  a.placement = NormPlacement::kParallel;
  a.activation = read_activation(config, "hidden_act", "relu");
  a.gated = false;
  a.mlp_bias = config.boolean_or("mlp_bias", true);
  a.output_bias = config.boolean_or("output_bias", false);
  a.head_bias = config.boolean_or("head_bias", false);
  a.tied = config.boolean_or("tie_word_embeddings", false);
  a.padding_id = config.integer_or("pad_token_id", -1, -1, kMaxSize);
  return a;
}

const std::vector<std::string> kOldRotaryBuffers = {"**.rotary_emb.inv_freq"};

}  // namespace

std::deque<Family> shipped_families() {
  const std::vector<NameRule> same = {};
  return {
      {"llama", {"LlamaForCausalLM"}, read_llama, same, "model.", kOldRotaryBuffers},
      {"mistral", {"MistralForCausalLM"}, read_mistral, same, "model.", kOldRotaryBuffers},
      {"qwen2", {"Qwen2ForCausalLM"}, read_qwen2, same, "model.", kOldRotaryBuffers},
      {"qwen3", {"Qwen3ForCausalLM"}, read_qwen3, same, "model.", {}},
      {"qwen3_moe", {"Qwen3MoeForCausalLM"}, read_qwen3_moe, same, "model.", {}},
      {"mixtral",
       {"MixtralForCausalLM"},
       read_mixtral,
       {{"layers.{}.mlp.gate", "layers.{}.block_sparse_moe.gate"},
        {"layers.{}.mlp.experts.{}.gate_proj", "layers.{}.block_sparse_moe.experts.{}.w1"},
        {"layers.{}.mlp.experts.{}.up_proj", "layers.{}.block_sparse_moe.experts.{}.w3"},
        {"layers.{}.mlp.experts.{}.down_proj", "layers.{}.block_sparse_moe.experts.{}.w2"}},
       "model.",
       kOldRotaryBuffers},
      {"gemma2", {"Gemma2ForCausalLM"}, read_gemma2, same, "model.", {}},
      {"gemma3", {"Gemma3ForCausalLM"}, read_gemma3, same, "model.", {}},
      {"phi3", {"Phi3ForCausalLM"}, read_phi3, same, "model.", kOldRotaryBuffers},
      {"gpt2",
       {"GPT2LMHeadModel"},
       read_gpt2,
       {{"embed_tokens", "wte"},
        {"embed_positions", "wpe"},
        {"layers.{}.input_layernorm", "h.{}.ln_1"},
        {"layers.{}.post_attention_layernorm", "h.{}.ln_2"},
        {"layers.{}.self_attn.qkv_proj", "h.{}.attn.c_attn", true},
        {"layers.{}.self_attn.o_proj", "h.{}.attn.c_proj", true},
        {"layers.{}.mlp.up_proj", "h.{}.mlp.c_fc", true},
        {"layers.{}.mlp.down_proj", "h.{}.mlp.c_proj", true},
        {"norm", "ln_f"}},
       "transformer.",
       {"**.attn.bias", "**.attn.masked_bias"}},
      {"bert",
       {"BertModel", "BertForSequenceClassification", "BertForMaskedLM", "BertForPreTraining"},
       read_bert,
       {{"embed_tokens", "embeddings.word_embeddings"},
        {"embed_positions", "embeddings.position_embeddings"},
        {"embed_token_types", "embeddings.token_type_embeddings"},
        {"embed_norm", "embeddings.LayerNorm"},
        {"layers.{}.self_attn.q_proj", "encoder.layer.{}.attention.self.query"},
        {"layers.{}.self_attn.k_proj", "encoder.layer.{}.attention.self.key"},
        {"layers.{}.self_attn.v_proj", "encoder.layer.{}.attention.self.value"},
        {"layers.{}.self_attn.o_proj", "encoder.layer.{}.attention.output.dense"},
        {"layers.{}.post_attention_layernorm", "encoder.layer.{}.attention.output.LayerNorm"},
        {"layers.{}.mlp.up_proj", "encoder.layer.{}.intermediate.dense"},
        {"layers.{}.mlp.down_proj", "encoder.layer.{}.output.dense"},
        {"layers.{}.post_feedforward_layernorm", "encoder.layer.{}.output.LayerNorm"},
        {"pooler", "pooler.dense"},
        {"head_dense", "cls.predictions.transform.dense"},
        {"head_norm", "cls.predictions.transform.LayerNorm"},
        {"lm_head", "cls.predictions.decoder"},
        {"lm_head.bias", "cls.predictions.bias"}},
       "bert.",
       {"**.position_ids", "cls.**", "**.pooler.dense.*"}},
      {"distilbert",
       {"DistilBertModel", "DistilBertForSequenceClassification", "DistilBertForMaskedLM"},
       read_distilbert,
       {{"embed_tokens", "embeddings.word_embeddings"},
        {"embed_positions", "embeddings.position_embeddings"},
        {"embed_norm", "embeddings.LayerNorm"},
        {"layers.{}.self_attn.q_proj", "transformer.layer.{}.attention.q_lin"},
        {"layers.{}.self_attn.k_proj", "transformer.layer.{}.attention.k_lin"},
        {"layers.{}.self_attn.v_proj", "transformer.layer.{}.attention.v_lin"},
        {"layers.{}.self_attn.o_proj", "transformer.layer.{}.attention.out_lin"},
        {"layers.{}.post_attention_layernorm", "transformer.layer.{}.sa_layer_norm"},
        {"layers.{}.mlp.up_proj", "transformer.layer.{}.ffn.lin1"},
        {"layers.{}.mlp.down_proj", "transformer.layer.{}.ffn.lin2"},
        {"layers.{}.post_feedforward_layernorm", "transformer.layer.{}.output_layer_norm"},
        {"head_dense", "vocab_transform"},
        {"head_norm", "vocab_layer_norm"},
        {"lm_head", "vocab_projector"}},
       "distilbert.",
       {"**.position_ids", "vocab_*.*"}},
      {.name = "resnet_bk",
       .architectures = {"ResNetBKForCausalLM", "ResNetBKForMaskedLM"},
       .read = read_resnet_bk,
       .names = same,
       .prefix = "model.",
       .ignored = {},
       .summary = "a tridiagonal resolvent in place of attention, O(n), beside experts or a dense MLP",
       .of_limbeck = true},
  };
}

}  // namespace limbeck::models
