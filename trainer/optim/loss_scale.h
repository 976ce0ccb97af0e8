// The dynamic loss scale of float16 training: halved when an update overflows, doubled after a run of good ones, never
// below its floor. Powers of two times the start, so scaling and unscaling round nothing.
#pragma once
#include <cstdint>

namespace limbeck::optim {

class LossScale {
 public:
  struct Options {
    double start = 65536.0;
    int64_t growth_interval = 2000;
    double floor = 1.0;
  };

  LossScale() = default;  // off: always 1
  explicit LossScale(const Options& options) : options_(options), enabled_(true), value_(options.start) {}

  bool enabled() const { return enabled_; }
  double value() const { return value_; }
  bool at_floor() const { return enabled_ && value_ <= options_.floor; }
  int64_t good_updates() const { return good_updates_; }  // since the last change

  void update_was_good();
  void update_overflowed();
  void restore(double value, int64_t good_updates);

 private:
  Options options_;
  bool enabled_ = false;
  double value_ = 1.0;
  int64_t good_updates_ = 0;
};

}  // namespace limbeck::optim
