#include "modules/models/family/config_reader.h"

#include <fmt/format.h>

#include <cmath>

#include "modules/errors.h"

namespace limbeck::models {

namespace {

RopeType rope_type(const std::string& name, const io::JsonFile& where) {
  if (name == "default") return RopeType::kDefault;
  if (name == "linear") return RopeType::kLinear;
  if (name == "dynamic") return RopeType::kDynamic;
  if (name == "yarn") return RopeType::kYarn;
  if (name == "longrope" || name == "su") return RopeType::kLongRope;
  if (name == "llama3") return RopeType::kLlama3;
  throw WeightsError(
      fmt::format("{}: rope_type \"{}\" is not supported: wanted default, linear, dynamic, yarn, "
                  "longrope or llama3",
                  where.where(), name));
}

std::vector<double> read_factors(const io::JsonFile& rope, const std::string& key, int64_t count) {
  const nlohmann::json& value = rope.value();
  if (!rope.has(key) || !value.at(key).is_array() || static_cast<int64_t>(value.at(key).size()) != count) {
    throw WeightsError(
        fmt::format("{}: \"{}\" is missing or of another length, wanted {} numbers (half of the rotary "
                    "dimensions)",
                    rope.where(), key, count));
  }
  std::vector<double> factors;
  for (const auto& item : value.at(key)) {
    if (!item.is_number() || !(item.get<double>() > 0)) {
      throw WeightsError(fmt::format("{}: \"{}\" holds {}, wanted positive numbers", rope.where(), key, item.dump()));
    }
    factors.push_back(item.get<double>());
  }
  return factors;
}

double yarn_scale(double factor, double scale) { return factor <= 1.0 ? 1.0 : 0.1 * scale * std::log(factor) + 1.0; }

void read_scaling(const io::JsonFile& rope, const io::JsonFile& config, int64_t max_positions, Rope& result) {
  const bool beside = config.has("original_max_position_embeddings");
  result.original_positions = beside ? config.integer("original_max_position_embeddings", 1, kMaxSize)
                                     : rope.integer_or("original_max_position_embeddings", max_positions, 1, kMaxSize);
  const double reach = static_cast<double>(max_positions) / static_cast<double>(result.original_positions);
  const bool derived = result.type == RopeType::kLongRope || result.type == RopeType::kYarn;
  result.factor = derived ? rope.number_or("factor", reach, 1e-3, 1e6) : rope.number("factor", 1e-3, 1e6);
  const bool given = rope.has("attention_factor");
  if (given) result.attention_factor = rope.number("attention_factor", 1e-6, 1e6);
  switch (result.type) {
    case RopeType::kYarn: {
      result.beta_fast = rope.number_or("beta_fast", 32.0, 1e-6, 1e6);
      result.beta_slow = rope.number_or("beta_slow", 1.0, 1e-6, 1e6);
      result.truncate = rope.boolean_or("truncate", true);
      const double scale = rope.number_or("mscale", 0.0, 0.0, 1e6),
                   all = rope.number_or("mscale_all_dim", 0.0, 0.0, 1e6);
      if (given) break;
      const bool both = scale > 0 && all > 0;
      result.attention_factor =
          both ? yarn_scale(result.factor, scale) / yarn_scale(result.factor, all) : yarn_scale(result.factor, 1.0);
      break;
    }
    case RopeType::kLongRope:
      result.short_factor = read_factors(rope, "short_factor", result.rotary_dim / 2);
      result.long_factor = read_factors(rope, "long_factor", result.rotary_dim / 2);
      if (!given && result.factor > 1.0) {
        result.attention_factor =
            std::sqrt(1.0 + std::log(result.factor) / std::log(static_cast<double>(result.original_positions)));
      }
      break;
    case RopeType::kLlama3:
      result.low_freq_factor = rope.number("low_freq_factor", 1e-6, 1e6);
      result.high_freq_factor = rope.number("high_freq_factor", 1e-6, 1e6);
      break;
    default:
      result.attention_factor = 1.0;
      break;  // linear and dynamic do not use it
  }
}

}  // namespace

void require_value(const io::JsonFile& config, const std::string& key, const nlohmann::json& wanted) {
  if (!config.has(key) || config.value().at(key) == wanted) return;
  throw WeightsError(fmt::format("{}: \"{}\" = {} is not supported, wanted {}", config.where(), key,
                                 config.value().at(key).dump(), wanted.dump()));
}

Rope read_rope_object(const io::JsonFile& rope, const io::JsonFile& config, int64_t head_dim, int64_t max_positions,
                      double default_theta, bool partial_allowed) {
  Rope result;
  const std::string old_type = rope.string_or("type", "default");
  result.type = rope_type(rope.string_or("rope_type", old_type), rope);
  // Phi-3's first release called its long rope "yarn", with per-dimension factors.
  if (result.type == RopeType::kYarn && rope.has("short_factor")) result.type = RopeType::kLongRope;
  result.theta = rope.number_or("rope_theta", config.number_or("rope_theta", default_theta, 1.0, 1e12), 1.0, 1e12);
  const double partial =
      rope.number_or("partial_rotary_factor", config.number_or("partial_rotary_factor", 1.0, 0.0, 1.0), 0.0, 1.0);
  if (partial != 1.0 && !partial_allowed) {
    throw WeightsError(fmt::format("{}: \"partial_rotary_factor\" = {} is not supported for this family, wanted 1",
                                   rope.where(), partial));
  }
  result.rotary_dim = static_cast<int64_t>(static_cast<double>(head_dim) * partial);
  if (result.rotary_dim < 2 || result.rotary_dim % 2 != 0) {
    throw WeightsError(fmt::format("{}: {} rotary dimensions of head_dim {}, wanted an even number above 0",
                                   rope.where(), result.rotary_dim, head_dim));
  }
  if (result.type != RopeType::kDefault) read_scaling(rope, config, max_positions, result);
  return result;
}

Rope read_rope(const io::JsonFile& config, int64_t head_dim, int64_t max_positions, double default_theta,
               bool partial_allowed) {
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    if (config.has(key)) {
      return read_rope_object(config.child(key), config, head_dim, max_positions, default_theta, partial_allowed);
    }
  }
  return read_rope_object(io::JsonFile(nlohmann::json::object(), config.where()), config, head_dim, max_positions,
                          default_theta, partial_allowed);
}

