// limbeck tokenize: the token ids of lines of text, and what each of them decodes to.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <chrono>

#include "modules/text/tokenizer.h"
#include "trainer/cli/command.h"
#include "trainer/cli/prompts.h"

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

void run_tokenize(Invocation& call) {
  const auto& settings = call.settings;
  const auto input = settings.required_path("input");
  const text::Tokenizer tokenizer(tokenizer_folder(settings));
  const auto special =
      settings.enabled("no-special-tokens") ? text::SpecialTokens::kLeaveOut : text::SpecialTokens::kAdd;
  const std::vector<std::string> lines = read_lines(input);
  std::vector<text::Ids> rows;
  rows.reserve(lines.size());
  size_t tokens = 0;
  const auto begin = std::chrono::steady_clock::now();
  for (const std::string& line : lines) {
    rows.push_back(tokenizer.encode(line, special, fmt::format("{}:{}", input.string(), rows.size() + 1)));
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
  table.add({.name = "skip-special-tokens",
             .kind = OptionKind::kSwitch,
             .help = "Leave special tokens out of the pieces that --json decodes.",
             .flag_only = true});
}

}  // namespace

Command tokenize_command() {
  return {.name = "tokenize",
          .summary = "Token ids of lines of text; with --json also the text of each token.",
          .example = "limbeck tokenize --model models/small --input lines.txt",
          .declare = declare_tokenize,
          .run = run_tokenize};
}

}  // namespace limbeck::cli
