// Modules whose float weight does what its codes stand for: forward, evaluation and export compute by them, and the
// gradient passes straight through to the floats (kernels/quantized/straight_through.h). They own no parameter; their
// contract says the format. A tied head is one of its own, on the weight of its embedding.
#pragma once
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "modules/models/network/experts.h"
#include "modules/models/network/parameter_modules.h"
#include "modules/models/network/weight_adapter.h"
#include "modules/models/weights/load_model.h"

namespace limbeck::adapters {

// What a host's weight is stored as, by whatever kind of module stands on it.
class FolderCodes {
 public:
  virtual ~FolderCodes() = default;
  // Of the weight as it is now, as the folder stores them: by the names that the stored module has for them, one after
  // the other along its rows.
  virtual std::vector<std::pair<std::string, precision::PackedWeight>> codes() const = 0;
  virtual const at::Tensor& floats() const = 0;  // that they are made of
  virtual const models::ModelRequest& folder() const = 0;
};

template <class Adapter, class Host>
class SeenModule : public Adapter, public FolderCodes {
 public:
  // `stored`: the module with the host's weight as `folder` has it, which is the model that the run exports: packed.
  // The host owns this.
  SeenModule(const precision::Scope& scope, const Host& host, const precision::ContractModule& stored,
             std::shared_ptr<const models::ModelRequest> folder)
      : Adapter(scope, host.precision()), host_(host), folder_(std::move(folder)) {
    this->pack_as(stored);
  }
  models::MergedWeight merged(const Host& host) const override;  // what the codes stand for
  models::UnmergedWeight unmerged(const Host& host) const override;
  std::string unmerge_fault() const override { return "is rounded to its codes, which do not tell what was there"; }
  void initialize(const Host&, uint64_t) override {}

  std::vector<std::pair<std::string, precision::PackedWeight>> codes() const override;
  const at::Tensor& floats() const override { return host_.weight(); }
  const models::ModelRequest& folder() const override { return *folder_; }

 protected:
  kernels::QuantizedFormat format() const { return this->precision().quantized.value(); }

 private:
  const Host& host_;
  std::shared_ptr<const models::ModelRequest> folder_;
};

class SeenLinear : public SeenModule<models::LinearAdapter, models::Linear> {
 public:
  using SeenModule::SeenModule;
  at::Tensor forward(const at::Tensor& x, const models::Linear& host, const models::Draws& draws) const override;
  models::ProductOperands operands(const at::Tensor& x, const models::Linear& host, bool learns,
                                   const models::Draws& draws) const override;
};

class SeenEmbedding : public SeenModule<models::EmbeddingAdapter, models::Embedding> {
 public:
  using SeenModule::SeenModule;
  at::Tensor forward(const at::Tensor& ids, const models::Embedding& host) const override;
};

class SeenExperts : public SeenModule<models::ExpertAdapter, models::ExpertStack> {
 public:
  using SeenModule::SeenModule;
  at::Tensor forward(const at::Tensor& rows, const at::Tensor& ends, const models::ExpertStack& host) const override;
};

}  // namespace limbeck::adapters
