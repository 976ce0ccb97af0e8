#include "trainer/energy/perf_meters.h"

#include <fmt/format.h>
#include <linux/perf_event.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstring>
#include <memory>
#include <utility>

#include "trainer/energy/kernel_file.h"

namespace limbeck::energy {
namespace {

namespace fs = std::filesystem;

constexpr double kEventUpdate = 0.001, kMostOfEvent = 2000.0;

class PerfMeter : public EnergyMeter {
 public:
  PerfMeter(int descriptor, std::string name, double joules_a_count)
      : descriptor_(descriptor), name_(std::move(name)), joules_a_count_(joules_a_count) {}
  ~PerfMeter() override { ::close(descriptor_); }
  PerfMeter(const PerfMeter&) = delete;
  PerfMeter& operator=(const PerfMeter&) = delete;

  const std::string& name() const override { return name_; }
  const std::string& device() const override { return device_; }
  Reading read() override {
    uint64_t count = 0;
    if (::read(descriptor_, &count, sizeof(count)) != sizeof(count))
      return {0, fmt::format("{} cannot be read ({})", name_, std::strerror(errno))};
    return {static_cast<uint64_t>(std::llround(static_cast<double>(count) * joules_a_count_ * 1e6)), ""};
  }
  uint64_t range() const override { return 0; }
  double update_seconds() const override { return kEventUpdate; }
  double most_watts() const override { return kMostOfEvent; }

 private:
  int descriptor_;
  std::string name_, device_ = "cpu";
  double joules_a_count_;
};

// "event=0x02" -> 2; none: another text.
std::optional<uint64_t> config_of(const std::string& text) {
  constexpr std::string_view kBegin = "event=0x";
  if (!text.starts_with(kBegin)) return std::nullopt;
  uint64_t config = 0;
  const char *begin = text.data() + kBegin.size(), *end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(begin, end, config, 16);
  return error == std::errc() && rest == end ? std::optional(config) : std::nullopt;
}

// "0,18" or "0-1,4": one processor of each package.
std::vector<int> processors_of(const std::string& mask) {
  std::vector<int> found;
  const char *at = mask.data(), *end = mask.data() + mask.size();
  while (at != end) {
    int first = 0;
    auto [rest, error] = std::from_chars(at, end, first);
    if (error != std::errc()) return {};
    int last = first;
    if (rest != end && *rest == '-') {
      const auto [after, fault] = std::from_chars(rest + 1, end, last);
      if (fault != std::errc()) return {};
      rest = after;
    }
    for (int processor = first; processor <= last; ++processor) found.push_back(processor);
    at = rest != end && *rest == ',' ? rest + 1 : rest;
    if (at == rest && at != end) return {};
  }
  return found;
}

int open_event(uint32_t type, uint64_t config, int processor) {
  perf_event_attr event{};
  event.size = sizeof(event);
  event.type = type;
  event.config = config;
  return static_cast<int>(::syscall(SYS_perf_event_open, &event, -1, processor, -1, PERF_FLAG_FD_CLOEXEC));
}

}  // namespace

DeviceMeters perf_meters(const fs::path& root) {
  DeviceMeters found{"cpu", {}, ""};
  const Reading type = kernel_number(root / "type");
  const auto none = [](std::string reason) { return DeviceMeters{"cpu", {}, std::move(reason)}; };
  if (!type.fault.empty()) return none("no power events: " + type.fault);
  const std::vector<int> processors = processors_of(kernel_line(root / "cpumask").value_or(""));
  if (processors.empty()) return none(fmt::format("{} names no processor", (root / "cpumask").string()));
  if (!kernel_line(root / "events" / "energy-pkg"))
    return none(fmt::format("{} has no energy-pkg", (root / "events").string()));
  for (const char* event : {"energy-pkg", "energy-ram"}) {
    const auto text = kernel_line(root / "events" / event);
    if (!text) continue;
    const auto config = config_of(*text);
    const double scale =
        std::strtod(kernel_line(root / "events" / (std::string(event) + ".scale")).value_or("0").c_str(), nullptr);
    if (!config || scale <= 0) return none(fmt::format("{}/events/{} is \"{}\"", root.string(), event, *text));
    for (const int processor : processors) {
      const std::string name = fmt::format("perf {} of processor {}", event, processor);
      const int descriptor = open_event(static_cast<uint32_t>(type.microjoules), *config, processor);
      if (descriptor < 0) {
        return none(
            fmt::format("{} cannot be opened ({}): kernel.perf_event_paranoid must be 0 or less, or the "
                        "process have CAP_PERFMON",
                        name, std::strerror(errno)));
      }
      found.meters.push_back(std::make_shared<PerfMeter>(descriptor, name, scale));
    }
  }
  return found;
}

}  // namespace limbeck::energy
