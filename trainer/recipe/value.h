// Text to value, without locale and without surprises: the whole text must be the value, or nothing comes back.
#pragma once
#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <string>

namespace limbeck::recipe {

std::optional<int64_t> to_integer(const std::string& text);
std::optional<double> to_number(const std::string& text);  // finite only
std::optional<bool> to_bool(const std::string& text);      // true, false, yes, no, on, off, 1, 0
std::optional<c10::ScalarType> to_dtype(const std::string& text);
std::optional<c10::Device> to_device(const std::string& text);  // cpu, cuda, cuda:N, meta

}  // namespace limbeck::recipe
