// The steps from a float folder to a model in mixed formats: what each gives, and that none comes before its time.
#include "trainer/quantize/mixed_precision_quantizer.h"

#include <ATen/ops/eye.h>
#include <gtest/gtest.h>

#include "modules/io/safetensors.h"
#include "modules/models/weights/save_model.h"
#include "modules/precision/contract_modules.h"
#include "tests/trainer/message_of.h"
#include "tests/trainer/rows_to_measure_on.h"
#include "tests/trainer/tiny_distillation.h"
#include "trainer/quantize/importance.h"
#include "trainer/quantize/static_policy.h"

namespace limbeck::quantize {
namespace {

models::ModelRequest wide_llama() {
  models::ModelRequest request;
  request.folder = test::weighted_model("llama", R"({"hidden_size": 64, "intermediate_size": 96})", 3);
  return request;
}

std::map<std::string, precision::PackedWeight> packed_by_path(const models::BuiltModel& built) {
  std::map<std::string, precision::PackedWeight> found;
  for (const auto& module : precision::contract_modules(*built.model)) {
    for (const auto& [name, weight] : module->packed_weights())
      found.emplace(module->path().substr(built.model->path().size() + 1), weight);
  }
  return found;
}

MixedPrecisionQuantizer calibrated(MixedPrecisionQuantizer quantizer) {
  quantizer.create_quantizers();
  quantizer.start_calibration();
  quantizer.end_calibration();
  return quantizer;
}

TEST(MixedPrecisionQuantizer, ByRolesWeighsWhatItSaysAndIsReloadedWithTheSameCodes) {
  const models::ModelRequest request = wide_llama();
  const MixedPrecisionQuantizer quantizer = calibrated(create_mixed_precision_quantizer(request, nullptr, false));
  const models::BuiltModel built = quantizer.quantize_model();
  const auto packed = packed_by_path(built);
  EXPECT_EQ(packed.size(), 14U);
  for (const auto& [path, weight] : packed) EXPECT_STREQ(kernels::format_name(weight.format()), "int8") << path;

  const std::filesystem::path folder = std::filesystem::path(::testing::TempDir()) / "quantizer_folder";
  std::filesystem::remove_all(folder);
  models::SaveOptions options;
  options.packed = true;
  models::save_model(built, folder, options);
  int64_t bytes = 0;
  const io::WeightsFolder weights(folder);
  for (const std::string& name : weights.names())
    bytes += static_cast<int64_t>(weights.find(name)->end - weights.find(name)->begin);
  const SizeEstimate estimate = quantizer.estimate_model_size();
  EXPECT_EQ(estimate.mixed_precision_bytes, bytes);
  EXPECT_EQ(estimate.fp32_bytes, 4 * estimate.total_parameters);
  EXPECT_EQ(estimate.meets_target, estimate.compression_ratio >= 6);

  models::ModelRequest again;
  again.folder = folder;
  for (const auto& [path, weight] : packed_by_path(models::load_model(again))) EXPECT_EQ(weight, packed.at(path));
}

TEST(MixedPrecisionQuantizer, ByImportanceGivesWhatTheAnalyzerFinds) {
  const models::ModelRequest request = wide_llama();
  const auto data = test::rows_to_measure_on("quantizer_data", 14);
  const auto quantizer = calibrated(create_mixed_precision_quantizer(request, data.get(), true, 4, 32));

  models::ModelRequest wide = request, half = request;
  wide.dtype = at::kFloat;
  wide.trainable = true;
  half.dtype = at::kHalf;
  const models::BuiltModel floats = models::load_model(wide);
  const FormatTable table(half, parse_formats("float,int8,int4-g32", "--formats"));
  const ScoreMeter meter(floats, table, at::kHalf);
  const LayerImportance importance = LayerImportanceAnalyzer(meter, table).analyze(*data, 4);
  const Mix wanted = DynamicQuantizationPolicy{importance}.mix("float", "int8", "int4-g32");
  const auto packed = packed_by_path(quantizer.quantize_model());
  std::map<std::string, int64_t> counts;
  for (const auto& [path, format] : wanted) {
    ++counts[format];
    EXPECT_EQ(packed.contains(path) ? kernels::format_name(packed.at(path).format()) : "float", format) << path;
  }
  EXPECT_EQ(counts, (std::map<std::string, int64_t>{{"float", 2}, {"int8", 7}, {"int4-g32", 5}}));
  EXPECT_EQ(quantizer.estimate_model_size().mixed_precision_bytes, table.bytes_of(wanted));
}

TEST(MixedPrecisionQuantizer, CalibratesALayerByTheMomentsOfItsInputs) {
  models::ModelRequest request = wide_llama();
  request.packing = precision::pack_all(*kernels::find_format("int4-g32"), "a test");
  request.dtype = at::kHalf;
  MixedPrecisionQuantizer quantizer(request);
  quantizer.create_quantizers();
  quantizer.start_calibration();
  const std::string path = "layers.1.mlp.up_proj", other = "layers.0.mlp.up_proj";
  const auto nearest = packed_by_path(quantizer.packed());
  // Inputs that have nothing to do with each other: nothing can be made up for.
  at::Tensor moments = at::eye(64, at::kDouble);
  EXPECT_EQ(quantizer.calibrate_layer(path, moments, 64).compensated,
            quantizer.calibrate_layer(path, moments, 64).nearest);
  EXPECT_EQ(packed_by_path(quantizer.packed()).at(path), nearest.at(path));

  moments += 0.9;
  const RoundedModule rounded = quantizer.calibrate_layer(path, moments, 64);
  EXPECT_EQ(rounded.path, path);
  EXPECT_LT(rounded.compensated, 0.9 * rounded.nearest);
  models::ModelRequest floats;
  floats.folder = request.folder;
  floats.dtype = at::kFloat;
  at::Tensor weight;
  const models::BuiltModel model = models::load_model(floats);
  for (const auto& module : precision::contract_modules(*model.model)) {
    if (module->path() == "model." + path) weight = module->parameter("weight").detach();
  }
  const auto wanted = kernels::quantize_compensated(weight, kernels::compensation_of(moments),
                                                    *kernels::find_format("int4-g32"), at::kHalf);
  quantizer.end_calibration();
  const auto found = packed_by_path(quantizer.quantize_model());
  EXPECT_EQ(found.at(path), precision::PackedWeight(wanted.matrix));
  EXPECT_NE(found.at(path), nearest.at(path));
  EXPECT_EQ(found.at(other), nearest.at(other));
}

TEST(MixedPrecisionQuantizer, RefusesWhatComesBeforeItsTime) {
  const models::ModelRequest request = wide_llama();
  MixedPrecisionQuantizer quantizer = create_mixed_precision_quantizer(request, nullptr, false);
  const std::string place = "2: MixedPrecisionQuantizer::";
  const auto said = [&](const auto& action) { return test::message_of(action); };
  EXPECT_EQ(said([&] { quantizer.estimate_model_size(); }), place + "estimate_model_size: " + request.folder.string() +
                                                                " is without its quantizers: call create_quantizers()");
  EXPECT_TRUE(said([&] { quantizer.start_calibration(); }).starts_with(place + "start_calibration: "));
  quantizer.create_quantizers();
  const std::string uncalibrated = "is not calibrated: call start_calibration(), then end_calibration()";
  EXPECT_TRUE(said([&] { quantizer.quantize_model(); }).ends_with(uncalibrated));
  EXPECT_TRUE(said([&] {
                quantizer.calibrate_layer("layers.0.mlp.up_proj", at::eye(64, at::kDouble), 64);
              }).ends_with(uncalibrated));
  quantizer.start_calibration();
  EXPECT_TRUE(said([&] { quantizer.quantize_model(); }).ends_with("is being calibrated: call end_calibration()"));
  EXPECT_TRUE(said([&] {
                quantizer.calibrate_layer("layers.7.mlp.up_proj", at::eye(64, at::kDouble), 64);
              }).starts_with(place + "calibrate_layer: layers.7.mlp.up_proj is no packed module of "));
  quantizer.end_calibration();
  EXPECT_TRUE(said([&] { quantizer.end_calibration(); }).ends_with("is calibrated: make another one"));
  EXPECT_NO_THROW(quantizer.quantize_model());
}

TEST(MixedPrecisionQuantizer, IsNotMadeByImportanceWithoutDataNorInGroupsThatNoFormatHas) {
  const models::ModelRequest request = wide_llama();
  const std::string without = test::message_of([&] { create_mixed_precision_quantizer(request, nullptr, true); });
  EXPECT_TRUE(without.starts_with("2: create_mixed_precision_quantizer: the dynamic policy goes by what is measured"))
      << without;
  EXPECT_EQ(test::message_of([&] { create_mixed_precision_quantizer(request, nullptr, false, 64, 100); }),
            "2: group_size = 100: wanted 128, 64 or 32");
}

}  // namespace
}  // namespace limbeck::quantize
