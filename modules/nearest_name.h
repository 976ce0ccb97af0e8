// The names closest to one that was not found, for error messages: "did you mean". Edit distance (insert, delete,
// replace, swap of neighbours); names too far away to be a plausible misspelling are left out.
#pragma once
#include <cstddef>
#include <string>
#include <vector>

namespace limbeck {

// At most `count` names, nearest first, ties in alphabetical order.
std::vector<std::string> nearest_names(const std::string& wanted, const std::vector<std::string>& known, size_t count);

// The part of a message that offers them: before + names + behind; `otherwise` where nothing is near.
struct Offer {
  std::string before = {}, behind = {}, otherwise = {};
};
std::string offer_nearest(const std::string& wanted, const std::vector<std::string>& known, size_t count,
                          const Offer& offer);

// What there is by name, as the above ask for it: the keys of a map.
template <class Named>
std::vector<std::string> names_of(const Named& named) {
  std::vector<std::string> names;
  for (const auto& entry : named) names.push_back(entry.first);
  return names;
}

}  // namespace limbeck
