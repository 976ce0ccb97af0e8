// Windows one after another, whose counters are read in time however long one of them lasts and whatever this thread
// does in it: where a counter goes around, a thread of its own reads it several times on its way.
#pragma once
#include <condition_variable>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "trainer/energy/energy_window.h"

namespace limbeck::energy {

class WindowSampler {
 public:
  explicit WindowSampler(std::vector<DeviceMeters> devices, Clock clock = steady_seconds);
  ~WindowSampler();
  WindowSampler(const WindowSampler&) = delete;
  WindowSampler& operator=(const WindowSampler&) = delete;

  void begin();  // whatever window was open is forgotten
  EnergyUsed end();

 private:
  void sample_in_time(double seconds);

  const std::vector<DeviceMeters> devices_;
  const Clock clock_;
  std::mutex mutex_;  // of all below
  std::condition_variable stopping_;
  bool stopped_ = false;
  std::optional<EnergyWindow> window_;
  std::thread thread_;  // last: it uses all of the above
};

// How often counters must be read at least, lest one goes around unseen; infinity: none does.
double sampling_seconds(const std::vector<DeviceMeters>& devices);

}  // namespace limbeck::energy
