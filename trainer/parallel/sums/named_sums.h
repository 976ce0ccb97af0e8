// Exact sums by name: what an update or an evaluation adds up over batches and ranks. Ranks need not have the same
// names: a term that one batch lacks counts nothing there.
#pragma once
#include <string>
#include <utility>
#include <vector>

#include "trainer/parallel/sums/exact_sum.h"

namespace limbeck::parallel {

class NamedSums {
 public:
  void add(const std::string& name, double value);
  double value(const std::string& name) const;  // 0 when nothing was added
  std::vector<std::string> names() const;       // in the order of their first addition, rank 0's first
  void all_reduce(Communicator& ranks);

 private:
  ExactSum& of(const std::string& name);
  std::vector<std::pair<std::string, ExactSum>> sums_;
};

}  // namespace limbeck::parallel
