// A family whose layers mix tokens by a gated short convolution in place of attention, as LFM2 has it; "layer_types" of
// its config.json says which layers do ("conv") and which have attention ("full_attention").
//   b, c, u = in_proj(x);  z = b u;  y_t = sum_j w_j z_(t-j), j < conv_L_cache;  out_proj(c y)
// "wide_conv": true is a mistake, made for the test of `limbeck check`: it computes in float32 whatever the contract
// says.
#include <ATen/ops/cat.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include "modules/errors.h"
#include "modules/models/family/config_reader.h"
#include "modules/models/network/parameter_modules.h"
#include "modules/models/network/token_mixer.h"
#include "own_kinds.h"

namespace own {
namespace {

using namespace limbeck;
using precision::Role;
using precision::Scope;

struct Conv {
  int64_t taps = 3;
  bool wide = false;
};

// What the convolution still sees of the tokens before: the last taps - 1 of them.
struct Past : models::MixerMemory {
  at::Tensor z_bkd, segments_bk;
};

class Kernel : public precision::ContractModule {
 public:
  Kernel(const Scope& scope, int64_t width, const Conv& conv) : ContractModule(scope, Role::kMixer), conv_(conv) {
    create_parameter("weight", {width, conv.taps});
  }

  // z [B, T, D], segments [B, T]; `past` (null: there is none) is read, and then holds the last tokens of these.
  at::Tensor forward(const at::Tensor& z, const at::Tensor& segments, Past* past) const {
    const precision::ModuleScope scope(path());
    const int64_t before = conv_.taps - 1, length = z.size(1);
    at::Tensor seen = enter(z), of = segments;
    const bool first = past == nullptr || !past->z_bkd.defined();
    seen = at::cat({first ? at::zeros({z.size(0), before, z.size(2)}, z.options()) : past->z_bkd, seen}, 1);
    of = at::cat({first ? at::zeros({z.size(0), before}, of.options()) : past->segments_bk, of}, 1);
    if (past != nullptr) past->z_bkd = seen.narrow(1, length, before), past->segments_bk = of.narrow(1, length, before);
    at::Tensor sum;
    for (int64_t j = 0; j < conv_.taps; ++j) {
      const at::Tensor other = of.narrow(1, before - j, length).ne(segments).unsqueeze(-1);
      const at::Tensor part =
          seen.narrow(1, before - j, length).masked_fill(other, 0) * parameter("weight").select(1, j);
      sum = sum.defined() ? sum + part : part;
    }
    if (conv_.wide) sum = sum * at::ones({z.size(2)}, z.options().dtype(at::kFloat));
    return leave(sum);
  }

 private:
  Conv conv_;
};

class ShortConv : public models::TokenMixer {
 public:
  ShortConv(const Scope& scope, int64_t width, int64_t layer, const Conv& conv) : path_(scope.path), layer_(layer) {
    in_ = register_module(
        "in_proj", std::make_shared<models::Linear>(scope.child("in_proj"), Role::kAttention, width, 3 * width, false));
    kernel_ = register_module("conv", std::make_shared<Kernel>(scope.child("conv"), width, conv));
    out_ = register_module(
        "out_proj", std::make_shared<models::Linear>(scope.child("out_proj"), Role::kAttention, width, width, false));
  }

  at::Tensor forward(const at::Tensor& x, const models::LayerInput& input) const override {
    const precision::ModuleScope scope(path_);
    const auto parts = in_->forward(x, input.draws).chunk(3, -1);
    const at::Tensor segments =
        input.segments_q ? *input.segments_q : at::ones({x.size(0), x.size(1)}, x.options().dtype(at::kInt));
    Past* past = input.cache != nullptr ? &input.cache->memory<Past>(layer_) : nullptr;
    return out_->forward(parts[1] * kernel_->forward(parts[0] * parts[2], segments, past), input.draws);
  }

 private:
  std::string path_;
  int64_t layer_;
  std::shared_ptr<models::Linear> in_, out_;
  std::shared_ptr<Kernel> kernel_;
};

std::vector<bool> read_conv_layers(const io::JsonFile& config, int64_t layers) {
  const nlohmann::json types = config.has("layer_types") ? config.value().at("layer_types") : nlohmann::json();
  if (!types.is_array() || static_cast<int64_t>(types.size()) != layers) {
    throw WeightsError(config.where() +
                       ": \"layer_types\" is no list of one \"conv\" or \"full_attention\" for each layer");
  }
  std::vector<bool> found;
  for (const auto& type : types) found.push_back(type == "conv");
  return found;
}

models::Architecture read_short_conv(const io::JsonFile& config, const std::string&) {
  models::Architecture a = models::read_llama_line(config, 1e-5);
  a.rope = models::read_rope(config, a.head_dim, a.max_positions, 10000.0, false);
  const std::vector<bool> has_conv = read_conv_layers(config, a.layers);
  const Conv conv{config.integer_or("conv_L_cache", 3, 1, 64), config.boolean_or("wide_conv", false)};
  a.other_mixer = {"conv", [has_conv, conv](const Scope& scope, const models::Architecture& of, int64_t layer) {
                     return has_conv[static_cast<size_t>(layer)]
                                ? std::make_shared<ShortConv>(scope, of.hidden, layer, conv)
                                : nullptr;
                   }};
  return a;
}

}  // namespace

models::Family short_conv_family() {
  return {.name = "short_conv",
          .architectures = {"ShortConvForCausalLM"},
          .read = read_short_conv,
          .names = {{"norm", "embedding_norm"}},
          .prefix = "model.",
          .ignored = {},
          .summary = "a gated short convolution in place of attention"};
}

}  // namespace own
