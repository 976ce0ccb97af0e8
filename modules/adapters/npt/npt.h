// NPT: an adapter of a whole pre-norm layer with a gated MLP. Attention a = Attn(norm1(h)) no longer joins the residual
// stream; it drives, through u = A_proj a, what the gate of the MLP becomes. With x = norm2(h), of the original h:
//   delta: g' = (W_g x) * m + s B_plus u,  m a curve of B_times u around 1      (modulation: either term, or both)
//   outer: g' = W_g x + s (B_f u) <x, B_m u>, which is W_g changed for each token by s (B_f u)(B_m u)^T
//   h' = h + W_d (act(g') * W_u x)
#pragma once
#include <string>
#include <vector>

#include "modules/models/network/blocks.h"

namespace limbeck::adapters {

enum class NptKind { kDelta, kOuter };
enum class Modulation { kAdditive, kMultiplicative, kBoth };
// m of m_raw: 0.5 + sigmoid, which starts at exactly 1, or 0.5 + 0.5 sigmoid, which starts at 0.75.
enum class ModulationCurve { kNeutral, kLegacy };

struct NptShape {
  NptKind kind = NptKind::kDelta;
  Modulation modulation = Modulation::kBoth;  // this and the curve: of delta alone
  ModulationCurve curve = ModulationCurve::kNeutral;
  int64_t rank = 16;
  double scale = 0.1;                    // s
  int64_t hidden = 0, intermediate = 0;  // of the layer

  bool adds() const { return kind == NptKind::kDelta && modulation != Modulation::kMultiplicative; }
  bool multiplies() const { return kind == NptKind::kDelta && modulation != Modulation::kAdditive; }
  struct Parameter {
    std::string name;
    int64_t rows, columns;
    double deviation;  // of its normal first values; 0: zeros
  };
  // Those that this shape uses.
  std::vector<Parameter> parameters() const;
};

// Penalties in Taps::Adapted: "delta" |B_plus u|^2, "m_raw" |B_times u|^2; "outer" |B_m u|^2 |B_f u|^2.
class Npt : public models::LayerAdapter {
 public:
  Npt(const precision::Scope& scope, const precision::Precision& host, const NptShape& shape);
  const NptShape& shape() const { return shape_; }
  at::Tensor forward(const at::Tensor& h, const models::Layer& host, const models::LayerInput& input) const override;
  void initialize(const models::Layer& host, uint64_t seed) override;  // by the path of each parameter
  std::string kind_name() const override { return "npt"; }

 private:
  using Adapted = models::Taps::Adapted;
  // g' from W_g x; what it says of itself goes into `said`, unless null.
  at::Tensor delta(const at::Tensor& gate_btf, const at::Tensor& low_btr, Adapted* said) const;
  at::Tensor outer(const at::Tensor& gate_btf, const at::Tensor& x_btd, const at::Tensor& low_btr, Adapted* said) const;
  at::Tensor squared_length(const at::Tensor& value_btn) const;

  NptShape shape_;
};

// gate * m, where bent = tanh(m_raw / 2): 0.5 + sigmoid(z) is 1 + 0.5 tanh(z / 2), and so written small changes survive
// in half precision.
at::Tensor modulated(const at::Tensor& gate, const at::Tensor& bent, ModulationCurve curve);

}  // namespace limbeck::adapters