Activation read_activation(const io::JsonFile& config, const std::string& key, const std::string& fallback) {
  const std::string name = config.string_or(key, fallback);
  if (name == "silu" || name == "swish") return Activation::kSilu;
  if (name == "gelu") return Activation::kGelu;
  if (name == "gelu_new" || name == "gelu_pytorch_tanh") return Activation::kGeluTanh;
  if (name == "relu") return Activation::kRelu;
  throw WeightsError(
      fmt::format("{}: \"{}\" = \"{}\" is not supported, wanted silu, gelu, gelu_new, "
                  "gelu_pytorch_tanh or relu",
                  config.where(), key, name));
}

int64_t read_labels(const io::JsonFile& config) {
  if (config.has("id2label") && config.value().at("id2label").is_object()) {
    return static_cast<int64_t>(config.value().at("id2label").size());
  }
  return config.integer_or("num_labels", 2, 1, kMaxSize);
}

std::vector<bool> read_local_layers(const io::JsonFile& config, int64_t layers) {
  if (!config.has("layer_types")) return {};
  const nlohmann::json& types = config.value().at("layer_types");
  if (!types.is_array() || static_cast<int64_t>(types.size()) != layers) {
    throw WeightsError(fmt::format("{}: \"layer_types\" has {} entries, wanted one for each of {} layers",
                                   config.where(), types.size(), layers));
  }
  std::vector<bool> local;
  for (const auto& type : types) {
    if (type != "sliding_attention" && type != "full_attention") {
      throw WeightsError(
          fmt::format("{}: \"layer_types\" holds {}, wanted \"sliding_attention\" or "
                      "\"full_attention\"",
                      config.where(), type.dump()));
    }
    local.push_back(type == "sliding_attention");
  }
  return local;
}

void read_end_of_sequence(const io::JsonFile& config, Architecture& architecture) {
  if (config.has("eos_token_id")) {
    const nlohmann::json& ids = config.value().at("eos_token_id");
    architecture.end_of_sequence.clear();
    if (ids.is_array()) {
      for (const auto& id : ids) {
        if (!id.is_number_integer()) {
          throw WeightsError(fmt::format("{}: \"eos_token_id\" holds {}, wanted integers", config.where(), id.dump()));
        }
        architecture.end_of_sequence.push_back(id.get<int64_t>());
      }
    } else {
      architecture.end_of_sequence.push_back(config.integer("eos_token_id", 0, kMaxSize));
    }
  }
  architecture.pad_with = config.integer_or("pad_token_id", architecture.pad_with, -1, kMaxSize);
}

Architecture read_llama_line(const io::JsonFile& config, double default_epsilon) {
  Architecture a;
  a.vocabulary = config.integer("vocab_size", 1, kMaxSize);
  a.hidden = config.integer("hidden_size", 1, kMaxSize);
  a.layers = config.integer("num_hidden_layers", 1, 4096);
  a.heads = config.integer("num_attention_heads", 1, 65536);
  a.key_value_heads = config.integer_or("num_key_value_heads", a.heads, 1, 65536);
  a.head_dim = config.integer_or("head_dim", a.hidden / a.heads, 1, kMaxSize);
  a.intermediate = config.integer("intermediate_size", 1, kMaxSize);
  a.max_positions = config.integer_or("max_position_embeddings", 2048, 1, kMaxSize);
  a.norm_epsilon = config.number_or("rms_norm_eps", default_epsilon, 0.0, 1.0);
  a.activation = read_activation(config, "hidden_act", "silu");
  a.tied = config.boolean_or("tie_word_embeddings", false);
  a.attention_scale = 1.0 / std::sqrt(static_cast<double>(a.head_dim));
  a.padding_id = config.integer_or("pad_token_id", -1, -1, kMaxSize);  // some folders write -1 for "none"
  if (a.heads % a.key_value_heads != 0) {
    throw WeightsError(fmt::format("{}: {} attention heads over {} key-value heads, wanted a multiple", config.where(),
                                   a.heads, a.key_value_heads));
  }
  return a;
}

}  // namespace limbeck::models
