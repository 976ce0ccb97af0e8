#include "trainer/build/adapter_options.h"

#include <fmt/format.h>

#include <cmath>

#include "modules/adapters/adapter_config.h"
#include "modules/errors.h"
#include "trainer/recipe/message.h"
#include "trainer/recipe/value.h"

namespace limbeck::build {
namespace {

adapters::ModulePattern checked_pattern(const recipe::Value& entry, const std::string& key, const std::string& text) {
  adapters::ModulePattern pattern(text);
  if (pattern.fault().empty()) return pattern;
  throw UsageError(fmt::format("{} ({}): {}", key, entry.origin.to_string(), pattern.fault()));
}

// "down_proj 8", once or more often: the value is what follows the last space. read(text) gives it, or nothing where it
// is not `wanted`.
template <class Value, class Read>
adapters::ByPattern<Value> patterns_of(const recipe::Settings& settings, const std::string& key,
                                       const std::string& word, const std::string& wanted, const Read& read) {
  adapters::ByPattern<Value> found;
  for (const recipe::Value& entry : settings.values(key)) {
    const auto refuse = [&](const std::string& what) {
      throw UsageError(
          fmt::format("{} = {} ({}): wanted {}", key, recipe::shown(entry.text), entry.origin.to_string(), what));
    };
    const size_t space = entry.text.rfind(' ');
    if (space == std::string::npos || space == 0) {
      refuse(fmt::format("\"MODULE {}\", for example \"down_proj 8\"", word));
    }
    const adapters::ModulePattern module = checked_pattern(entry, key, entry.text.substr(0, space));
    const std::optional<Value> value = read(entry.text.substr(space + 1));
    if (!value) refuse(wanted + " after the module");
    found.emplace_back(module, *value);
  }
  return found;
}

std::optional<int64_t> rank_of(const std::string& text) {
  const auto rank = recipe::to_integer(text);
  return rank && *rank >= 1 && *rank <= adapters::kMostRank ? rank : std::nullopt;
}

std::optional<double> alpha_of(const std::string& text) {
  const auto alpha = recipe::to_number(text);
  return alpha && std::abs(*alpha) <= adapters::kMostAlpha ? alpha : std::nullopt;
}

std::vector<adapters::ModulePattern> targets_of(const recipe::Settings& settings) {
  std::vector<adapters::ModulePattern> targets;
  for (const recipe::Value& target : settings.values("adapter.target")) {
    targets.push_back(checked_pattern(target, "adapter.target", target.text));
  }
  return targets;
}

adapters::NewAdapter new_adapter(const recipe::Settings& settings) {
  adapters::NewAdapter wanted;
  const std::string& kind = settings.text("adapter.kind");
  wanted.config.kind = kind == "ia3" ? adapters::PeftKind::kIa3 : adapters::PeftKind::kLora;
  wanted.config.dora = kind == "dora";
  wanted.config.rslora = settings.enabled("adapter.rslora");
  wanted.config.rank = settings.integer("adapter.rank");
  wanted.config.alpha = settings.number("adapter.alpha");
  wanted.config.dropout = settings.number("adapter.dropout");
  wanted.config.ranks = patterns_of<int64_t>(settings, "adapter.rank_pattern", "RANK",
                                             fmt::format("a rank of 1 to {}", adapters::kMostRank), rank_of);
  wanted.config.alphas = patterns_of<double>(settings, "adapter.alpha_pattern", "ALPHA", "a number", alpha_of);
  wanted.targets = targets_of(settings);
  wanted.name = kAdapterName;
  wanted.seed = static_cast<uint64_t>(settings.integer("seed"));
  return wanted;
}

adapters::NptOptions npt_options(const recipe::Settings& settings) {
  adapters::NptOptions wanted;
  const std::string &modulation = settings.text("adapter.modulation"),
                    &curve = settings.text("adapter.modulation_curve");
  const bool safe = settings.enabled("train.safe_mode");
  if (safe && settings.given("adapter.modulation") && modulation != "additive") {
    throw UsageError(
        fmt::format("adapter.modulation = {} {} with train.safe_mode {}, which has additive alone: remove one "
                    "of the two",
                    modulation, settings.where("adapter.modulation"), settings.where("train.safe_mode")));
  }
  wanted.kind = settings.text("adapter.npt") == "outer" ? adapters::NptKind::kOuter : adapters::NptKind::kDelta;
  wanted.modulation = safe || modulation == "additive" ? adapters::Modulation::kAdditive
                      : modulation == "multiplicative" ? adapters::Modulation::kMultiplicative
                                                       : adapters::Modulation::kBoth;
  wanted.curve = curve == "legacy" ? adapters::ModulationCurve::kLegacy : adapters::ModulationCurve::kNeutral;
  wanted.rank = settings.integer("adapter.rank");
  wanted.scale = settings.number("adapter.scale");
  wanted.seed = static_cast<uint64_t>(settings.integer("seed"));
  return wanted;
}

adapters::NewAdded new_added(const recipe::Settings& settings, const adapters::AddedKind& kind) {
  for (const char* key : {"adapter.rslora", "adapter.rank_pattern", "adapter.alpha_pattern"}) {
    if (!settings.given(key)) continue;
    throw UsageError(fmt::format("{} {} with an adapter of kind {} {}: only lora and dora have it: leave it out", key,
                                 settings.where(key), kind.name, settings.where("adapter.kind")));
  }
  adapters::NewAdded wanted;
  wanted.config = {&kind,
                   {.rank = settings.integer("adapter.rank"),
                    .alpha = settings.number("adapter.alpha"),
                    .dropout = settings.number("adapter.dropout"),
                    .scale = settings.number("adapter.scale")}};
  wanted.targets = targets_of(settings);
  wanted.name = kAdapterName;
  wanted.seed = static_cast<uint64_t>(settings.integer("seed"));
  return wanted;
}

void check_recipe(const recipe::Settings& settings) {
  if (settings.text("student.init") == "random") {
    throw UsageError(
        fmt::format("student.init = random {} with an adapter: the random weights below it would neither be trained "
                    "nor saved; train the student first, or set student.init = weights",
                    settings.where("student.init")));
  }
  if (settings.text("teacher.kind") == "ema") {
    throw UsageError(
        fmt::format("teacher.kind = ema {} averages the student's own weights, which stay as they are under an "
                    "adapter: set teacher.kind = self (the student without its adapter), or name a teacher.model",
                    settings.where("teacher.kind")));
  }
}

// "adapter.dropout = 0.1 (my.ini:4)"
std::string words_of(const recipe::Settings& settings, const std::string& key) {
  return fmt::format("{} = {} {}", key, settings.text(key), settings.where(key));
}

StoredAdapter stored_adapter(const recipe::Settings& settings) {
  StoredAdapter stored{.folder = settings.required_path("adapter.from"),
                       .folder_where = settings.where("adapter.from"),
                       .dropout = {},
                       .dropout_words = words_of(settings, "adapter.dropout")};
  if (settings.given("adapter.dropout")) stored.dropout = settings.number("adapter.dropout");
  return stored;
}

}  // namespace

void require_dropout_fits(const std::string& dropout_words, double dropout, const std::string& kind,
                          const std::string& kind_where) {
  if (dropout == 0 || adapters::kind_has_dropout(kind)) return;
  throw UsageError(fmt::format("{} with an adapter of kind {} {}: only lora and dora have one: leave it out",
                               dropout_words, kind, kind_where));
}

bool trains_adapter(const recipe::Settings& settings) {
  return settings.text("adapter.kind") != "none" || !settings.text("adapter.from").empty();
}

AdapterOptions read_adapter_options(const recipe::Settings& settings) {
  AdapterOptions options;
  if (!trains_adapter(settings)) return options;
  check_recipe(settings);
  const std::string& kind = settings.text("adapter.kind");
  options.kind_words = words_of(settings, "adapter.kind");
  if (!settings.text("adapter.from").empty()) {
    options.wanted = stored_adapter(settings);
    return options;
  }
  require_dropout_fits(words_of(settings, "adapter.dropout"), settings.number("adapter.dropout"), kind,
                       settings.where("adapter.kind"));
  if (kind == "npt") {
    options.wanted = npt_options(settings);
  } else if (const adapters::AddedKind* added = adapters::find_added(kind)) {
    options.wanted = new_added(settings, *added);
  } else {
    options.wanted = new_adapter(settings);
  }
  return options;
}

}  // namespace limbeck::build
