// A model in mixed formats, step by step, as limbeck quantize makes one. create_quantizers() gives each module its
// format, and what the folder will weigh is known; start_calibration() reads the weights, each packed to its nearest
// codes; calibrate_layer(), or calibrate() for all of them, chooses codes anew by what modules get; after
// end_calibration() quantize_model() is the model. Out of this order each refuses.
#pragma once
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "trainer/data/data_source.h"
#include "trainer/quantize/format_table.h"
#include "trainer/quantize/rounded_model.h"

namespace limbeck::quantize {

class MixedPrecisionQuantizer {
 public:
  // Which module is stored in what is said by the packing and the rules of the request.
  explicit MixedPrecisionQuantizer(models::ModelRequest request) : request_(std::move(request)) {}

  // From the structure alone. UsageError for what no folder that others read holds.
  void create_quantizers();
  // vLLM computes codes of 8 and 4 bits: UsageError for fewer.
  void require_bits_of_vllm() const;
  // vLLM computes some modules as one (q, k and v; gate and up): UsageError where they are not in one format.
  void require_fused_alike() const;
  const models::BuiltModel& structure() const;  // on meta
  const FolderPlan& plan() const;
  // Of the folder, everything counted, to the byte.
  SizeEstimate estimate_model_size() const;

  // `floats`: the same folder in float32, where it is in memory already; else it is read when it is needed.
  void start_calibration(std::optional<models::BuiltModel> floats = std::nullopt);
  // As far as it is calibrated.
  const models::BuiltModel& packed() const;
  // A packed module by its path below the root, anew by the second moments of so many inputs of it: the upper triangle
  // of the sum of x^T x, float64. UsageError for another path.
  RoundedModule calibrate_layer(const std::string& path, const at::Tensor& second_moments, int64_t tokens);
  // All of them in the order of the forward, by rows of data; `done` hears of each stage. Scales are the folder's.
  RoundedModel calibrate(const RoundingRows& rows, RoundingRequest request, const std::function<void(int64_t)>& done);
  void end_calibration();

  // UsageError where it is not calibrated.
  models::BuiltModel quantize_model() const;

 private:
  enum class Stage { kNew, kCreated, kCalibrating, kCalibrated };
  void require(const char* asked, Stage from, Stage to) const;
  const models::BuiltModel& floats();

  models::ModelRequest request_;
  Stage stage_ = Stage::kNew;
  std::optional<models::BuiltModel> structure_, floats_, packed_;
  FolderPlan plan_;
};

// What policies store as "float" where nobody says otherwise: a float32 that is left would weigh more than all codes.
at::ScalarType floats_of_policies(const models::ModelRequest& request);

// By the static policy, or by the dynamic one over so many batches of `data`, with the most important modules in
// floats, the others in int8 and the least important ones in int4; `group_size`: of int4, 128, 64 or 32. UsageError for
// the dynamic policy without data.
MixedPrecisionQuantizer create_mixed_precision_quantizer(models::ModelRequest model, const data::DataSource* data,
                                                         bool use_dynamic_policy, int64_t num_importance_batches = 64,
                                                         int64_t group_size = 128);

}  // namespace limbeck::quantize
