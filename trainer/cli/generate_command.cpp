// limbeck generate: greedy or sampled tokens of a Hugging Face decoder, from ids.
#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <chrono>

#include "modules/errors.h"
#include "modules/io/safetensors.h"
#include "modules/models/generator.h"
#include "modules/precision/casts.h"
#include "trainer/cli/command.h"
#include "trainer/cli/model_options.h"
#include "trainer/cli/progress.h"

namespace limbeck::cli {
namespace {

using recipe::OptionKind;

struct Prompts {
  at::Tensor ids, mask;
};

std::vector<int64_t> parse_ids(const std::string& text) {
  std::vector<int64_t> ids;
  const char* at = text.data();
  const char* end = at + text.size();
  while (at < end) {
    int64_t id = 0;
    const auto [next, fault] = std::from_chars(at, end, id);
    if (fault != std::errc() || (next != end && *next != ',')) {
      throw UsageError(fmt::format("--prompt-ids \"{}\": wanted integers with commas between, such as 1,15,7", text));
    }
    ids.push_back(id);
    at = next == end ? end : next + 1;
  }
  if (ids.empty()) throw UsageError("--prompt-ids is empty: wanted integers with commas between, such as 1,15,7");
  return ids;
}

// Rows of different lengths are padded on the left, where decoding expects the padding.
Prompts from_lists(const std::vector<std::string>& lists) {
  std::vector<std::vector<int64_t>> rows;
  size_t longest = 0;
  for (const std::string& list : lists) {
    rows.push_back(parse_ids(list));
    longest = std::max(longest, rows.back().size());
  }
  const auto shape = {static_cast<int64_t>(rows.size()), static_cast<int64_t>(longest)};
  Prompts prompts{at::zeros(shape, at::kLong), at::zeros(shape, at::kLong)};
  for (size_t row = 0; row < rows.size(); ++row) {
    const auto skip = static_cast<int64_t>(longest - rows[row].size());
    const at::Tensor ids = at::tensor(at::ArrayRef<int64_t>(rows[row]), at::kLong);
    prompts.ids[static_cast<int64_t>(row)].narrow(0, skip, ids.numel()).copy_(ids);
    prompts.mask[static_cast<int64_t>(row)].narrow(0, skip, ids.numel()).fill_(1);
  }
  return prompts;
}

Prompts from_file(const std::filesystem::path& path) {
  Prompts prompts;
  for (auto& [name, tensor] : io::read_safetensors(path)) {
    if (name == "input_ids")
      prompts.ids = integer_input(path, name, tensor);
    else if (name == "attention_mask")
      prompts.mask = integer_input(path, name, tensor);
    else
      throw InputDataError(
          fmt::format("{}: tensor {} is not known: wanted input_ids and attention_mask", path.string(), name));
  }
  if (!prompts.ids.defined() || prompts.ids.dim() != 2 || prompts.ids.numel() == 0) {
    throw InputDataError(fmt::format("{}: wanted a tensor input_ids of two dimensions [batch, length]", path.string()));
  }
  if (!prompts.mask.defined()) prompts.mask = at::ones_like(prompts.ids);
  if (prompts.mask.sizes() != prompts.ids.sizes() || prompts.mask.select(1, -1).eq(0).any().item<bool>()) {
    throw InputDataError(fmt::format(
        "{}: attention_mask must have the shape of input_ids, with padding on the left only", path.string()));
  }
  return prompts;
}

models::GenerateOptions options_of(const recipe::Settings& settings) {
  models::GenerateOptions options;
  options.max_new_tokens = settings.integer("max-new-tokens");
  options.temperature = settings.number("temperature");
  options.top_k = settings.integer("top-k");
  options.top_p = settings.number("top-p");
  options.seed = static_cast<uint64_t>(settings.integer("seed"));
  options.cache = !settings.enabled("no-cache");
  options.allow_nonfinite = settings.enabled("allow-nonfinite");
  options.ignore_end = settings.enabled("ignore-eos");
  return options;
}

void run_generate(Invocation& call) {
  const auto& settings = call.settings;
  const auto lists = settings.list("prompt-ids");
  if (lists.empty() != settings.given("prompts")) {
    throw UsageError("limbeck generate: wanted either --prompt-ids=1,15,7 or --prompts=FILE.safetensors");
  }
  const Prompts prompts = lists.empty() ? from_file(settings.path("prompts")) : from_lists(lists);
  const models::GenerateOptions options = options_of(settings);
  const models::ModelRequest request = single_model(settings);
  models::BuiltModel built = models::load_model(request);
  report_load(built, call.console);
  load_named_adapter(settings, built, {}, call.console);

  Progress progress(call.console.err(), "generate", "tokens", options.max_new_tokens,
                    {.width = terminal_width(2), .quiet = call.console.quiet()});
  const auto begin = std::chrono::steady_clock::now();
  const at::Tensor ids = precision::move(prompts.ids, request.device);
  const at::Tensor mask = prompts.mask.defined() ? precision::move(prompts.mask, request.device) : prompts.mask;
  const at::Tensor tokens = precision::move(
      models::generate(*built.model, ids, mask, options, [&](int64_t step) { progress.update(step); }), c10::kCPU);
  progress.finish();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  const int64_t fresh = tokens.size(1) - prompts.ids.size(1);
  if (settings.given("output")) io::write_safetensors(settings.path("output"), {{"tokens", tokens}});
  auto rows = nlohmann::ordered_json::array();
  for (int64_t row = 0; row < tokens.size(0); ++row) {
    const at::Tensor line = tokens[row].narrow(0, prompts.ids.size(1), fresh).contiguous();
    const int64_t* id = line.const_data_ptr<int64_t>();
    rows.push_back(std::vector<int64_t>(id, id + fresh));
    if (!settings.given("output")) call.console.result(fmt::format("{}", fmt::join(id, id + fresh, ",")));
  }
  call.result["tokens"] = rows;
  call.result["tokens_per_second"] = static_cast<double>(fresh * tokens.size(0)) / seconds;
}

void declare_generate(recipe::OptionTable& table) {
  declare_single_model(table);
  table.group("Prompts");
  table.add({.name = "prompt-ids",
             .kind = OptionKind::kList,
             .help = "Token ids of one prompt; may be repeated.",
             .value_name = "1,15,7",
             .flag_only = true});
  table.add({.name = "prompts",
             .kind = OptionKind::kPath,
             .help = "safetensors: input_ids [B,T] and attention_mask, padded on the left.",
             .value_name = "FILE",
             .flag_only = true});
  table.add({.name = "output",
             .kind = OptionKind::kPath,
             .help = "safetensors: tokens [B, T + new].",
             .value_name = "FILE",
             .writes = recipe::Writes::kFile,
             .flag_only = true});
  table.group("Generation");
  table.add({.name = "max-new-tokens",
             .kind = OptionKind::kInteger,
             .fallback = "64",
             .help = "Tokens to add at most.",
             .range = {1, 1 << 24},
             .flag_only = true});
  table.add({.name = "temperature",
             .kind = OptionKind::kNumber,
             .fallback = "0",
             .help = "0: greedy; above: sampled from logits divided by it.",
             .interval = {.low = 0, .high = 100},
             .flag_only = true});
  table.add({.name = "top-k",
             .kind = OptionKind::kInteger,
             .fallback = "0",
             .help = "Sample among the k likeliest tokens; 0: among all.",
             .range = {0, 1 << 24},
             .flag_only = true});
  table.add({.name = "top-p",
             .kind = OptionKind::kNumber,
             .fallback = "1",
             .help = "Sample among the likeliest tokens that hold this share of the probability.",
             .interval = {.low = 0, .high = 1, .above_low = true},
             .flag_only = true});
  table.add({.name = "seed",
             .kind = OptionKind::kInteger,
             .fallback = "0",
             .help = "Seed of the sampling.",
             .range = {.low = 0},
             .flag_only = true});
  table.add({.name = "no-cache",
             .kind = OptionKind::kSwitch,
             .help = "Recompute every token at every step: slow, the reference for the cache.",
             .flag_only = true});
  table.add({.name = "ignore-eos",
             .kind = OptionKind::kSwitch,
             .help = "Go on past the end-of-sequence token.",
             .flag_only = true});
}

}  // namespace

Command generate_command() {
  return {.name = "generate",
          .summary = "Tokens of a Hugging Face decoder, greedy or sampled, from prompt ids.",
          .computes = true,
          .declare = declare_generate,
          .run = run_generate};
}

}  // namespace limbeck::cli
