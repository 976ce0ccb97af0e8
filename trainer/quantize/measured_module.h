// A candidate of a float32 model and what each format stores its weights as: the matrix of a linear module, the table
// of an embedding (which a tied head multiplies by), or the matrices of all experts of a layer.
#pragma once
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "modules/models/network/parameter_modules.h"
#include "trainer/quantize/format_table.h"

namespace limbeck::quantize {

// One pass of a forward through a module. Of experts also which tokens went to which, with what weight.
struct HeardPass {
  at::Tensor x, y = {}, gradient = {};
  at::Tensor experts_nk = {}, weights_nk = {};
  bool looks_up = false;  // x are ids
};

// Parameters of a module by their names in it.
using NamedWeights = std::vector<std::pair<std::string, at::Tensor>>;

// Other weights in a module while this lives.
class WeightsInPlace {
 public:
  WeightsInPlace(precision::ContractModule& module, const NamedWeights& weights);
  ~WeightsInPlace();
  WeightsInPlace(const WeightsInPlace&) = delete;
  WeightsInPlace& operator=(const WeightsInPlace&) = delete;

 private:
  precision::ContractModule& module_;
  NamedWeights own_;
};

class MeasuredModule {
 public:
  // `floats`: what "float" is stored in, and scales. WeightsError names a weight that is not finite.
  MeasuredModule(std::shared_ptr<precision::ContractModule> module, const Candidate& candidate,
                 const std::vector<StoredFormat>& formats, at::ScalarType floats);
  void add_user(const precision::ContractModule& module) { users_.push_back(&module); }

  // Who computes with its weights: the module itself, and a head that is tied to it.
  const std::vector<const precision::ContractModule*>& users() const { return users_; }
  const std::string& path() const { return path_; }  // below the model's root
  std::vector<at::Tensor> weights() const;
  // What they are as a format stores them; float32.
  NamedWeights stored(size_t format) const;
  // What the format changes of what each pass gave, rows by outputs, one after another.
  std::vector<at::Tensor> changes(size_t format, const std::vector<HeardPass>& passes) const;

 private:
  // A parameter as matrices one after another, and their codes by format; none where it is stored in floats.
  struct Weight {
    std::string name;
    int64_t matrices;
    std::vector<std::vector<precision::PackedWeight>> packed = {};
  };
  at::Tensor stored(const Weight& weight, size_t format) const;
  std::vector<at::Tensor> expert_changes(size_t format, const std::vector<HeardPass>& passes) const;

  std::shared_ptr<precision::ContractModule> module_;
  std::vector<const precision::ContractModule*> users_;
  std::string path_;
  at::ScalarType floats_;
  std::vector<Weight> weights_;
};

}  // namespace limbeck::quantize
