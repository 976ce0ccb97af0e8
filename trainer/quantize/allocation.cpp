#include "trainer/quantize/allocation.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

namespace limbeck::quantize {

namespace {

// A step along the lower convex hull of an item's choices: so many bytes more for a loss that is less by `gain`.
struct Step {
  size_t item = 0, choice = 0;  // where it leads
  int64_t bytes = 0;
  double gain = 0;

  double slope() const { return gain / static_cast<double>(bytes); }
};

size_t smallest(const std::vector<Choice>& choices) {
  const auto less = [](const Choice& a, const Choice& b) {
    return std::tie(a.bytes, a.loss) < std::tie(b.bytes, b.loss);
  };
  return static_cast<size_t>(std::min_element(choices.begin(), choices.end(), less) - choices.begin());
}

// From the smallest choice on, each step gaining less a byte than the one before it.
std::vector<Step> hull(const std::vector<Choice>& choices, size_t item) {
  std::vector<Step> steps;
  for (size_t at = smallest(choices);;) {
    Step best;
    for (size_t i = 0; i < choices.size(); ++i) {
      const Step step{item, i, choices[i].bytes - choices[at].bytes, choices[at].loss - choices[i].loss};
      if (step.bytes <= 0 || step.gain <= 0) continue;
      if (best.bytes == 0 || step.slope() > best.slope()) best = step;
    }
    if (best.bytes == 0) return steps;
    steps.push_back(best);
    at = best.choice;
  }
}

// What the items from one on lose at least within so many bytes, were fractions of steps allowed.
class SuffixBound {
 public:
  SuffixBound(const Choices& items, const std::vector<Step>& by_slope, size_t first) {
    for (size_t i = first; i < items.size(); ++i) {
      const Choice& least = items[i][smallest(items[i])];
      bytes_.front() += least.bytes;
      losses_.front() += least.loss;
    }
    for (const Step& step : by_slope) {
      if (step.item < first) continue;
      bytes_.push_back(bytes_.back() + step.bytes);
      losses_.push_back(losses_.back() - step.gain);
    }
  }

  double least_loss(int64_t bytes) const {
    const auto behind = static_cast<size_t>(std::upper_bound(bytes_.begin(), bytes_.end(), bytes) - bytes_.begin());
    if (behind == 0) return std::numeric_limits<double>::infinity();
    if (behind == bytes_.size()) return losses_.back();
    const double share =
        static_cast<double>(bytes - bytes_[behind - 1]) / static_cast<double>(bytes_[behind] - bytes_[behind - 1]);
    return losses_[behind - 1] + share * (losses_[behind] - losses_[behind - 1]);
  }

 private:
  std::vector<int64_t> bytes_{0};
  std::vector<double> losses_{0};
};

// Whole steps as long as they fit: what branches must beat.
Allocation greedy(const Choices& items, const std::vector<Step>& by_slope, int64_t budget) {
  std::vector<size_t> chosen;
  int64_t bytes = 0;
  for (const auto& choices : items) {
    chosen.push_back(smallest(choices));
    bytes += choices[chosen.back()].bytes;
  }
  std::vector<bool> stopped(items.size(), false);
  for (const Step& step : by_slope) {
    if (stopped[step.item] || bytes + step.bytes > budget) {
      stopped[step.item] = true;
      continue;
    }
    chosen[step.item] = step.choice;
    bytes += step.bytes;
  }
  return allocation_of(items, std::move(chosen));
}

// Choices of the first items that no others beat in both bytes and loss.
struct Partial {
  int64_t bytes = 0;
  double loss = 0;
  size_t before = 0, choice = 0;  // the partial of one item less, and the last item's choice
};
using Layers = std::vector<std::vector<Partial>>;

// `end`: one of the last layer.
std::vector<size_t> choices_of(const Layers& layers, const Partial& end) {
  std::vector<size_t> chosen(layers.size());
  const Partial* partial = &end;
  for (size_t layer = layers.size(); layer-- > 0;) {
    chosen[layer] = partial->choice;
    if (layer > 0) partial = &layers[layer - 1][partial->before];
  }
  return chosen;
}

}  // namespace

int64_t least_bytes(const Choices& items) {
  int64_t bytes = 0;
  for (const auto& choices : items) bytes += choices[smallest(choices)].bytes;
  return bytes;
}

Allocation allocation_of(const Choices& items, std::vector<size_t> chosen) {
  Allocation allocation{std::move(chosen)};
  for (size_t i = 0; i < items.size(); ++i) {
    allocation.bytes += items[i][allocation.chosen[i]].bytes;
    allocation.loss += items[i][allocation.chosen[i]].loss;
  }
  return allocation;
}

// All partial solutions side by side, item by item. Dropped are those that another one dominates, that leave too few
// bytes for the rest, and whose rest cannot become as good as what is known to be possible.
std::optional<Allocation> allocate(const Choices& items, int64_t budget) {
  if (least_bytes(items) > budget) return std::nullopt;
  std::vector<Step> steps;
  double magnitude = 0;
  for (size_t i = 0; i < items.size(); ++i) {
    for (const Step& step : hull(items[i], i)) steps.push_back(step);
    for (const Choice& choice : items[i]) magnitude += std::abs(choice.loss);
  }
  std::stable_sort(steps.begin(), steps.end(), [](const Step& a, const Step& b) { return a.slope() > b.slope(); });
  // Bounds and sums are rounded: what is within this of the known one may still be better.
  const double rounding = 1e-12 * magnitude;
  const double known = greedy(items, steps, budget).loss + rounding;

  Layers layers;
  std::vector<Partial> frontier(1);
  for (size_t i = 0; i < items.size(); ++i) {
    const SuffixBound rest(items, steps, i + 1);
    std::vector<Partial> reached;
    for (size_t at = 0; at < frontier.size(); ++at) {
      for (size_t choice = 0; choice < items[i].size(); ++choice) {
        const Partial next{frontier[at].bytes + items[i][choice].bytes, frontier[at].loss + items[i][choice].loss, at,
                           choice};
        if (next.loss + rest.least_loss(budget - next.bytes) <= known) reached.push_back(next);
      }
    }
    const auto first_choices = [&layers](const Partial& a, const Partial& b) {
      if (a.before == b.before || layers.empty()) return a.choice < b.choice;
      return std::make_pair(choices_of(layers, layers.back()[a.before]), a.choice) <
             std::make_pair(choices_of(layers, layers.back()[b.before]), b.choice);
    };
    std::sort(reached.begin(), reached.end(), [&](const Partial& a, const Partial& b) {
      if (a.bytes != b.bytes || a.loss != b.loss) return std::tie(a.bytes, a.loss) < std::tie(b.bytes, b.loss);
      return first_choices(a, b);
    });
    frontier.clear();
    for (const Partial& partial : reached) {
      if (frontier.empty() || partial.loss < frontier.back().loss) frontier.push_back(partial);
    }
    layers.push_back(frontier);
  }
  // Ascending in bytes, descending in loss.
  return allocation_of(items, choices_of(layers, frontier.back()));
}

}  // namespace limbeck::quantize
