#include "trainer/parallel/sums/named_sums.h"

#include <cstring>
#include <type_traits>

namespace limbeck::parallel {

static_assert(std::is_trivially_copyable_v<ExactSum>, "sums travel between ranks as they are");

ExactSum& NamedSums::of(const std::string& name) {
  for (auto& [known, sum] : sums_) {
    if (known == name) return sum;
  }
  return sums_.emplace_back(name, ExactSum()).second;
}

void NamedSums::add(const std::string& name, double value) { of(name).add(value); }

double NamedSums::value(const std::string& name) const {
  for (const auto& [known, sum] : sums_) {
    if (known == name) return sum.value();
  }
  return 0;
}

std::vector<std::string> NamedSums::names() const {
  std::vector<std::string> found;
  for (const auto& [name, sum] : sums_) found.push_back(name);
  return found;
}

void NamedSums::all_reduce(Communicator& ranks) {
  if (ranks.size() == 1) return;
  std::string mine;
  for (const auto& [name, sum] : sums_) {
    mine += name + '\0';
    mine.append(reinterpret_cast<const char*>(&sum), sizeof(sum));
  }
  sums_.clear();
  for (const std::string& text : ranks.all_gather(mine)) {
    for (size_t at = 0; at < text.size();) {
      const std::string name = text.c_str() + at;
      ExactSum sum;
      std::memcpy(&sum, text.data() + at + name.size() + 1, sizeof(sum));
      of(name).add(sum);
      at += name.size() + 1 + sizeof(sum);
    }
  }
}

}  // namespace limbeck::parallel
