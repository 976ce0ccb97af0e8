// The small text files by which the kernel shows numbers (sysfs), read anew at each call.
#pragma once
#include <filesystem>
#include <optional>
#include <string>

#include "trainer/energy/energy_meter.h"

namespace limbeck::energy {

// Its first line; none: it cannot be read.
std::optional<std::string> kernel_line(const std::filesystem::path& file);
// A whole number, which is all that is in it; the fault says what to do where root alone may read it.
Reading kernel_number(const std::filesystem::path& file);

}  // namespace limbeck::energy
