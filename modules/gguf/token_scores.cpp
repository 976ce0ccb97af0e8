#include "modules/gguf/token_scores.h"

#include <algorithm>
#include <string_view>
#include <tuple>
#include <unordered_set>

namespace limbeck::gguf {
namespace {

void differ(TokenScores& scores, std::string_view left, std::string_view right) {
  if (scores.different++ == 0) scores.first_different = {std::string(left), std::string(right)};
}

bool begins_character(char byte) { return (static_cast<unsigned char>(byte) & 0xC0) != 0x80; }

}  // namespace

TokenScores token_scores(const std::vector<Merge>& merges, const std::vector<std::string>& tokens) {
  TokenScores scores;
  std::unordered_map<std::string, std::unordered_set<size_t>> cuts;  // of a token: where its merges join it
  std::string previous;
  for (const auto& [left, right] : merges) {
    const std::string whole = left + right;
    const bool fresh = scores.of.emplace(whole, -static_cast<float>(scores.of.size())).second;
    if (!fresh && whole != previous) differ(scores, left, right);
    cuts[whole].insert(left.size());
    previous = whole;
  }
  const std::unordered_set<std::string_view> parts(tokens.begin(), tokens.end());
  for (const std::string& token : tokens) {
    const auto joined = cuts.find(token);
    if (joined == cuts.end()) continue;
    const std::string_view whole = token;
    for (size_t cut = 1; cut < whole.size(); ++cut) {
      if (!begins_character(whole[cut]) || joined->second.count(cut) > 0) continue;
      const std::string_view left = whole.substr(0, cut), right = whole.substr(cut);
      if (parts.count(left) > 0 && parts.count(right) > 0) differ(scores, left, right);
    }
  }
  return scores;
}

ScoredMerges merges_of_scores(const std::vector<std::pair<std::string, float>>& scores,
                              const std::unordered_map<std::string, int64_t>& parts) {
  std::vector<const std::pair<std::string, float>*> order;
  for (const auto& scored : scores) order.push_back(&scored);
  std::stable_sort(order.begin(), order.end(), [](const auto* a, const auto* b) { return a->second > b->second; });
  ScoredMerges result;
  const std::pair<std::string, float>* last = nullptr;  // of those that some pair makes
  for (const auto* scored : order) {
    const std::string& whole = scored->first;
    std::vector<std::tuple<int64_t, int64_t, size_t>> cuts;
    for (size_t cut = 1; cut < whole.size(); ++cut) {
      if (!begins_character(whole[cut])) continue;
      const auto left = parts.find(whole.substr(0, cut)), right = parts.find(whole.substr(cut));
      if (left != parts.end() && right != parts.end()) cuts.emplace_back(left->second, right->second, cut);
    }
    std::sort(cuts.begin(), cuts.end());
    for (const auto& [left, right, cut] : cuts) result.merges.emplace_back(whole.substr(0, cut), whole.substr(cut));
    if (cuts.empty()) continue;
    if (last != nullptr && last->second == scored->second) ++result.ties;
    last = scored;
  }
  return result;
}

}  // namespace limbeck::gguf
