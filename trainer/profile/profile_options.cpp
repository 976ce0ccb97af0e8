#include "trainer/profile/profile_options.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>
#include <sstream>

#include "modules/errors.h"
#include "trainer/profile/profiled_precision.h"
#include "trainer/recipe/value.h"

namespace limbeck::profile {
namespace {

constexpr std::array kWorks = {Work::kForward, Work::kTraining, Work::kGeneration};

std::vector<std::string> listed(const recipe::Settings& settings, const std::string& key) {
  std::vector<std::string> words;
  std::istringstream text(settings.text(key));
  for (std::string word; std::getline(text, word, ',');) {
    word.erase(0, word.find_first_not_of(' '));
    word.erase(word.find_last_not_of(' ') + 1);
    if (!word.empty()) words.push_back(word);
  }
  if (!words.empty()) return words;
  throw UsageError(fmt::format("{} {}: names nothing: wanted a list such as {}", key, settings.where(key),
                               settings.table().find(key)->fallback));
}

Work work_named(const std::string& word, const std::string& where) {
  std::vector<std::string> names;
  for (const Work work : kWorks) {
    if (word == work_name(work)) return work;
    names.emplace_back(work_name(work));
  }
  throw UsageError(
      fmt::format("profile.work {}: \"{}\" is unknown, wanted some of {}", where, word, fmt::join(names, ", ")));
}

std::vector<std::string> devices_of(const recipe::Settings& settings) {
  const std::vector<std::string> words = listed(settings, "profile.devices");
  if (words == std::vector<std::string>{"auto"}) {
    for (const char* key : {"student.device", "device"}) {
      if (settings.given(key)) return {settings.device_of("student").str()};
    }
    return {};
  }
  for (const std::string& word : words) {
    const auto device = recipe::to_device(word);
    if (device && (device->is_cpu() || device->is_cuda())) continue;
    throw UsageError(fmt::format("profile.devices {}: \"{}\": wanted auto, or some of cpu, cuda, cuda:N",
                                 settings.where("profile.devices"), word));
  }
  return words;
}

}  // namespace

const char* work_name(Work work) {
  switch (work) {
    case Work::kForward:
      return "forward";
    case Work::kTraining:
      return "training";
    case Work::kGeneration:
      return "generation";
  }
  return "";
}

ProfileOptions read_profile_options(const recipe::Settings& settings) {
  ProfileOptions options;
  options.precisions = listed(settings, "profile.precisions");
  for (const std::string& name : options.precisions)
    ProfiledPrecision::parse(name, settings.where("profile.precisions"));
  for (const std::string& word : listed(settings, "profile.work"))
    options.work.push_back(work_named(word, settings.where("profile.work")));
  options.devices = devices_of(settings);
  options.batch = settings.integer("profile.batch");
  options.length = settings.integer("profile.length");
  options.new_tokens = settings.integer("profile.new_tokens");
  options.seed = static_cast<uint64_t>(settings.integer("seed"));
  options.repetitions = {.warmup = settings.integer("profile.warmup"),
                         .measured = settings.integer("profile.measured"),
                         .trials = settings.integer("profile.trials"),
                         .most_seconds = settings.number("profile.most_seconds")};
  options.energy.least_seconds = settings.number("profile.energy_seconds");
  options.energy.spread = settings.number("profile.energy_spread");
  options.measures_energy = settings.text("profile.energy") != "off";
  options.measures_modules = settings.text("profile.energy") == "modules";
  return options;
}

}  // namespace limbeck::profile
