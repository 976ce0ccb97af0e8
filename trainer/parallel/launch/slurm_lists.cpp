#include "trainer/parallel/launch/slurm_lists.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "modules/errors.h"
#include "trainer/recipe/message.h"

namespace limbeck::parallel {
namespace {

constexpr size_t kMostEntries = 65536;
constexpr size_t kMostDigits = 9;

struct SlurmList {
  const std::string& name;
  const std::string& text;

  [[noreturn]] void refuse(const std::string& wanted) const {
    throw UsageError(
        fmt::format("environment: {}={}: wanted {}; start it with `srun limbeck train RECIPE`, which sets it", name,
                    recipe::shown(text), wanted));
  }
};

bool all_digits(const std::string& text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

std::optional<int64_t> digits_value(const std::string& text) {
  if (!all_digits(text) || text.size() > kMostDigits) return std::nullopt;
  return std::stoll(text);
}

// At commas outside of brackets.
std::vector<std::string> items_of(const SlurmList& list) {
  std::vector<std::string> items(1);
  bool inside = false;
  for (const char c : list.text) {
    if (c == (inside ? '[' : ']')) list.refuse("brackets in pairs, as in node[01-03,7],b2");
    if (c == '[' || c == ']') inside = c == '[';
    if (c == ',' && !inside) {
      items.emplace_back();
    } else {
      items.back() += c;
    }
  }
  if (inside) list.refuse("brackets in pairs, as in node[01-03,7],b2");
  if (std::any_of(items.begin(), items.end(), [](const auto& item) { return item.empty(); }))
    list.refuse("a name between commas");
  return items;
}

// "01-03,7" -> 01 02 03 7: as many digits as the first number of a range has.
std::vector<std::string> numbers_of(const SlurmList& list, const std::string& inside) {
  std::vector<std::string> out;
  size_t start = 0;
  while (start <= inside.size()) {
    const size_t comma = std::min(inside.find(',', start), inside.size());
    const std::string range = inside.substr(start, comma - start);
    const size_t dash = std::min(range.find('-'), range.size());
    const std::string first = range.substr(0, dash), last = dash == range.size() ? first : range.substr(dash + 1);
    const auto low = digits_value(first), high = digits_value(last);
    if (!low || !high || *high < *low) list.refuse("numbers or rising ranges in brackets, as in node[01-03,7]");
    if (static_cast<size_t>(*high - *low) >= kMostEntries - out.size())
      list.refuse(fmt::format("at most {} hosts", kMostEntries));
    for (int64_t number = *low; number <= *high; ++number) out.push_back(fmt::format("{:0{}}", number, first.size()));
    start = comma + 1;
  }
  return out;
}

// "rack[1-2]n[01-02]" -> rack1n01 rack1n02 rack2n01 rack2n02
std::vector<std::string> hosts_of(const SlurmList& list, const std::string& item) {
  std::vector<std::string> out = {""};
  for (size_t at = 0; at < item.size();) {
    const bool bracket = item[at] == '[';
    const size_t end = std::min(item.find(bracket ? ']' : '[', at), item.size());
    const std::vector<std::string> tails =
        bracket ? numbers_of(list, item.substr(at + 1, end - at - 1)) : std::vector{item.substr(at, end - at)};
    if (out.size() * tails.size() > kMostEntries) list.refuse(fmt::format("at most {} hosts", kMostEntries));
    std::vector<std::string> longer;
    for (const std::string& head : out) {
      for (const std::string& tail : tails) longer.push_back(head + tail);
    }
    out = std::move(longer);
    at = bracket ? end + 1 : end;
  }
  return out;
}

}  // namespace

std::vector<std::string> expanded_hosts(const std::string& name, const std::string& text) {
  const SlurmList list{name, text};
  std::vector<std::string> out;
  for (const std::string& item : items_of(list)) {
    const auto hosts = hosts_of(list, item);
    if (out.size() + hosts.size() > kMostEntries) list.refuse(fmt::format("at most {} hosts", kMostEntries));
    out.insert(out.end(), hosts.begin(), hosts.end());
  }
  return out;
}

std::vector<int> expanded_tasks_per_node(const std::string& name, const std::string& text) {
  const SlurmList list{name, text};
  std::vector<int> out;
  for (const std::string& item : items_of(list)) {  // 4 or 4(x2)
    const size_t open = std::min(item.find("(x"), item.size());
    const bool repeated = open < item.size();
    const auto tasks = digits_value(item.substr(0, open));
    const auto nodes = repeated && item.back() == ')' ? digits_value(item.substr(open + 2, item.size() - open - 3))
                                                      : std::optional<int64_t>(1);
    if (!tasks || !nodes || *tasks < 1 || *nodes < 1 || (repeated && item.back() != ')'))
      list.refuse("counts such as 4(x2),3");
    if (static_cast<size_t>(*nodes) > kMostEntries - out.size())
      list.refuse(fmt::format("at most {} nodes", kMostEntries));
    out.insert(out.end(), static_cast<size_t>(*nodes), static_cast<int>(*tasks));
  }
  return out;
}

}  // namespace limbeck::parallel
