// The most that a machine does, measured through the same operators that models compute with: what a module's time is
// held against.
#pragma once
#include <c10/core/Device.h>

#include <map>
#include <string>
#include <vector>

namespace limbeck::profile {

struct Ceilings {
  std::map<std::string, double> gflops;  // by what a product's operands are: "float32", "int8-dynamic"
  double gb_per_second = 0;              // read from memory that no cache holds
  // Nothing known of these operands: 0.
  double gflops_of(const std::string& operands) const;
};

// A large square product of each kind that the device has, and a sum over a quarter of a GiB: the best of many.
Ceilings measure_ceilings(c10::Device device, const std::vector<std::string>& operands);

}  // namespace limbeck::profile
