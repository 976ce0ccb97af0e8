// Energy from counters: exact on simulated ones, read from files as the kernel lays them out, and unknown with a reason
// where there is none.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <numeric>
#include <thread>

#include "tests/support/temporary_folder.h"
#include "tests/support/thread_ranks.h"
#include "trainer/energy/energy_gauge.h"
#include "trainer/energy/machine_meters.h"
#include "trainer/energy/nvml_library.h"
#include "trainer/energy/perf_meters.h"
#include "trainer/energy/rapl_meters.h"
#include "trainer/energy/step_energy.h"

namespace limbeck::energy {
namespace {

namespace fs = std::filesystem;

// Time that passes when a test says so, and counters that go by it.
struct SimulatedTime {
  std::atomic<double> now = 1000;
  Clock clock() {
    return [this] { return now.load(); };
  }
  // Whoever looks at it is so much later than who looked before.
  Clock clock_that_goes_on_by(double seconds) {
    return [this, seconds] { return now += seconds; };
  }
};

using StepValues = std::vector<std::pair<std::string, double>>;

class SimulatedMeter : public EnergyMeter {
 public:
  SimulatedMeter(const SimulatedTime& time, std::string device, uint64_t range = 0, uint64_t start = 0)
      : time_(time), device_(std::move(device)), range_(range), start_(start), begin_(time.now) {}

  const std::string& name() const override { return name_; }
  const std::string& device() const override { return device_; }
  Reading read() override {
    ++readings;
    if (broken) return {0, "the meter is gone"};
    const auto used = static_cast<uint64_t>(std::llround((time_.now - begin_) * watts * 1e6)) + extra;
    const uint64_t at = start_ + used - lost;
    return {range_ > 0 ? at % range_ : at, ""};
  }
  uint64_t range() const override { return range_; }
  double update_seconds() const override { return 0.001; }
  double most_watts() const override { return 2000; }

  double watts = 100;
  uint64_t lost = 0, extra = 0;
  bool broken = false;
  std::atomic<int> readings = 0;

