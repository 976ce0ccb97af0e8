#include "modules/gguf/llama_cpp_config.h"

#include <ATen/ops/allclose.h>
#include <ATen/ops/empty.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "modules/errors.h"
#include "modules/gguf/llama_cpp_model.h"
#include "modules/io/tensor_name.h"
#include "modules/models/family/config_reader.h"

namespace limbeck::gguf {
namespace {

using models::kMaxSize;

class ConfigOfFile {
 public:
  explicit ConfigOfFile(const io::GgufReader& file)
      : file_(file), said_(file.metadata()), name_(said_.string("general.architecture")) {}

  FileConfig read() {
    used("vocab_size");  // the rows of the embeddings say it
    if (name_ == "gpt2")
      gpt2();
    else
      llama_line();
    special_tokens();
    const std::string own = name_ + ".";
    for (const auto& [key, value] : said_.value().items()) {
      if (!key.starts_with(own) || used_.contains(key)) continue;
      warn(fmt::format("{}: key {} is not read: if it changes what the model computes, the folder computes otherwise",
                       said_.where(), io::in_quotes(key)));
    }
    return std::move(result_);
  }

 private:
  // Of the architecture's own numbers.
  std::string used(const std::string& key) {
    used_.insert(name_ + "." + key);
    return name_ + "." + key;
  }
  int64_t size(const std::string& key) { return said_.integer(used(key), 1, kMaxSize); }
  int64_t size_or(const std::string& key, int64_t fallback) {
    return said_.integer_or(used(key), fallback, 1, kMaxSize);
  }
  double number_or(const std::string& key, double fallback, double low, double high) {
    return said_.number_or(used(key), fallback, low, high);
  }
  bool has(const std::string& tensor) const { return file_.find(tensor) != nullptr; }
  [[noreturn]] void refuse(const std::string& key, const std::string& what) const {
    throw WeightsError(fmt::format("{}: key \"{}.{}\" {}", said_.where(), name_, key, what));
  }
  void warn(std::string line) { result_.warnings.push_back(std::move(line)); }

  void model(const char* architecture, const char* type) {
    config_["architectures"] = {architecture};
    config_["model_type"] = type;
    const io::StoredGgufTensor* embedding = file_.find("token_embd.weight");
    if (embedding == nullptr || embedding->shape.size() != 2)
      throw WeightsError(said_.where() + ": has no tensor \"token_embd.weight\" of rows and columns: is it a model?");
    vocabulary_ = embedding->shape[0];
    config_["vocab_size"] = vocabulary_;
    config_["tie_word_embeddings"] = !has("output.weight");
  }

  // No more than the file can have: what follows takes memory for each.
  int64_t layers() {
    const int64_t layers = size("block_count");
    const auto most = static_cast<int64_t>(file_.tensors().size());
    if (layers > most) refuse("block_count", fmt::format("= {}, and the file has {} tensors", layers, most));
    return layers;
  }

