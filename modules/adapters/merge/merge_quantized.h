// An adapter that was trained beside quantized weights, merged: three ways, none of which gives exactly the model that
// was trained in the dtype of a folder, and what each loses.
#pragma once
#include <array>
#include <string>
#include <vector>

#include "modules/models/weights/load_model.h"

namespace limbeck::adapters {

enum class MergeInto {
  kOriginal,     // the adapter on the weights as they were before quantization: W + s B A
  kDequantized,  // on what the codes stand for, where it was trained: W' + s B A
  kRequantized,  // that sum quantized again in the same format; stored is what the new codes stand for, or they are
};
inline constexpr std::array kMergeWays = {MergeInto::kOriginal, MergeInto::kDequantized, MergeInto::kRequantized};

const char* merge_into_name(MergeInto into);  // "original", "dequantized", "requantized"
MergeInto merge_into_named(const std::string& name);

struct ModuleShare {
  double mean = 0, worst = 0;
  std::string worst_module;
};

// Beside what the adapter was trained with, wanted = W' + s B A: |stored - wanted| by |wanted| and by the adapter's own
// change |wanted - W'|. Where the second is above 1, more is lost than the adapter does.
struct MergeErrors {
  ModuleShare of_weight, of_change;
};

struct QuantizedMergeReport {
  int64_t modules = 0;                                // quantized and adapted: what `errors` are over
  int64_t float_modules = 0;                          // adapted and not quantized: merged as ever
  std::array<MergeErrors, kMergeWays.size()> errors;  // of each way, in their order, whichever was taken
  const MergeErrors& of(MergeInto into) const { return errors.at(static_cast<size_t>(into)); }
};

// `quantized` has the adapter, on weights packed from those of `plain`: the same model without quantization and without
// adapter, which receives the result. Of the two ways that begin with the codes, every quantized weight becomes what
// they stand for, adapted or not. No more than one module's weight is ever wide. UsageError for what adapted_hosts()
// refuses and where no adapted module is quantized, before anything is changed; NumericError where a sum is not finite
// in the dtype of `plain`.
// `packed`: another copy of `quantized` without the adapter, with scales as a folder stores them; it receives the new
// codes, and the result, in the place of `plain`. Requantized alone.
QuantizedMergeReport merge_quantized_adapter(const models::BuiltModel& quantized, models::BuiltModel& plain,
                                             MergeInto into, models::BuiltModel* packed = nullptr);

}  // namespace limbeck::adapters
