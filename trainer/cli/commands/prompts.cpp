#include "trainer/cli/commands/prompts.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "modules/errors.h"
#include "modules/io/input_file.h"
#include "modules/io/json_text.h"
#include "modules/io/safetensors.h"
#include "trainer/cli/commands/model_options.h"

namespace limbeck::cli {

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
Prompts padded(const IdRows& rows) {
  size_t longest = 0;
  for (const std::vector<int64_t>& row : rows) longest = std::max(longest, row.size());
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

Prompts prompts_from_tensors(const std::filesystem::path& path) {
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

std::vector<int64_t> prompt_ids(const text::Tokenizer& tokenizer, const std::string& text, text::SpecialTokens special,
                                const std::string& where) {
  const text::Ids ids = tokenizer.encode(text, special, where);
  if (ids.empty()) throw InputDataError(fmt::format("{}: gives no tokens, wanted a text of at least one", where));
  return {ids.begin(), ids.end()};
}

void require_known(const text::Tokenizer& tokenizer, const std::vector<int64_t>& ids, const std::string& where,
                   int64_t vocabulary) {
  const auto top = *std::max_element(ids.begin(), ids.end());
  if (top < vocabulary) return;
  throw WeightsError(
      fmt::format("{}: gives id {} for {}, and the model knows ids below {}: name the model's own with "
                  "--tokenizer=DIR",
                  tokenizer.where(), top, where, vocabulary));
}

std::vector<std::string> read_lines(const std::filesystem::path& path) {
  const std::string all = io::InputFile(path).whole();
  std::vector<std::string> lines;
  for (size_t at = 0; at < all.size();) {
    const size_t end = std::min(all.find('\n', at), all.size());
    std::string line = all.substr(at, end - at);
    if (path.extension() == ".jsonl") {
      const std::string where = fmt::format("{}:{}", path.string(), lines.size() + 1);
      const auto value = io::parse_json(line, where);
      if (!value.is_string()) throw InputDataError(where + ": wanted a JSON string on every line");
      line = value.get<std::string>();
    }
    lines.push_back(std::move(line));
    at = end + 1;
  }
  if (lines.empty()) throw InputDataError(path.string() + ": is empty, wanted lines of text");
  return lines;
}

int given_among(const recipe::Settings& settings, std::initializer_list<const char*> names) {
  return static_cast<int>(std::count_if(names.begin(), names.end(), [&](const char* n) { return settings.given(n); }));
}

std::filesystem::path tokenizer_folder(const recipe::Settings& settings) {
  return settings.given("tokenizer") ? settings.path("tokenizer") : settings.required_path("model");
}

void declare_tokenizer(recipe::OptionTable& table) {
  table.add({.name = "tokenizer",
             .kind = recipe::OptionKind::kPath,
             .help = "Folder with a tokenizer.json, when it is not the model's own.",
             .value_name = "DIR",
             .flag_only = true});
  table.add({.name = "no-special-tokens",
             .kind = recipe::OptionKind::kSwitch,
             .help = "Leave out the special tokens that the tokenizer puts around a text; those written in it stay.",
             .flag_only = true});
}

}  // namespace limbeck::cli
