// Live bytes and their highest value, counted from any thread: what both memory meters (meta and host) are made of.
#pragma once
#include <atomic>
#include <cstdint>

namespace limbeck::memory {

class ByteCounter {
 public:
  void add(int64_t bytes) {
    const int64_t now = live_.fetch_add(bytes) + bytes;
    int64_t seen = peak_.load();
    while (now > seen && !peak_.compare_exchange_weak(seen, now)) {
    }
  }
  void remove(int64_t bytes) { live_.fetch_sub(bytes); }
  void clear() { live_ = 0, peak_ = 0; }
  void reset_peak() { peak_ = live_.load(); }
  int64_t live() const { return live_; }
  int64_t peak() const { return peak_; }

 private:
  std::atomic<int64_t> live_{0}, peak_{0};
};

}  // namespace limbeck::memory
