#include "tests/support/tiny_models.h"

#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "tests/support/temporary_folder.h"

namespace limbeck::test {

namespace {

using Json = nlohmann::json;

Json decoder(const std::string& architecture) {
  return {{"architectures", {architecture}}, {"vocab_size", 97},         {"hidden_size", 32}, {"num_hidden_layers", 2},
          {"num_attention_heads", 4},        {"num_key_value_heads", 2}, {"head_dim", 8},     {"intermediate_size", 48},
          {"max_position_embeddings", 64},   {"eos_token_id", 2},        {"dtype", "float32"}};
}

Json with(Json base, const Json& more) {
  base.update(more);
  return base;
}

const std::map<std::string, Json>& configs() {
  static const std::map<std::string, Json> table = {
      {"llama", decoder("LlamaForCausalLM")},
      {"mistral", with(decoder("MistralForCausalLM"), {{"sliding_window", 5}})},
      {"qwen2", with(decoder("Qwen2ForCausalLM"), {{"tie_word_embeddings", true}})},
      {"qwen3", decoder("Qwen3ForCausalLM")},
      {"qwen3_moe", with(decoder("Qwen3MoeForCausalLM"),
                         {{"num_experts", 4}, {"num_experts_per_tok", 2}, {"moe_intermediate_size", 16}})},
      {"mixtral", with(decoder("MixtralForCausalLM"), {{"num_local_experts", 4}, {"num_experts_per_tok", 2}})},
      {"gemma2", with(decoder("Gemma2ForCausalLM"), {{"sliding_window", 5}})},
      {"gemma3", with(decoder("Gemma3ForCausalLM"), {{"sliding_window", 5}})},
      {"phi3", decoder("Phi3ForCausalLM")},
      {"gpt2",
       {{"architectures", {"GPT2LMHeadModel"}},
        {"vocab_size", 97},
        {"n_embd", 32},
        {"n_layer", 2},
        {"n_head", 4},
        {"n_positions", 64},
        {"eos_token_id", 2}}},
      {"resnet_bk",
       {{"architectures", {"ResNetBKForCausalLM"}},
        {"model_type", "resnet_bk"},
        {"vocab_size", 97},
        {"hidden_size", 32},
        {"num_hidden_layers", 2},
        {"intermediate_size", 48},
        {"max_position_embeddings", 64},
        {"num_experts", 4},
        {"num_experts_per_tok", 2},
        {"bk_heads", 2},
        {"eos_token_id", 2}}},
      {"bert",
       {{"architectures", {"BertForSequenceClassification"}},
        {"vocab_size", 97},
        {"hidden_size", 32},
        {"num_hidden_layers", 2},
        {"num_attention_heads", 4},
        {"intermediate_size", 48},
        {"max_position_embeddings", 64}}},
      {"distilbert",
       {{"architectures", {"DistilBertForSequenceClassification"}},
        {"vocab_size", 97},
        {"dim", 32},
        {"n_layers", 2},
        {"n_heads", 4},
        {"hidden_dim", 48},
        {"max_position_embeddings", 64}}}};
  return table;
}

}  // namespace

std::vector<std::string> tiny_families() {
  std::vector<std::string> names;
  for (const auto& [name, config] : configs()) names.push_back(name);
  return names;
}

std::filesystem::path tiny_model(const std::string& family) {
  static int counter = 0;
  static const TemporaryFolder all;  // of this process; removed at its end
  const auto folder = all.path() / std::to_string(counter++);
  std::filesystem::create_directories(folder);
  std::ofstream(folder / "config.json") << configs().at(family).dump(2);
  return folder;
}

}  // namespace limbeck::test
