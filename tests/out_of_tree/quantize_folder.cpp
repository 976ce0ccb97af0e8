#include "quantize_folder.h"

#include <cstdio>
#include <exception>

#include "modules/models/weights/save_model.h"
#include "trainer/quantize/mixed_precision_quantizer.h"

int64_t quantize_folder(const char* model, const char* output) try {
  limbeck::models::ModelRequest request;
  request.folder = model;
  auto quantizer = limbeck::quantize::create_mixed_precision_quantizer(request, nullptr, /*use_dynamic_policy=*/false);
  quantizer.create_quantizers();
  quantizer.start_calibration();
  quantizer.end_calibration();
  limbeck::models::SaveOptions options;
  options.packed = true;
  limbeck::models::save_model(quantizer.quantize_model(), output, options);
  return quantizer.estimate_model_size().mixed_precision_bytes;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return -1;
}
