#include "modules/nearest_name.h"

#include <algorithm>
#include <utility>

namespace limbeck {
namespace {

// Optimal string alignment distance, or limit + 1 as soon as it must exceed limit: an index can hold 100,000 names.
size_t edit_distance(const std::string& a, const std::string& b, size_t limit) {
  const size_t rows = a.size(), columns = b.size();
  if ((rows > columns ? rows - columns : columns - rows) > limit) return limit + 1;
  std::vector<size_t> before_last(columns + 1), last(columns + 1), current(columns + 1);
  for (size_t j = 0; j <= columns; ++j) last[j] = j;
  for (size_t i = 1; i <= rows; ++i) {
    current[0] = i;
    size_t smallest = i;
    for (size_t j = 1; j <= columns; ++j) {
      const size_t replaced = last[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      current[j] = std::min({last[j] + 1, current[j - 1] + 1, replaced});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        current[j] = std::min(current[j], before_last[j - 2] + 1);
      }
      smallest = std::min(smallest, current[j]);
    }
    // A swap can still reach back one row, and adds one to it: so two rows over the limit end it, one row at limit + 1
    // too.
    if (smallest > limit + 1) return limit + 1;
    before_last.swap(last);
    last.swap(current);
  }
  return last[columns];
}

}  // namespace

std::vector<std::string> nearest_names(const std::string& wanted, const std::vector<std::string>& known, size_t count) {
  if (count == 0) return {};
  using Candidate = std::pair<size_t, std::string>;
  std::vector<Candidate> best;
  const size_t plausible = std::max<size_t>(1, wanted.size() / 2);  // more than half of it is no slip
  for (const std::string& name : known) {
    const size_t limit = best.size() < count ? plausible : best.back().first;
    Candidate candidate{edit_distance(wanted, name, limit), name};
    if (candidate.first > limit || (best.size() == count && best.back() <= candidate)) continue;
    best.insert(std::upper_bound(best.begin(), best.end(), candidate), std::move(candidate));
    if (best.size() > count) best.pop_back();
  }
  std::vector<std::string> names;
  for (Candidate& candidate : best) names.push_back(std::move(candidate.second));
  return names;
}

std::string offer_nearest(const std::string& wanted, const std::vector<std::string>& known, size_t count,
                          const Offer& offer) {
  std::string names;
  for (const std::string& name : nearest_names(wanted, known, count)) names += (names.empty() ? "" : ", ") + name;
  return names.empty() ? offer.otherwise : offer.before + names + offer.behind;
}

}  // namespace limbeck
