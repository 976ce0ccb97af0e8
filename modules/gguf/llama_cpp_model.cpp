#include "modules/gguf/llama_cpp_model.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "modules/errors.h"
#include "modules/models/network/rope_table.h"

namespace limbeck::gguf {
namespace {

using models::Activation;
using models::Architecture;
using models::RopeType;

struct Family {
  const char *ours, *theirs;
  bool neighbours = false;
};
constexpr Family kFamilies[] = {{"llama", "llama", true}, {"mistral", "llama", true}, {"mixtral", "llama", true},
                                {"qwen2", "qwen2"},       {"qwen3", "qwen3"},         {"qwen3_moe", "qwen3moe"},
                                {"gemma2", "gemma2"},     {"gemma3", "gemma3"},       {"phi3", "phi3"},
                                {"gpt2", "gpt2"}};

const Family& family_of(const Architecture& a, const std::string& where) {
  std::vector<std::string> known;
  for (const Family& family : kFamilies) {
    if (a.family == family.ours) return family;
    known.emplace_back(family.ours);
  }
  throw UsageError(fmt::format("{}: models of the family {} are not written as GGUF, wanted one of {}", where, a.family,
                               fmt::join(known, ", ")));
}

bool is_gemma(const Architecture& a) { return a.family == "gemma2" || a.family == "gemma3"; }

double attention_scale(const Architecture& a) {
  const int64_t scalar =
      is_gemma(a) ? gemma_query_scalar(a.family, a.layers, a.hidden, a.heads, a.head_dim) : a.head_dim;
  return 1.0 / std::sqrt(static_cast<double>(scalar));
}

bool has_usual_windows(const Architecture& a) {
  const int64_t period = gemma_window_period(a.family);
  int64_t size = 0;
  for (int64_t layer = 0; layer < a.layers; ++layer) {
    const int64_t window = a.window.at(static_cast<size_t>(layer));
    const bool local = (layer + 1) % period != 0;
    if (local != (window > 0) || (local && size > 0 && window != size)) return false;
    if (local) size = window;
  }
  return true;
}

std::string rope_fault(const Architecture& a) {
  if (a.family == "gpt2") return "";
  const RopeType type = a.rope.type;
  if (type == RopeType::kLlama3 && std::string(family_of(a, "").theirs) != "llama")
    return "a rope_type of \"llama3\" is read there for llama alone";
  if (type != RopeType::kDefault && type != RopeType::kLinear && type != RopeType::kLlama3 && type != RopeType::kYarn)
    return "of the rope scalings, default, linear, yarn and llama3 alone are written (no dynamic or longrope)";
  if (type == RopeType::kYarn && (a.rope.beta_fast != 32.0 || a.rope.beta_slow != 1.0 || !a.rope.truncate))
    return "yarn with other numbers than beta_fast 32, beta_slow 1 and truncate is not written";
  if (a.family == "gemma3" && a.local_rope.type != RopeType::kDefault)
    return "the rope of sliding layers has a scaling, which is not read there";
  return "";
}

// What llama.cpp would compute otherwise, or "".
std::string fault_of(const Architecture& a) {
  const bool gemma = is_gemma(a), gpt2 = a.family == "gpt2";
  const bool llama = a.family == "llama" || a.family == "mistral" || a.family == "mixtral";
  const bool own_head_size = llama || gemma || a.query_key_norm;
  if (a.other_mixer.make) return fmt::format("its {} has no word there", a.other_mixer.name);
  if (a.activation != (gemma || gpt2 ? Activation::kGeluTanh : Activation::kSilu))
    return gemma || gpt2 ? "its activation is another one than gelu_new" : "its activation is another one than silu";
  if (!own_head_size && a.head_dim * a.heads != a.hidden)
    return fmt::format("head_dim is {}, wanted hidden size over heads", a.head_dim);
  if (a.output_bias && !llama && !gpt2) return "\"attention_bias\": true is not read there";
  if (std::abs(a.attention_scale / attention_scale(a) - 1.0) > 1e-6)
    return fmt::format("queries are scaled by {:g}, and there by {:g} (query_pre_attn_scalar)", a.attention_scale,
                       attention_scale(a));
  if (gemma && !has_usual_windows(a)) return "its layers have other windows than the family's usual ones (layer_types)";
  if (a.family == "gemma2" && (a.attention_softcap == 0.0 || a.logit_softcap == 0.0))
    return "Gemma 2 without a soft cap of attention or of logits is not read there";
  if (a.family == "gemma2" && !a.tied) return "Gemma 2 with a head of its own is not read there";
  if (a.experts.count > 0 && !a.experts.normalize) return "\"norm_topk_prob\": false is not read there";
  for (int64_t layer = 0; a.experts.count > 0 && layer < a.layers; ++layer) {
    if (!a.sparse(layer)) return fmt::format("layer {} has no experts, which is not read there", layer);
  }
  return rope_fault(a);
}

// By our module within a layer.
const std::map<std::string, std::string>& names_in_layer() {
  static const std::map<std::string, std::string> names = {{"input_layernorm", "attn_norm"},
                                                           {"self_attn.q_proj", "attn_q"},
                                                           {"self_attn.k_proj", "attn_k"},
                                                           {"self_attn.v_proj", "attn_v"},
                                                           {"self_attn.qkv_proj", "attn_qkv"},
                                                           {"self_attn.q_norm", "attn_q_norm"},
                                                           {"self_attn.k_norm", "attn_k_norm"},
                                                           {"self_attn.o_proj", "attn_output"},
                                                           {"pre_feedforward_layernorm", "ffn_norm"},
                                                           {"post_feedforward_layernorm", "post_ffw_norm"},
                                                           {"mlp.gate_proj", "ffn_gate"},
                                                           {"mlp.up_proj", "ffn_up"},
                                                           {"mlp.gate_up_proj", "ffn_up"},
                                                           {"mlp.down_proj", "ffn_down"},
                                                           {"mlp.gate", "ffn_gate_inp"},
                                                           {"mlp.experts.gate_proj", "ffn_gate_exps"},
                                                           {"mlp.experts.up_proj", "ffn_up_exps"},
                                                           {"mlp.experts.down_proj", "ffn_down_exps"}};
  return names;
}

const std::map<std::string, std::string>& names_outside() {
  static const std::map<std::string, std::string> names = {{"embed_tokens", "token_embd"},
                                                           {"embed_positions", "position_embd"},
                                                           {"norm", "output_norm"},
                                                           {"lm_head", "output"}};
  return names;
}

uint32_t count(int64_t number) { return static_cast<uint32_t>(number); }

}  // namespace

int64_t gemma_query_scalar(const std::string& family, int64_t layers, int64_t hidden, int64_t heads, int64_t head_dim) {
  const bool largest = (family == "gemma2" && layers == 46) || (family == "gemma3" && layers == 62);
  return largest ? hidden / heads : head_dim;
}

at::Tensor rope_divisors(const models::Rope& rope, int64_t max_positions) {
  models::Rope plain = rope;
  plain.type = RopeType::kDefault;
  const at::Tensor scaled = models::RopeTable(rope, max_positions).inverse_frequencies(1);
  return models::RopeTable(plain, max_positions).inverse_frequencies(1) / scaled;
}

int64_t gemma_window_period(const std::string& family) { return family == "gemma2" ? 2 : 6; }

LlamaCppModel::LlamaCppModel(const Architecture& architecture, const std::string& where) : a_(architecture) {
  const Family& family = family_of(architecture, where);
  name_ = family.theirs;
  neighbours_ = family.neighbours;
  const std::string fault = fault_of(architecture);
  if (fault.empty()) return;
  throw UsageError(
      fmt::format("{}: this {} model cannot be written as GGUF, because llama.cpp would compute something else: {}; "
                  "use it from its "
                  "own folder",
                  where, architecture.family, fault));
}

std::string LlamaCppModel::tensor_name(const std::string& module, const std::string& leaf) const {
  const std::string layers = "layers.";
  const auto& outside = names_outside();
  if (const auto found = outside.find(module); found != outside.end()) return found->second + "." + leaf;
  if (module.starts_with(layers)) {
    const size_t dot = module.find('.', layers.size());
    const std::string number = module.substr(layers.size(), dot - layers.size());
    const std::string inside = dot == std::string::npos ? "" : module.substr(dot + 1);
    const auto found = names_in_layer().find(inside);
    const bool sandwich = a_.placement == models::NormPlacement::kSandwich;
    if (inside == "post_attention_layernorm")
      return fmt::format("blk.{}.{}.{}", number, sandwich ? "post_attention_norm" : "ffn_norm", leaf);
    if (found != names_in_layer().end()) return fmt::format("blk.{}.{}.{}", number, found->second, leaf);
  }
  throw UsageError(
      fmt::format("[{}] {} has no name in llama.cpp's {}: the model cannot be written as GGUF", module, leaf, name_));
}

std::vector<int64_t> LlamaCppModel::row_order(const std::string& module, int64_t rows) const {
  std::vector<int64_t> order(static_cast<size_t>(rows));
  std::iota(order.begin(), order.end(), 0);
  if (!neighbours_ || (!module.ends_with("self_attn.q_proj") && !module.ends_with("self_attn.k_proj"))) return order;
  const int64_t half = a_.head_dim / 2;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t head = row / a_.head_dim, within = row % a_.head_dim;
    order[static_cast<size_t>(row)] = head * a_.head_dim + within % 2 * half + within / 2;
  }
  return order;
}

