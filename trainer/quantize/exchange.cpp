#include "trainer/quantize/exchange.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

namespace limbeck::quantize {

namespace {

// One item in another format.
struct Move {
  size_t group = 0, format = 0;
  int64_t cost = 0;  // more than now
  double loss = 0;   // more than predicted now
};

struct Proposal {
  std::vector<Move> moves;
  double loss = 0;
};

const std::string& format_of(const FormatTable& table, const Mix& mix, size_t group) {
  return mix.at(table.modules()[table.groups()[group].front()].path);
}

std::vector<Move> moves_from(const FormatTable& table, const Costs& costs, const RowScore& scores, const Mix& mix) {
  std::vector<Move> moves;
  const auto targets = static_cast<double>(std::max<int64_t>(scores.targets, 1));
  for (size_t group = 0; group < table.groups().size(); ++group) {
    const size_t now = table.format_index(format_of(table, mix, group));
    for (size_t format = 0; format < table.formats().size(); ++format) {
      Move move{group, format, 0, 0};
      bool possible = format != now;
      for (const size_t module : table.groups()[group]) {
        possible = possible && costs.of(module, format);
        if (!possible) break;
        move.cost += *costs.of(module, format) - *costs.of(module, now);
        move.loss += (scores.modules[module].losses[format] - scores.modules[module].losses[now]) / targets;
      }
      if (possible) moves.push_back(move);
    }
  }
  return moves;
}

// All within what is spare, the most promising first.
std::vector<Proposal> proposals(const std::vector<Move>& moves, int64_t spare) {
  std::vector<Proposal> found;
  for (size_t i = 0; i < moves.size(); ++i) {
    if (moves[i].cost <= spare) found.push_back({{moves[i]}, moves[i].loss});
    for (size_t j = i + 1; j < moves.size(); ++j) {
      if (moves[i].group == moves[j].group || moves[i].cost + moves[j].cost > spare) continue;
      found.push_back({{moves[i], moves[j]}, moves[i].loss + moves[j].loss});
    }
  }
  std::stable_sort(found.begin(), found.end(), [](const auto& a, const auto& b) { return a.loss < b.loss; });
  return found;
}

BudgetedMix applied(const FormatTable& table, const RowScore& scores, const BudgetedMix& mix,
                    const Proposal& proposal) {
  BudgetedMix next = mix;
  const auto targets = static_cast<double>(std::max<int64_t>(scores.targets, 1));
  for (const Move& move : proposal.moves) {
    next.cost += move.cost;
    next.loss += move.loss;
    for (const size_t module : table.groups()[move.group]) {
      const std::string& path = table.modules()[module].path;
      next.mix[path] = table.formats()[move.format].name;
      next.predicted[path] = scores.modules[module].losses[move.format] / targets;
    }
  }
  return next;
}

std::string described(const FormatTable& table, const Mix& mix, const Proposal& proposal) {
  std::string text;
  for (const Move& move : proposal.moves) {
    text +=
        fmt::format("{}{} {} -> {}", text.empty() ? "" : ", ", table.modules()[table.groups()[move.group].front()].path,
                    format_of(table, mix, move.group), table.formats()[move.format].name);
  }
  return text;
}

}  // namespace

Exchanged exchange(const FormatTable& table, const Costs& costs, const RowScore& scores, const BudgetedMix& first,
                   int64_t tries, const MeasureMix& measure) {
  std::vector<RowDivergence> now = measure(first.mix);
  const double before = mean_divergence(now);
  Exchanged found{first, before, before, static_cast<int64_t>(now.size()), {}};
  std::set<std::string> seen = {spelled(table, first.mix)};
  for (bool helped = true; helped;) {
    helped = false;
    const auto moves = moves_from(table, costs, scores, found.mix.mix);
    for (const Proposal& proposal : proposals(moves, found.mix.allowed - found.mix.cost)) {
      if (static_cast<int64_t>(found.tries.size()) >= tries) return found;
      const BudgetedMix next = applied(table, scores, found.mix, proposal);
      if (!seen.insert(spelled(table, next.mix)).second) continue;
      std::vector<RowDivergence> then = measure(next.mix);
      const PairedChange change = paired_change(now, then);
      helped = change.high < 0;
      const double kl = mean_divergence(then);
      found.tries.push_back({described(table, found.mix.mix, proposal), proposal.loss, kl, change, helped});
      if (!helped) continue;
      found.mix = next;
      found.kl_after = kl;
      now = std::move(then);
      break;
    }
  }
  return found;
}

}  // namespace limbeck::quantize
