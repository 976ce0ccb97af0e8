// Which kinds of micro-batches have one of the few places for graphs. A kind that comes again and again keeps its
// place; one without a graph leaves it to the next kind, one with a graph only when it has not come for long. So kinds
// that take turns are never recorded over and over, however many they are.
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace limbeck::session {

class GraphPlaces {
 public:
  // Of packed rows there is a kind for each power of two of documents, of a loss scale one: more than these are in use
  // at no time. Of padded rows there is one for each width.
  static constexpr size_t kMost = 4;
  static constexpr int64_t kLong = 64;  // micro-batches

  struct Found {
    size_t place = 0;
    bool is_new = false;  // whoever had the place has it no more
  };
  // Of the next micro-batch; nothing: its kind has no place.
  std::optional<Found> find(const std::string& kind);
  void hold_graph(size_t place) { kinds_[place].has_graph = true; }
  int64_t without_place() const { return without_place_; }  // micro-batches

 private:
  struct Kind {
    std::string name;
    int64_t last_came = 0;
    bool has_graph = false;
  };
  std::vector<Kind> kinds_;  // by place
  int64_t came_ = 0, without_place_ = 0;
};

}  // namespace limbeck::session
