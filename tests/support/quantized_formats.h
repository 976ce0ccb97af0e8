// Every quantized format there is, for tests of them all.
#pragma once
#include <string>
#include <vector>

#include "kernels/quantized/quantized_matrix.h"

namespace limbeck::test {

inline std::vector<kernels::QuantizedFormat> every_format() {
  std::vector<kernels::QuantizedFormat> formats;
  for (const std::string& name : kernels::format_names()) formats.push_back(kernels::format_named(name));
  return formats;
}

// Those in whose products x stays as it is.
inline std::vector<kernels::QuantizedFormat> every_static_format() {
  std::vector<kernels::QuantizedFormat> formats = every_format();
  std::erase_if(formats, [](const kernels::QuantizedFormat& format) { return format.dynamic; });
  return formats;
}

// As a test may be called.
inline std::string format_label(kernels::QuantizedFormat format) {
  std::string name = kernels::format_name(format);
  std::erase(name, '-');
  return name;
}

}  // namespace limbeck::test

namespace limbeck::kernels {

// GoogleTest prints it in the names of failed cases.
inline void PrintTo(const QuantizedFormat& format, std::ostream* out) { *out << format_name(format); }

}  // namespace limbeck::kernels