 private:
  const SimulatedTime& time_;
  std::string name_ = "simulated", device_;
  uint64_t range_, start_;
  double begin_;
};

TEST(EnergyWindow, AHundredWattsForTenSecondsAreAThousandJoules) {
  SimulatedTime time;
  const auto meter = std::make_shared<SimulatedMeter>(time, "cpu");
  EnergyWindow window({{"cpu", {meter}, ""}}, time.clock());
  time.now += 10;
  const EnergyUsed used = window.end();
  EXPECT_EQ(used.seconds, 10);
  EXPECT_EQ(used.by_device.at("cpu").value, 1000.0);
  EXPECT_EQ(used.total().value, 1000.0);
}

TEST(EnergyWindow, GoingAroundLosesNothing) {
  SimulatedTime time;
  constexpr uint64_t kRange = 262'143'328'850;  // of a real package, in microjoules
  const auto meter = std::make_shared<SimulatedMeter>(time, "cpu", kRange, kRange - 400'000'000);
  EnergyWindow window({{"cpu", {meter}, ""}}, time.clock());
  time.now += 10;
  EXPECT_EQ(window.end().total().value, 1000.0);
  // Forty thousand seconds at 100 W: around 15 times, seen by samples between them.
  EnergyWindow many({{"cpu", {meter}, ""}}, time.clock());
  for (int i = 0; i < 400; ++i) time.now += 100, many.sample();
  EXPECT_NEAR(*many.end().total().value, 4'000'000.0, 1e-6 * 4e6);
  EXPECT_EQ(meter->readings, 2 + 1 + 400 + 1);
}

TEST(EnergyWindow, WhatMayHaveGoneAroundTwiceIsUnknown) {
  SimulatedTime time;
  const auto meter = std::make_shared<SimulatedMeter>(time, "cpu", 262'143'328'850);
  EnergyWindow window({{"cpu", {meter}, ""}}, time.clock());
  time.now += 1000;
  const Joules joules = window.end().total();
  EXPECT_FALSE(joules.value.has_value());
  EXPECT_NE(joules.reason.find("goes around after 262143 J, which it may have done more than once"), std::string::npos)
      << joules.reason;
}

TEST(EnergyWindow, AResetIsUnknownAndNeverAJumpOrNothing) {
  for (const uint64_t range : {uint64_t{0}, uint64_t{262'143'328'850}}) {
    SimulatedTime time;
    const auto meter = std::make_shared<SimulatedMeter>(time, "cpu", range, 50'000'000'000);
    EnergyWindow window({{"cpu", {meter}, ""}}, time.clock());
    time.now += 10;
    meter->lost = 50'000'000'000;  // begins at 0 again
    const Joules joules = window.end().total();
    EXPECT_FALSE(joules.value.has_value()) << range;
    EXPECT_NE(joules.reason.find("it was reset"), std::string::npos) << joules.reason;
  }
}

TEST(EnergyWindow, AMeterThatIsLostOnTheWayIsUnknownForGood) {
  SimulatedTime time;
  const auto meter = std::make_shared<SimulatedMeter>(time, "cpu");
  EnergyWindow window({{"cpu", {meter}, ""}}, time.clock());
  time.now += 1;
  meter->broken = true;
  window.sample();
  meter->broken = false;
  time.now += 1;
  const Joules joules = window.end().total();
  EXPECT_FALSE(joules.value.has_value());
  EXPECT_EQ(joules.reason, "cpu: the meter is gone");
}

TEST(EnergyWindow, TwoDevicesAreApartAndTogether) {
  SimulatedTime time;
  const auto cpu = std::make_shared<SimulatedMeter>(time, "cpu"), dram = std::make_shared<SimulatedMeter>(time, "cpu");
  const auto gpu = std::make_shared<SimulatedMeter>(time, "cuda:0");
  dram->watts = 10, gpu->watts = 300;
  EnergyWindow window({{"cpu", {cpu, dram}, ""}, {"cuda:0", {gpu}, ""}}, time.clock());
  time.now += 2;
  const EnergyUsed used = window.end();
  EXPECT_EQ(used.by_device.at("cpu").value, 220.0);
  EXPECT_EQ(used.by_device.at("cuda:0").value, 600.0);
  EXPECT_EQ(used.total().value, 820.0);
}

TEST(EnergyWindow, ADeviceWithoutAMeterLeavesTheSumUnknownAndTheOthersKnown) {
  SimulatedTime time;
  const auto gpu = std::make_shared<SimulatedMeter>(time, "cuda:0");
  EnergyWindow window({{"cpu", {}, "no RAPL here"}, {"cuda:0", {gpu}, ""}}, time.clock());
  time.now += 2;
  const EnergyUsed used = window.end();
  EXPECT_EQ(used.by_device.at("cuda:0").value, 200.0);
  EXPECT_FALSE(used.by_device.at("cpu").value.has_value());
  EXPECT_FALSE(used.total().value.has_value());
  EXPECT_EQ(used.total().reason, "cpu: no RAPL here");
}

TEST(EnergyShares, AddUpToTheTotal) {
  const std::vector<double> parts = shares(971.3, {0.1, 0.25, 3.0, 0.0, 1e-3, 0.7});
  ASSERT_EQ(parts.size(), 6u);
  EXPECT_DOUBLE_EQ(std::accumulate(parts.begin(), parts.end(), 0.0), 971.3);
  EXPECT_NEAR(parts[1] / parts[0], 2.5, 1e-9);
  EXPECT_EQ(parts[3], 0.0);
}

TEST(EnergyShares, OfModulesAndTheRestAddUpToTheWhole) {
  const Division some = divide(100, {20, 30.5});
  EXPECT_EQ(some.parts, (std::vector<double>{20, 30.5}));
  EXPECT_DOUBLE_EQ(some.rest, 49.5);
  const Division scaled = divide(100, {60, 90});  // each measured by itself, and together more than there was
  EXPECT_DOUBLE_EQ(scaled.parts[0], 40);
  EXPECT_DOUBLE_EQ(scaled.parts[1], 60);
  EXPECT_EQ(scaled.rest, 0);
}

TEST(StepEnergy, IsTheMeanOfTheStepsSinceTheLastLineAndOfNothingBetweenThem) {
  SimulatedTime time;
  const auto cpu = std::make_shared<SimulatedMeter>(time, "cpu"),
             gpu = std::make_shared<SimulatedMeter>(time, "cuda:0");
  gpu->watts = 300;
  StepEnergy steps({{"cpu", {cpu}, ""}, {"cuda:0", {gpu}, ""}}, time.clock());
  for (const double seconds : {1.0, 3.0}) {
    steps.begin_step();
    time.now += seconds;
    steps.end_step();
    time.now += 100;  // an evaluation
  }
  const auto solo = parallel::make_solo();
  EXPECT_EQ(steps.take(*solo), (StepValues{{"joules", 800}, {"joules_cpu", 200}, {"joules_cuda", 600}}));
  EXPECT_EQ(steps.take(*solo), StepValues{});
}

// Three ranks with a GPU each, two of them on one machine, each of whose processors draws 100 W.
StepValues of_three_ranks(const std::vector<std::string>& machines, bool one_processor_is_dark) {
  std::vector<StepValues> found(machines.size());
  const auto faults = test::run_ranks(static_cast<int>(machines.size()), [&](parallel::Communicator& ranks) {
    const auto rank = static_cast<size_t>(ranks.rank());
    SimulatedTime time;
    const auto cpu = std::make_shared<SimulatedMeter>(time, "cpu");
    const std::string place = "cuda:" + std::to_string(rank);
    const auto gpu = std::make_shared<SimulatedMeter>(time, place);
    gpu->watts = 300 + static_cast<double>(rank);
    DeviceMeters processor{"cpu", {cpu}, ""};
    if (one_processor_is_dark && rank + 1 == machines.size()) processor = {"cpu", {}, "no RAPL here"};
    StepEnergy steps(counted_here({processor, {place, {gpu}, ""}}, machines[rank], ranks), time.clock());
    steps.begin_step();
    time.now += 2;
    steps.end_step();
    found[rank] = steps.take(ranks);
  });
  for (const std::string& fault : faults) EXPECT_EQ(fault, "");
  for (const StepValues& other : found) EXPECT_EQ(other, found.front()) << "every rank has the sum";
  return found.front();
}

TEST(StepEnergy, OfRanksCountsEachMachinesProcessorOnceAndEachGpu) {
  EXPECT_EQ(of_three_ranks({"a", "a", "b"}, false),
            (StepValues{{"joules", 2206}, {"joules_cpu", 400}, {"joules_cuda", 1806}}));
  EXPECT_EQ(of_three_ranks({"a", "a", "a"}, false),
            (StepValues{{"joules", 2006}, {"joules_cpu", 200}, {"joules_cuda", 1806}}));
  EXPECT_EQ(of_three_ranks({"a", "b", "a"}, false),
            (StepValues{{"joules", 2206}, {"joules_cpu", 400}, {"joules_cuda", 1806}}));
  EXPECT_EQ(of_three_ranks({"a", "a", "b"}, true), (StepValues{{"joules_cuda", 1806}}))
      << "a machine without a meter leaves the sum unknown";
  EXPECT_EQ(of_three_ranks({"a", "a", "a"}, true),
            (StepValues{{"joules", 2006}, {"joules_cpu", 200}, {"joules_cuda", 1806}}))
      << "the first rank there counts it";
}

// Goes around after 40 J, which at 2 kW are 20 ms, and is read by somebody else while work of `readings` goes on. Time
// is 4 ms later whenever somebody looks at it: at 1.5 kW, and one look for a reading, 6 J.
class GoingAroundWithinAStep : public ::testing::Test {
 protected:
  GoingAroundWithinAStep() { cpu->watts = 1500; }
  void work(int readings) const {
    const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    const int begun = cpu->readings;
    while (cpu->readings < begun + readings && std::chrono::steady_clock::now() < give_up)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    EXPECT_GE(cpu->readings, begun + readings) << "nobody read the counter";
  }
  static size_t threads() {
    size_t count = 0;
    for (const auto& task : fs::directory_iterator("/proc/self/task")) count += task.exists() ? 1 : 0;
    return count;
  }
  SimulatedTime time;
  const Clock clock = time.clock_that_goes_on_by(0.004);
  const std::shared_ptr<SimulatedMeter> cpu = std::make_shared<SimulatedMeter>(time, "cpu", 40'000'000, 39'000'000);
};

TEST_F(GoingAroundWithinAStep, LosesNoneOfItsJoules) {
  const auto solo = parallel::make_solo();
  StepEnergy steps({{"cpu", {cpu}, ""}}, clock);
  for (const int readings : {40, 1}) {
    const double before = time.now;
    steps.begin_step();
    work(readings);
    steps.end_step();
    // The first look is that of the beginning.
    const double joules = 1500 * (time.now - before - 0.004);
    EXPECT_GE(joules, 6.0 * readings);
    const StepValues values = steps.take(*solo);
    ASSERT_EQ(values.size(), 2u) << "a counter that may have gone around twice is unknown";
    EXPECT_NEAR(values[1].second, joules, 1e-4);
  }
}

TEST_F(GoingAroundWithinAStep, IsReadWhileWorkIsMeasuredToo) {
  GaugeOptions options;
  options.least_seconds = options.updates = 0;
  const EnergyOfWork found = measure_energy(
      {{"cpu", {cpu}, ""}}, {}, options, [&] { work(20); }, clock);
  ASSERT_TRUE(found.joules.value.has_value()) << found.joules.reason;
  EXPECT_NEAR(*found.joules.value, 1500 * found.seconds, 1e-4);
  EXPECT_GT(*found.joules.value, 6.0 * 20);
}

// A range that no kernel gives: not a thread that does nothing but read.
TEST_F(GoingAroundWithinAStep, IsReadAThousandTimesASecondAtMost) {
  const auto hasty = std::make_shared<SimulatedMeter>(time, "cpu", 1);
  EXPECT_EQ(sampling_seconds({{"cpu", {hasty}, ""}}), 1e-3);
  EXPECT_DOUBLE_EQ(sampling_seconds({{"cpu", {cpu}, ""}}), 5e-3);
  const IdleDraw idle = measure_idle(
      {{"cpu", {hasty}, ""}}, {}, [&](double seconds) { time.now += seconds; }, clock);
  EXPECT_NE(idle.total().reason.find("may have done more than once"), std::string::npos) << idle.total().reason;
}

TEST_F(GoingAroundWithinAStep, TakesAThreadWhereACounterGoesAroundAlone) {
  const size_t before = threads();
  const StepEnergy without({{"cpu", {}, "no RAPL here"}}),
      grows({{"cpu", {std::make_shared<SimulatedMeter>(time, "cpu")}, ""}});
  EXPECT_EQ(threads(), before);
  const StepEnergy around({{"cpu", {cpu}, ""}}, clock);
  EXPECT_EQ(threads(), before + 1);
}

TEST(StepEnergy, LeavesOutWhatIsNotKnown) {
  SimulatedTime time;
  const auto gpu = std::make_shared<SimulatedMeter>(time, "cuda:0");
  StepEnergy steps({{"cpu", {}, "no RAPL here"}, {"cuda:0", {gpu}, ""}}, time.clock());
  steps.begin_step();
  time.now += 2;
  steps.end_step();
  EXPECT_EQ(steps.take(*parallel::make_solo()), (StepValues{{"joules_cuda", 200}}))
      << "a GPU's joules are not those of the step";
}

TEST(EnergyGauge, TellsTheWorkFromTheIdleMachine) {
  SimulatedTime time;
  const auto cpu = std::make_shared<SimulatedMeter>(time, "cpu");
  const std::vector<DeviceMeters> devices{{"cpu", {cpu}, ""}};
  cpu->watts = 100;
  const IdleDraw idle = measure_idle(
      devices, {}, [&](double seconds) { time.now += seconds; }, time.clock());
  EXPECT_NEAR(*idle.total().value, 100, 1e-9);
  const EnergyOfWork work = measure_energy(
      devices, idle, {},
      [&] {
        time.now += 0.25;
        cpu->extra += 30'000'000;  // beside the 25 J of a machine that rests
      },
      time.clock());
  EXPECT_NEAR(*work.joules.value, 55, 1e-6);
  EXPECT_NEAR(*work.above_idle.value, 30, 1e-6);
  EXPECT_NEAR(work.seconds, 0.25, 1e-9);
  EXPECT_TRUE(work.settled);
  EXPECT_EQ(work.windows, 3);
  EXPECT_EQ(work.repetitions, 12);  // four of 0.25 s in a window of 1 s
}

TEST(EnergyGauge, ReadsALongRestOftenEnoughForACounterThatGoesAround) {
  SimulatedTime time;
  const auto cpu = std::make_shared<SimulatedMeter>(time, "cpu", 65'532'610'987);  // AMD's: at 2 kW around in 33 s
  cpu->watts = 1500;
  GaugeOptions minute;
  minute.least_seconds = 60;
  const IdleDraw idle = measure_idle(
      {{"cpu", {cpu}, ""}}, minute, [&](double seconds) { time.now += seconds; }, time.clock());
  ASSERT_TRUE(idle.total().value.has_value()) << idle.total().reason;
  EXPECT_NEAR(*idle.total().value, 1500, 1e-6);
  EXPECT_DOUBLE_EQ(time.now, 1060);
}

TEST(EnergyGauge, GoesOnUntilItsWindowsAgree) {
  SimulatedTime time;
  const auto cpu = std::make_shared<SimulatedMeter>(time, "cpu");
  const std::vector<DeviceMeters> devices{{"cpu", {cpu}, ""}};
  int done = 0;
  const auto noisy = [&](int until) {
    done = 0;
    return [&, until] {
      time.now += 1;
      if (done++ < until) cpu->extra += 50'000'000 * static_cast<uint64_t>(done % 2);
    };
  };
  const EnergyOfWork never = measure_energy(devices, {}, {}, noisy(1000), time.clock());
  EXPECT_FALSE(never.settled);
  EXPECT_EQ(never.windows, 10);
  EXPECT_GT(never.spread, 0.02);
  GaugeOptions wide;
  wide.spread = 0.5;
  EXPECT_TRUE(measure_energy(devices, {}, wide, noisy(1000), time.clock()).settled);
}

TEST(EnergyGauge, WithoutAMeterTheWorkIsNotDoneAndTheReasonStays) {
  int done = 0;
  const std::vector<DeviceMeters> none{{"cpu", {}, "no RAPL here"}};
  const IdleDraw idle = measure_idle(none, {}, [&](double) { ++done; });
  const EnergyOfWork work = measure_energy(none, idle, {}, [&] { ++done; });
  EXPECT_EQ(done, 0);
  EXPECT_FALSE(work.joules.value || work.above_idle.value || idle.total().value);
  EXPECT_EQ(work.joules.reason, "cpu: no RAPL here");
  EXPECT_EQ(idle.total().reason, "cpu: no RAPL here");
}

TEST(EnergyGauge, AWindowIsAsLongAsItsSlowestCounterNeeds) {
  class Slow : public SimulatedMeter {
   public:
    using SimulatedMeter::SimulatedMeter;
    double update_seconds() const override { return 0.1; }
  };
  SimulatedTime time;
  const auto fast = std::make_shared<SimulatedMeter>(time, "cpu");
  EXPECT_EQ(window_seconds({{"cpu", {fast}, ""}}, {}), 1.0);
  EXPECT_EQ(window_seconds({{"cpu", {fast}, ""}, {"cuda:0", {std::make_shared<Slow>(time, "cuda:0")}, ""}}, {}), 10.0);
}

// A zone of powercap's folder.
void write_zone(const fs::path& zone, const std::string& name, uint64_t energy, uint64_t range) {
  fs::create_directories(zone);
  std::ofstream(zone / "name") << name << "\n";
  std::ofstream(zone / "energy_uj") << energy << "\n";
  std::ofstream(zone / "max_energy_range_uj") << range << "\n";
}

void set_energy(const fs::path& zone, uint64_t energy) { std::ofstream(zone / "energy_uj") << energy << "\n"; }

TEST(RaplMeters, ReadsPackagesAndTheirMemoryAndNothingTwice) {
  const test::TemporaryFolder root;
  constexpr uint64_t kPackage = 262'143'328'850, kMemory = 65'712'999'613;
  const fs::path first = root / "intel-rapl:0", memory = first / "intel-rapl:0:1", second = root / "intel-rapl:1";
  write_zone(first, "package-0", 1'000'000, kPackage);
  write_zone(first / "intel-rapl:0:0", "core", 1, kPackage);
  write_zone(memory, "dram", kMemory - 5'000'000, kMemory);
  write_zone(second, "package-1", 7, kPackage);
  write_zone(root / "intel-rapl:2", "psys", 3, kPackage);
  write_zone(root / "intel-rapl-mmio:0", "package-0", 1'000'000, kPackage);  // the first package once more
  fs::create_directories(root / "intel-rapl");                               // the control type itself
  // The class folder shows every zone, the nested ones too.
  fs::create_directory_symlink(memory, root / "intel-rapl:0:1");
  fs::create_directory_symlink(first / "intel-rapl:0:0", root / "intel-rapl:0:0");

  const DeviceMeters found = rapl_meters(root.path());
  EXPECT_EQ(found.absent, "");
  ASSERT_EQ(found.meters.size(), 3u);
  SimulatedTime time;
  EnergyWindow window({found}, time.clock());
  time.now += 10;
  set_energy(first, 1'000'000 + 400'000'000);
  set_energy(memory, 45'000'000);  // around: 5 J to the end, 45 J from there
  set_energy(second, 7 + 150'000'000);
  EXPECT_EQ(window.end().total().value, 400.0 + 50.0 + 150.0);
}

TEST(RaplMeters, ReadsAPackageOfAmdWhichHasNoZoneOfMemory) {
  const test::TemporaryFolder root;
  write_zone(root / "intel-rapl:0", "package-0", 5, 65'532'610'987);
  write_zone(root / "intel-rapl:0" / "intel-rapl:0:0", "core", 5, 65'532'610'987);
  const DeviceMeters found = rapl_meters(root.path());
  ASSERT_EQ(found.meters.size(), 1u);
  EXPECT_EQ(found.meters[0]->range(), 65'532'610'987u);
  EXPECT_NE(found.meters[0]->name().find("package-0"), std::string::npos);
}

TEST(RaplMeters, SayWhyThereIsNone) {
  const test::TemporaryFolder root;
  EXPECT_NE(rapl_meters(root / "nowhere").absent.find("is not there"), std::string::npos);
  EXPECT_NE(rapl_meters(root.path()).absent.find("has no zone of a package"), std::string::npos);
  write_zone(root / "intel-rapl:0", "package-0", 5, 100);
  write_zone(root / "intel-rapl:1", "package-1", 5, 100);
  fs::remove(root / "intel-rapl:1" / "energy_uj");
  const DeviceMeters half = rapl_meters(root.path());
  EXPECT_TRUE(half.meters.empty()) << "one package of two is no sum of them";
  EXPECT_NE(half.absent.find("intel-rapl:1/energy_uj cannot be read"), std::string::npos) << half.absent;
  std::ofstream(root / "intel-rapl:1" / "energy_uj") << "many\n";
  EXPECT_NE(rapl_meters(root.path()).absent.find("says \"many\", wanted a whole number"), std::string::npos);
}

// The kernel's own clock as an event that counts a nanosecond a nanosecond: at 1e-7 J each 100 W.
TEST(PerfMeters, ReadEventsOfTheKernel) {
  const test::TemporaryFolder root;
  fs::create_directories(root / "events");
  std::ofstream(root / "type") << "1\n";  // PERF_TYPE_SOFTWARE
  std::ofstream(root / "cpumask") << "0\n";
  std::ofstream(root / "events" / "energy-pkg") << "event=0x00\n";  // PERF_COUNT_SW_CPU_CLOCK
  std::ofstream(root / "events" / "energy-pkg.scale") << "1e-7\n";
  const DeviceMeters found = perf_meters(root.path());
  if (found.meters.empty() && found.absent.find("cannot be opened") != std::string::npos) GTEST_SKIP() << found.absent;
  ASSERT_EQ(found.meters.size(), 1u) << found.absent;
  EnergyWindow window({found});
  const double begin = steady_seconds();
  while (steady_seconds() - begin < 0.2) {
  }
  const EnergyUsed used = window.end();
  // Reading takes some microseconds at either end.
  EXPECT_NEAR(*used.total().value / used.seconds, 100.0, 2.0);
}

TEST(PerfMeters, SayWhyThereIsNone) {
  const test::TemporaryFolder root;
  EXPECT_NE(perf_meters(root / "nowhere").absent.find("no power events"), std::string::npos);
  std::ofstream(root / "type") << "9999999\n";
  EXPECT_NE(perf_meters(root.path()).absent.find("cpumask names no processor"), std::string::npos);
  std::ofstream(root / "cpumask") << "0,1\n";
  EXPECT_NE(perf_meters(root.path()).absent.find("has no energy-pkg"), std::string::npos);
  fs::create_directories(root / "events");
  std::ofstream(root / "events" / "energy-ram") << "event=0x03\n";
  std::ofstream(root / "events" / "energy-ram.scale") << "2.3283064365386962890625e-10\n";
  EXPECT_NE(perf_meters(root.path()).absent.find("has no energy-pkg"), std::string::npos)
      << "memory alone is no machine";
  std::ofstream(root / "events" / "energy-pkg") << "event=0x02\n";
  std::ofstream(root / "events" / "energy-pkg.scale") << "2.3283064365386962890625e-10\n";
  EXPECT_NE(perf_meters(root.path()).absent.find("cannot be opened"), std::string::npos);
}

// A driver's library whose counters are files.
class NvmlMeters : public ::testing::Test {
 protected:
  NvmlMeters() {
    setenv("LIMBECK_STAND_IN_NVML", folder.path().c_str(), 1);
    set(0, 5'000), set(1, 90'000);
  }
  ~NvmlMeters() override { unsetenv("LIMBECK_STAND_IN_NVML"); }
  void set(int gpu, uint64_t millijoules) { std::ofstream(folder / std::to_string(gpu)) << millijoules << "\n"; }
  const test::TemporaryFolder folder;
};

TEST_F(NvmlMeters, ReadTheGpuAtThePlaceAndNoOther) {
  std::string fault;
  const auto library = NvmlLibrary::open(LIMBECK_STAND_IN_NVML_FILE, fault);
  ASSERT_NE(library, nullptr) << fault;
  const DeviceMeters second = library->meters("0000:02:00.0", "cuda:0");
  ASSERT_EQ(second.meters.size(), 1u) << second.absent;
  SimulatedTime time;
  EnergyWindow window({second}, time.clock());
  time.now += 10;
  set(0, 6'000), set(1, 93'500);
  EXPECT_EQ(window.end().by_device.at("cuda:0").value, 3.5);
  std::ifstream readings(folder / "readings");
  for (std::string gpu; std::getline(readings, gpu);) EXPECT_EQ(gpu, "1");
  EXPECT_EQ(library->celsius("0000:02:00.0"), 41.0);
}

TEST_F(NvmlMeters, SayWhyThereIsNone) {
  std::string fault;
  EXPECT_EQ(NvmlLibrary::open(folder / "no.so", fault), nullptr);
  EXPECT_NE(fault.find("NVML cannot be loaded"), std::string::npos) << fault;
  const auto library = NvmlLibrary::open(LIMBECK_STAND_IN_NVML_FILE, fault);
  ASSERT_NE(library, nullptr) << "what was wrong before is not wrong now: " << fault;
  EXPECT_EQ(fault, "");
  EXPECT_NE(library->meters("0000:09:00.0", "cuda:0").absent.find("knows no GPU at 0000:09:00.0"), std::string::npos);
  fs::remove(folder / "0");
  EXPECT_NE(library->meters("0000:01:00.0", "cuda:0").absent.find("Not Supported"), std::string::npos);
}

TEST_F(NvmlMeters, AreNotTouchedByWorkOnTheCpu) {
  write_zone(folder / "rapl" / "intel-rapl:0", "package-0", 5, 65'532'610'987);
  const MeterPlaces places{.powercap = folder / "rapl",
                           .power_events = folder / "none",
                           .thermal = folder / "none",
                           .nvml = LIMBECK_STAND_IN_NVML_FILE};
  const auto devices = meters_of_work_on(c10::Device(c10::kCPU), places);
  ASSERT_EQ(devices.size(), 1u);
  EXPECT_EQ(devices[0].device, "cpu");
  EXPECT_EQ(EnergyWindow(devices).end().by_device.size(), 1u);
  EXPECT_FALSE(fs::exists(folder / "readings"));
}

TEST(MachineMeters, TakePerfWherePowercapIsClosedAndSayBothWhereNeitherIs) {
  const test::TemporaryFolder root;
  const MeterPlaces places{
      .powercap = root / "a", .power_events = root / "b", .thermal = root / "t", .nvml = "none.so"};
  const auto devices = meters_of_work_on(c10::Device(c10::kCPU), places);
  EXPECT_NE(devices[0].absent.find("no RAPL counters"), std::string::npos);
  EXPECT_NE(devices[0].absent.find("no power events"), std::string::npos);
  std::string reason;
  EXPECT_FALSE(celsius_of(c10::Device(c10::kCPU), reason, places).has_value());
  EXPECT_NE(reason.find("has no zone of a processor"), std::string::npos);
  fs::create_directories(root / "t" / "thermal_zone3");
  std::ofstream(root / "t" / "thermal_zone3" / "type") << "x86_pkg_temp\n";
  std::ofstream(root / "t" / "thermal_zone3" / "temp") << "47250\n";
  EXPECT_EQ(celsius_of(c10::Device(c10::kCPU), reason, places), 47.25);
}

}  // namespace
}  // namespace limbeck::energy