  int64_t experts() {
    const int64_t experts = said_.integer(used("expert_count"), 1, 65'536);
    for (int64_t layer = 0; layer < layers_; ++layer) {
      const io::StoredGgufTensor* gate = file_.find(fmt::format("blk.{}.ffn_gate_exps.weight", layer));
      if (gate != nullptr && gate->shape.size() == 3 && gate->shape[0] == experts) continue;
      refuse("expert_count", fmt::format("= {}, and layer {} has no tensor \"blk.{}.ffn_gate_exps.weight\" of as many",
                                         experts, layer, layer));
    }
    return experts;
  }

  void gpt2() {
    model("GPT2LMHeadModel", "gpt2");
    config_["n_embd"] = size("embedding_length");
    config_["n_layer"] = layers();
    config_["n_head"] = size("attention.head_count");
    config_["n_inner"] = size("feed_forward_length");
    config_["n_positions"] = size("context_length");
    config_["layer_norm_epsilon"] = number_or("attention.layer_norm_epsilon", 1e-5, 0.0, 1.0);
    config_["activation_function"] = "gelu_new";
    for (const char* implied : {"attention.head_count_kv", "attention.key_length", "attention.value_length"})
      used(implied);
  }

  void llama_line() {
    struct Row {
      const char *theirs, *architecture, *type;
      void (ConfigOfFile::*more)();
    };
    static const Row rows[] = {{"llama", "LlamaForCausalLM", "llama", &ConfigOfFile::llama},
                               {"qwen2", "Qwen2ForCausalLM", "qwen2", &ConfigOfFile::nothing_more},
                               {"qwen3", "Qwen3ForCausalLM", "qwen3", &ConfigOfFile::nothing_more},
                               {"qwen3moe", "Qwen3MoeForCausalLM", "qwen3_moe", &ConfigOfFile::qwen3_moe},
                               {"gemma2", "Gemma2ForCausalLM", "gemma2", &ConfigOfFile::gemma2},
                               {"gemma3", "Gemma3ForCausalLM", "gemma3_text", &ConfigOfFile::gemma3},
                               {"phi3", "Phi3ForCausalLM", "phi3", &ConfigOfFile::phi3}};
    std::vector<std::string> known = {"gpt2"};
    for (const Row& row : rows) {
      known.emplace_back(row.theirs);
      if (name_ != row.theirs) continue;
      model(row.architecture, row.type);
      sizes();
      rope();
      (this->*row.more)();
      return;
    }
    throw WeightsError(fmt::format("{}: key \"general.architecture\" = {} is not read, wanted one of {}", said_.where(),
                                   io::in_quotes(name_), fmt::join(known, ", ")));
  }

  void sizes() {
    hidden_ = size("embedding_length"), layers_ = layers();
    heads_ = said_.integer(used("attention.head_count"), 1, 65'536);
    head_dim_ = size_or("attention.key_length", std::max<int64_t>(hidden_ / heads_, 1));
    config_["hidden_size"] = hidden_;
    config_["num_hidden_layers"] = layers_;
    config_["num_attention_heads"] = heads_;
    config_["num_key_value_heads"] = said_.integer_or(used("attention.head_count_kv"), heads_, 1, 65'536);
    config_["head_dim"] = head_dim_;
    config_["intermediate_size"] = size("feed_forward_length");
    config_["max_position_embeddings"] = size("context_length");
    config_["rms_norm_eps"] = number_or("attention.layer_norm_rms_epsilon", 1e-6, 0.0, 1.0);
    config_["hidden_act"] = "silu";
    if (size_or("attention.value_length", head_dim_) != head_dim_)
      refuse("attention.value_length", fmt::format("is another one than key_length {}, which is not read", head_dim_));
  }

  void rope() {
    config_["rope_theta"] = number_or("rope.freq_base", 10'000.0, 1.0, 1e12);
    const int64_t turned = size_or("rope.dimension_count", head_dim_);
    if (turned != head_dim_ && name_ != "phi3")
      refuse("rope.dimension_count",
             fmt::format("= {} of heads of {}, which is read for phi3 alone", turned, head_dim_));
    if (turned != head_dim_)
      config_["partial_rotary_factor"] = static_cast<double>(turned) / static_cast<double>(head_dim_);
    used("rope.scaling.finetuned");
    const std::string type = said_.string_or(used("rope.scaling.type"), "none");
    if (type != "none" && type != "linear" && type != "yarn")
      refuse("rope.scaling.type", fmt::format("= {}, wanted none, linear or yarn", io::in_quotes(type)));
    if (type != "none") config_["rope_scaling"] = scaling(type);
    if (const io::StoredGgufTensor* factors = file_.find("rope_freqs.weight")) divided_rope(*factors);
  }

  nlohmann::json scaling(const std::string& type) {
    const double factor = said_.number(used("rope.scaling.factor"), 1e-3, 1e6);
    nlohmann::json rope = {{"rope_type", type}, {"factor", factor}};
    if (type == "linear") return rope;
    rope["original_max_position_embeddings"] = size("rope.scaling.original_context_length");
    // cos and sin are scaled by 1 + 0.1 log(factor) in llama.cpp without being told, and in config.json too.
    const double more = number_or("rope.scaling.attn_factor", 1.0, 1e-6, 1e6);
    if (std::abs(more - 1.0) <= 1e-6) return rope;
    // The digits that float32 has of it, of which a 1.2 comes back as 1.2.
    rope["attention_factor"] = std::stod(fmt::format("{:.7g}", more * (1.0 + 0.1 * std::log(factor))));
    return rope;
  }

  // Llama 3's scaling is in the file as what it makes of each frequency: the numbers of config.json are those that make
  // the same.
  void divided_rope(const io::StoredGgufTensor& tensor) {
    const std::string what = said_.where() + ": tensor \"rope_freqs.weight\"";
    if (tensor.type != io::GgufType::kFloat32 || tensor.shape != std::vector<int64_t>{head_dim_ / 2})
      throw WeightsError(fmt::format("{} is {} [{}], wanted F32 [{}]", what, io::traits_of(tensor.type).name,
                                     fmt::join(tensor.shape, ","), head_dim_ / 2));
    const at::Tensor stored = at::empty({head_dim_ / 2}, at::kFloat);
    file_.read(tensor, 0, stored.mutable_data_ptr(), stored.nbytes());
    models::Rope rope;
    rope.type = models::RopeType::kLlama3;
    rope.theta = config_["rope_theta"].get<double>();
    rope.rotary_dim = head_dim_;
    rope.factor = stored.max().item<float>();
    if (rope.factor == 1.0) return;
    if (!(rope.factor > 1.0 && rope.factor <= 1e6) || config_.contains("rope_scaling"))
      throw WeightsError(what + " holds no factors from 1 to 10^6 of an unscaled rope, which alone are read");
    std::vector<int64_t> lengths = {8192};
    for (int64_t length = 16; length <= int64_t{1} << 20; length *= 2) lengths.push_back(length);
    for (const int64_t length : lengths) {
      rope.original_positions = length;
      const int64_t positions = config_["max_position_embeddings"].get<int64_t>();
      if (!at::allclose(rope_divisors(rope, positions), stored, /*rtol=*/1e-5, /*atol=*/0.0)) continue;
      config_["rope_scaling"] = {{"rope_type", "llama3"},
                                 {"factor", rope.factor},
                                 {"low_freq_factor", rope.low_freq_factor},
                                 {"high_freq_factor", rope.high_freq_factor},
                                 {"original_max_position_embeddings", length}};
      return;
    }
    throw WeightsError(
        what +
        " holds factors that no rope of type llama3 with low_freq_factor 1, high_freq_factor 4 and an original "
        "length of a power of two has: such a model is read from its own folder alone");
  }

  void nothing_more() {}

  void llama() {
    config_["attention_bias"] = has("blk.0.attn_q.bias");
    config_["mlp_bias"] = has("blk.0.ffn_up.bias");
    const bool dense = said_.integer_or(used("expert_count"), 0, 0, 65'536) == 0;
    used("expert_used_count"), used("expert_feed_forward_length");  // Mixtral's experts have the model's
    if (dense) return;
    config_["architectures"] = {"MixtralForCausalLM"};
    config_["model_type"] = "mixtral";
    config_["num_local_experts"] = experts();
    config_["num_experts_per_tok"] = said_.integer(used("expert_used_count"), 1, 65'536);
    config_["sliding_window"] = nullptr;
    config_.erase("attention_bias");
    config_.erase("mlp_bias");
  }

  void qwen3_moe() {
    config_["num_experts"] = experts();
    config_["num_experts_per_tok"] = said_.integer(used("expert_used_count"), 1, 65'536);
    config_["moe_intermediate_size"] = size("expert_feed_forward_length");
    config_["norm_topk_prob"] = true;
    config_["decoder_sparse_step"] = 1;
    config_["mlp_only_layers"] = nlohmann::json::array();
  }

  void gemma(const std::string& family, int64_t window) {
    config_.erase("hidden_act");
    config_["hidden_activation"] = "gelu_pytorch_tanh";
    config_["query_pre_attn_scalar"] = gemma_query_scalar(family, layers_, hidden_, heads_, head_dim_);
    config_["sliding_window"] = size_or("attention.sliding_window", window);
    const int64_t period = gemma_window_period(family);
    nlohmann::json layers = nlohmann::json::array();
    for (int64_t layer = 1; layer <= std::min<int64_t>(layers_, 4096); ++layer)
      layers.push_back(layer % period == 0 ? "full_attention" : "sliding_attention");
    config_["layer_types"] = std::move(layers);
  }

  void gemma2() {
    gemma("gemma2", 4096);
    config_["attn_logit_softcapping"] = number_or("attn_logit_softcapping", 50.0, 1e-3, 1e6);
    config_["final_logit_softcapping"] = number_or("final_logit_softcapping", 30.0, 1e-3, 1e6);
  }

  void gemma3() {
    gemma("gemma3", 1024);
    config_["rope_local_base_freq"] = number_or("rope.freq_base_swa", 10'000.0, 1.0, 1e12);
    const double cap = number_or("final_logit_softcapping", 0.0, 0.0, 1e6);
    if (cap > 0.0) config_["final_logit_softcapping"] = cap;
  }

  void phi3() {
    const int64_t window = said_.integer_or(used("attention.sliding_window"), 0, 0, kMaxSize);
    if (window > 0) config_["sliding_window"] = window;
    const std::string original = used("rope.scaling.original_context_length");
    if (said_.has(original)) config_["original_max_position_embeddings"] = said_.integer(original, 1, kMaxSize);
    config_["pad_token_id"] = nullptr;  // without the key it would be 32000
  }

  void special_tokens() {
    const auto id = [this](const char* key) -> std::optional<int64_t> {
      const std::string whole = fmt::format("tokenizer.ggml.{}_token_id", key);
      if (!said_.has(whole)) return std::nullopt;
      return said_.integer(whole, 0, vocabulary_ - 1);
    };
    const auto both = [this](const char* key, int64_t value) { config_[key] = generation_[key] = value; };
    config_["bos_token_id"] = config_["eos_token_id"] = nullptr;  // without the keys they would be the family's usual
    if (const auto begin = id("bos")) both("bos_token_id", *begin);
    if (const auto padding = id("padding")) both("pad_token_id", *padding);
    std::vector<int64_t> ends;
    for (const char* key : {"eos", "eot", "eom"}) {
      const auto end = id(key);
      if (end && std::find(ends.begin(), ends.end(), *end) == ends.end()) ends.push_back(*end);
    }
    if (!ends.empty()) config_["eos_token_id"] = ends[0];
    if (!ends.empty()) generation_["eos_token_id"] = ends;
  }

  const io::GgufReader& file_;
  const io::JsonFile& said_;
  std::string name_;
  FileConfig result_;
  nlohmann::json &config_ = result_.config, &generation_ = result_.generation;
  std::set<std::string> used_;
  int64_t vocabulary_ = 0, hidden_ = 0, layers_ = 0, heads_ = 0, head_dim_ = 0;
};

}  // namespace

FileConfig read_file_config(const io::GgufReader& file) { return ConfigOfFile(file).read(); }

}  // namespace limbeck::gguf
