// limbeck generate: a text, a chat, or ids, continued by a Hugging Face decoder, greedy or sampled.
#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <optional>

#include "modules/errors.h"
#include "modules/io/safetensors.h"
#include "modules/models/network/generator.h"
#include "modules/precision/casts.h"
#include "trainer/cli/commands/chats.h"
#include "trainer/cli/commands/command.h"
#include "trainer/cli/commands/model_options.h"
#include "trainer/cli/commands/prompts.h"
#include "trainer/cli/console/progress.h"

namespace limbeck::cli {
namespace {

using recipe::OptionKind;

// The prompts, and the tokenizer when there is text on either side.
struct Request {
  Prompts prompts;
  std::optional<text::Tokenizer> tokenizer;
  IdRows encoded;                   // by the tokenizer; empty for ids that were given
  std::vector<std::string> places;  // where the text of each of these rows stands
};

void check_prompts(const recipe::Settings& settings) {
  if (given_among(settings, {"prompt", "prompts", "prompt-ids", "chat", "chats"}) != 1) {
    throw UsageError(
        "limbeck generate: wanted one of --prompt=\"some text\", --prompts=FILE (lines of text, or .safetensors with "
        "input_ids), --prompt-ids=1,15,7, --chat=\"a message\" and --chats=FILE (messages as JSON)");
  }
  if (settings.given("system") && !gives_chats(settings))
    throw UsageError("--system: is the system message of a chat, wanted with --chat=TEXT or --chats=FILE");
}

void add_text(Request& request, const std::string& text, text::SpecialTokens special, const std::string& place) {
  request.encoded.push_back(prompt_ids(*request.tokenizer, text, special, place));
  request.places.push_back(place);
}

Request read_request(const recipe::Settings& settings) {
  Request request;
  const bool tensors = settings.given("prompts") && settings.path("prompts").extension() == ".safetensors";
  IdRows rows;
  for (const std::string& list : settings.list("prompt-ids")) rows.push_back(parse_ids(list));
  if (tensors || !rows.empty()) {
    if (settings.given("tokenizer")) request.tokenizer.emplace(tokenizer_folder(settings));
    request.prompts = tensors ? prompts_from_tensors(settings.path("prompts")) : padded(rows);
    return request;
  }
  request.tokenizer.emplace(tokenizer_folder(settings));
  const auto special =
      settings.enabled("no-special-tokens") ? text::SpecialTokens::kLeaveOut : text::SpecialTokens::kAdd;
  if (gives_chats(settings)) {
    for (const WrittenChat& chat : written_chats(settings, tokenizer_folder(settings), true))
      add_text(request, chat.text, text::SpecialTokens::kLeaveOut, chat.where);
  } else if (settings.given("prompts")) {
    const std::string file = settings.path("prompts").string();
    for (const std::string& text : read_lines(settings.path("prompts")))
      add_text(request, text, special, fmt::format("{}:{}", file, request.encoded.size() + 1));
  } else {
    for (const std::string& text : settings.list("prompt")) add_text(request, text, special, "--prompt");
  }
  request.prompts = padded(request.encoded);
  return request;
}

// Text of the rows as they grow: one row's at once, several rows' when all is done.
class Answers {
 public:
  Answers(const text::Tokenizer& tokenizer, int64_t rows, std::vector<int64_t> ends, Console* live)
      : texts_(static_cast<size_t>(rows)), ended_(static_cast<size_t>(rows)), ends_(std::move(ends)), live_(live) {
    for (int64_t row = 0; row < rows; ++row) streams_.emplace_back(tokenizer, true);
  }

  void push(const at::Tensor& next) {
    const at::Tensor ids = precision::move(next, c10::kCPU).contiguous();
    for (size_t row = 0; row < streams_.size(); ++row) {
      const int64_t id = ids.const_data_ptr<int64_t>()[row];
      ended_[row] = ended_[row] || std::find(ends_.begin(), ends_.end(), id) != ends_.end();
      if (!ended_[row]) add(row, streams_[row].push(static_cast<text::TokenId>(id)));
    }
  }
  const std::vector<std::string>& finish() {
    for (size_t row = 0; row < streams_.size(); ++row) add(row, streams_[row].finish());
    if (live_ != nullptr) live_->piece("\n");
    return texts_;
  }

