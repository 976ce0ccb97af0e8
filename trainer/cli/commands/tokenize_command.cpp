// limbeck tokenize: the token ids of lines of text or of chats, and what each of them decodes to.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <chrono>

#include "modules/errors.h"
#include "modules/text/tokenizer.h"
#include "trainer/cli/commands/chats.h"
#include "trainer/cli/commands/command.h"
#include "trainer/cli/commands/prompts.h"

namespace limbeck::cli {
namespace {

using recipe::OptionKind;

// What each id adds to the text when they come one by one; the last piece is what was kept back.
nlohmann::ordered_json pieces_of(const text::Tokenizer& tokenizer, const text::Ids& ids, bool skip_special) {
  auto pieces = nlohmann::ordered_json::array();
  text::StreamDecoder stream(tokenizer, skip_special);
  for (const text::TokenId id : ids) pieces.push_back(stream.push(id));
  pieces.push_back(stream.finish());
  return pieces;
}

using Line = WrittenChat;  // a text and where it stands

void check_source(const recipe::Settings& settings) {
  if (given_among(settings, {"input", "chat", "chats"}) != 1) {
    throw UsageError(
        "limbeck tokenize: wanted one of --input=FILE (lines of text), --chat=\"a message\" and --chats=FILE "
        "(messages as JSON)");
  }
  for (const char* of_chats : {"system", "no-generation-prompt"}) {
    if (settings.given(of_chats) && settings.given("input"))
      throw UsageError(fmt::format("--{}: is about chats, wanted with --chat=TEXT or --chats=FILE", of_chats));
  }
}

std::vector<Line> lines_of(const recipe::Settings& settings) {
  if (gives_chats(settings))
    return written_chats(settings, tokenizer_folder(settings), !settings.enabled("no-generation-prompt"));
  const auto input = settings.required_path("input");
  std::vector<Line> lines;
  for (std::string& text : read_lines(input))
    lines.push_back({std::move(text), fmt::format("{}:{}", input.string(), lines.size() + 1)});
  return lines;
}

void run_tokenize(Invocation& call) {
  const auto& settings = call.settings;
  check_source(settings);
  const text::Tokenizer tokenizer(tokenizer_folder(settings));
  std::vector<Line> lines = lines_of(settings);
  const bool bare = gives_chats(settings) || settings.enabled("no-special-tokens");
  const auto special = bare ? text::SpecialTokens::kLeaveOut : text::SpecialTokens::kAdd;
  std::vector<text::Ids> rows;
  rows.reserve(lines.size());
  size_t tokens = 0;
  const auto begin = std::chrono::steady_clock::now();
  for (const Line& line : lines) {
    rows.push_back(tokenizer.encode(line.text, special, line.where));
    tokens += rows.back().size();
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  auto pieces = nlohmann::ordered_json::array();
  for (const text::Ids& ids : rows) {
    if (!settings.given("json")) {
      call.console.result(fmt::format("{}", fmt::join(ids, ",")));
      continue;
    }
    pieces.push_back(pieces_of(tokenizer, ids, settings.enabled("skip-special-tokens")));
  }
  call.result["ids"] = rows;
  if (gives_chats(settings)) {
    auto texts = nlohmann::ordered_json::array();
    for (Line& line : lines) texts.push_back(std::move(line.text));
    call.result["texts"] = std::move(texts);
  }
  call.result["pieces"] = std::move(pieces);
  call.result["seconds"] = seconds;
  call.console.note(
      fmt::format("{} lines, {} tokens in {:.3f} s by {}", lines.size(), tokens, seconds, tokenizer.where()));
}

void declare_tokenize(recipe::OptionTable& table) {
  table.group("Text");
  table.add({.name = "model",
             .kind = OptionKind::kPath,
             .help = "Hugging Face folder with a tokenizer.json.",
             .value_name = "DIR",
             .flag_only = true,
             .on_hub = true});
  declare_tokenizer(table);
  table.add({.name = "input",
             .kind = OptionKind::kPath,
             .help = "Text, tokenized line by line; .jsonl: a JSON string on each line.",
             .value_name = "FILE",
             .flag_only = true});
  declare_chats(table);
  table.add({.name = "no-generation-prompt",
             .kind = OptionKind::kSwitch,
             .help = "Write a chat as it is, without the beginning of an answer.",
             .flag_only = true});
  table.add({.name = "skip-special-tokens",
             .kind = OptionKind::kSwitch,
             .help = "Leave special tokens out of the pieces that --json decodes.",
             .flag_only = true});
}

}  // namespace

Command tokenize_command() {
  return {.name = "tokenize",
          .summary = "Token ids of lines of text or of chats; with --json also the text of each token and chat.",
          .example = "limbeck tokenize --model models/small --input lines.txt",
          .declare = declare_tokenize,
          .run = run_tokenize};
}

}  // namespace limbeck::cli