int64_t LlamaCppModel::context_length() const {
  if (a_.family == "gpt2") return a_.learned_positions;
  int64_t length = a_.max_positions;
  if (is_gemma(a_)) return length;
  for (const int64_t window : a_.window) {
    if (window > 0) length = std::min(length, window);
  }
  return length;
}

std::optional<at::Tensor> LlamaCppModel::rope_factors() const {
  if (a_.rope.type != RopeType::kLlama3) return std::nullopt;
  return rope_divisors(a_.rope, a_.max_positions);
}

io::GgufMetadata LlamaCppModel::hyperparameters() const {
  io::GgufMetadata all;
  const auto add = [&](const std::string& key, io::GgufValue value) {
    all.emplace_back(name_ + "." + key, std::move(value));
  };
  const auto real = [](double number) { return static_cast<float>(number); };
  const bool rms = a_.norm != models::NormKind::kLayer;
  add("vocab_size", count(a_.vocabulary));
  add("context_length", count(context_length()));
  add("embedding_length", count(a_.hidden));
  add("block_count", count(a_.layers));
  add("feed_forward_length", count(a_.intermediate));
  add("attention.head_count", count(a_.heads));
  add("attention.head_count_kv", count(a_.key_value_heads));
  add("attention.key_length", count(a_.head_dim));
  add("attention.value_length", count(a_.head_dim));
  add(rms ? "attention.layer_norm_rms_epsilon" : "attention.layer_norm_epsilon", real(a_.norm_epsilon));
  if (a_.rope.type != RopeType::kNone) {
    add("rope.dimension_count", count(a_.rope.rotary_dim));
    add("rope.freq_base", real(a_.rope.theta));
  }
  const bool yarn = a_.rope.type == RopeType::kYarn;
  if (yarn || a_.rope.type == RopeType::kLinear) {
    add("rope.scaling.type", std::string(yarn ? "yarn" : "linear"));
    add("rope.scaling.factor", real(a_.rope.factor));
  }
  if (yarn) {
    // cos and sin are scaled by 1 + 0.1 log(factor) there without being told.
    add("rope.scaling.original_context_length", count(a_.rope.original_positions));
    add("rope.scaling.attn_factor", real(a_.rope.attention_factor / (1.0 + 0.1 * std::log(a_.rope.factor))));
  }
  if (a_.family == "gemma3") add("rope.freq_base_swa", real(a_.local_rope.theta));
  if (is_gemma(a_)) add("attention.sliding_window", count(*std::max_element(a_.window.begin(), a_.window.end())));
  if (a_.attention_softcap > 0.0) add("attn_logit_softcapping", real(a_.attention_softcap));
  if (a_.logit_softcap > 0.0) add("final_logit_softcapping", real(a_.logit_softcap));
  if (a_.experts.count > 0) {
    add("expert_count", count(a_.experts.count));
    add("expert_used_count", count(a_.experts.per_token));
    add("expert_feed_forward_length", count(a_.experts.intermediate));
  }
  return all;
}

}  // namespace limbeck::gguf
