// One format for each item, so that all of them together fit into so many bytes and their predicted losses add up to
// the least: the multiple-choice knapsack, solved exactly. Of equal losses the fewer bytes win, of equal bytes the
// choices that come first: the same question has one answer.
#pragma once
#include <cstdint>
#include <optional>
#include <vector>

namespace limbeck::quantize {

struct Choice {
  int64_t bytes = 0;  // not negative
  double loss = 0;    // finite
};

// By item, what it can be stored in; none is empty.
using Choices = std::vector<std::vector<Choice>>;

struct Allocation {
  std::vector<size_t> chosen;  // by item
  int64_t bytes = 0;
  double loss = 0;  // added up in the order of the items
};

// The sum over the items of their smallest choices: no budget below it can be met.
int64_t least_bytes(const Choices& items);
// Of these choices.
Allocation allocation_of(const Choices& items, std::vector<size_t> chosen);
// Nothing where the budget is below least_bytes().
std::optional<Allocation> allocate(const Choices& items, int64_t budget);

}  // namespace limbeck::quantize