 private:
  void add(size_t row, const std::string& piece) {
    texts_[row] += piece;
    if (live_ != nullptr && !piece.empty()) live_->piece(piece);
  }

  std::vector<text::StreamDecoder> streams_;
  std::vector<std::string> texts_;
  std::vector<bool> ended_;
  std::vector<int64_t> ends_;
  Console* live_;
};

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
  check_prompts(settings);
  const auto [prompts, tokenizer, encoded, places] =
      read_request(settings);  // what is wrong there need not wait for weights
  const models::GenerateOptions options = options_of(settings);
  const models::ModelRequest request = single_model(settings);
  models::BuiltModel built = models::load_model(request);
  report_load(built, call.console);
  load_named_adapter(settings, built, {}, call.console);
  const models::Architecture& a = built.model->architecture();
  for (size_t row = 0; row < encoded.size(); ++row) {
    require_known(*tokenizer, encoded[row], places[row], a.vocabulary);
  }
  const bool to_file = settings.given("output");
  const bool live = tokenizer && prompts.ids.size(0) == 1 && !to_file;
  std::optional<Answers> answers;
  if (tokenizer) {
    answers.emplace(*tokenizer, prompts.ids.size(0), options.ignore_end ? std::vector<int64_t>{} : a.end_of_sequence,
                    live ? &call.console : nullptr);
  }

  Progress progress(call.console.err(), "generate", "tokens", options.max_new_tokens,
                    {.width = terminal_width(2), .quiet = call.console.quiet() || live});
  const auto begin = std::chrono::steady_clock::now();
  const at::Tensor ids = precision::move(prompts.ids, request.device);
  const at::Tensor mask = prompts.mask.defined() ? precision::move(prompts.mask, request.device) : prompts.mask;
  const at::Tensor tokens = precision::move(models::generate(*built.model, ids, mask, options,
                                                             [&](int64_t step, const at::Tensor& next) {
                                                               if (answers) answers->push(next);
                                                               progress.update(step);
                                                             }),
                                            c10::kCPU);
  progress.finish();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  const int64_t fresh = tokens.size(1) - prompts.ids.size(1);
  if (settings.given("output")) io::write_safetensors(settings.path("output"), {{"tokens", tokens}});
  auto rows = nlohmann::ordered_json::array();
  for (int64_t row = 0; row < tokens.size(0); ++row) {
    const at::Tensor line = tokens[row].narrow(0, prompts.ids.size(1), fresh).contiguous();
    const int64_t* id = line.const_data_ptr<int64_t>();
    rows.push_back(std::vector<int64_t>(id, id + fresh));
    if (!to_file && !answers) call.console.result(fmt::format("{}", fmt::join(id, id + fresh, ",")));
  }
  call.result["tokens"] = rows;
  if (answers) {
    call.result["texts"] = answers->finish();
    for (const auto& text : call.result["texts"]) {
      if (!live && !to_file) call.console.result(text.get<std::string>());
    }
  }
  call.result["tokens_per_second"] = static_cast<double>(fresh * tokens.size(0)) / seconds;
}

void declare_generate(recipe::OptionTable& table) {
  declare_single_model(table);
  table.group("Prompts");
  table.add({.name = "prompt",
             .kind = OptionKind::kList,
             .help = "A text to go on from, answered in text; may be repeated.",
             .value_name = "TEXT",
             .flag_only = true});
  table.add({.name = "prompt-ids",
             .kind = OptionKind::kList,
             .help = "Token ids of one prompt; may be repeated.",
             .value_name = "1,15,7",
             .flag_only = true});
  table.add({.name = "prompts",
             .kind = OptionKind::kPath,
             .help = "Lines of text, one prompt each (.jsonl: JSON strings); or .safetensors: input_ids [B,T] and "
                     "attention_mask, padded on the left.",
             .value_name = "FILE",
             .flag_only = true});
  declare_chats(table);
  declare_tokenizer(table);
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
          .summary = "Tokens of a Hugging Face decoder, greedy or sampled, from a text, a chat or ids.",
          .example = "limbeck generate --model runs/mine/best --chat \"Name three rivers.\" --max-new-tokens 64",
          .computes = true,
          .declare = declare_generate,
          .run = run_generate};
}

}  // namespace limbeck::cli
