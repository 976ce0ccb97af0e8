// What `limbeck generate` starts from: ids, a file of tensors or text, padded on the left to one length.
#pragma once
#include <ATen/core/Tensor.h>

#include <filesystem>
#include <initializer_list>
#include <string>
#include <vector>

#include "modules/text/tokenizer.h"
#include "trainer/recipe/settings.h"

namespace limbeck::cli {

struct Prompts {
  at::Tensor ids, mask;  // [B, T]; mask may be undefined: all of it
};

using IdRows = std::vector<std::vector<int64_t>>;

std::vector<int64_t> parse_ids(const std::string& text);
// The ids of a text. A rendered chat brings its special tokens as text: kLeaveOut.
std::vector<int64_t> prompt_ids(const text::Tokenizer& tokenizer, const std::string& text, text::SpecialTokens special,
                                const std::string& where);
// That a model of `vocabulary` tokens knows them; the model is read later than its prompts.
void require_known(const text::Tokenizer& tokenizer, const std::vector<int64_t>& ids, const std::string& where,
                   int64_t vocabulary);
Prompts padded(const IdRows& rows);
Prompts prompts_from_tensors(const std::filesystem::path& path);
// The lines of a text file, without their "\n"; those of a .jsonl are JSON strings.
std::vector<std::string> read_lines(const std::filesystem::path& path);
// How many of these options are given, where one of them is wanted.
int given_among(const recipe::Settings& settings, std::initializer_list<const char*> names);
// --tokenizer, else --model.
std::filesystem::path tokenizer_folder(const recipe::Settings& settings);
void declare_tokenizer(recipe::OptionTable& table);

}  // namespace limbeck::cli
