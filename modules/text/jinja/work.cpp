#include "modules/text/jinja/work.h"

#include <fmt/format.h>

#include "modules/errors.h"
#include "modules/text/characters/unicode.h"

namespace limbeck::text::jinja {
namespace {

// What a message may show of a stranger's text: one line, not endless.
std::string showable(const std::string& text) {
  constexpr size_t kMost = 500;
  std::string out;
  for (size_t at = 0; at < text.size();) {
    if (out.size() > kMost) return out + "...";
    const char32_t c = next_character(text, at);
    append(out, c < 0x20 || (c >= 0x7F && c < 0xA0) ? U'?' : c);
  }
  return out;
}

}  // namespace

void Work::refuse(const std::string& what) const {
  throw InputDataError(
      fmt::format("{}:{}: {}{}{}", where_, line_, showable(what), subject_.empty() ? "" : ", rendering ", subject_));
}

void Work::refuse_unsupported(const std::string& what) const {
  refuse(what +
         " is not supported by Limbeck: render the chats with transformers' apply_chat_template and give them by "
         "--prompts=FILE.jsonl --no-special-tokens");
}

void Work::step(size_t count) {
  steps_ += count;
  if (steps_ > limits_.steps)
    refuse(fmt::format("the template takes more than {} steps, wanted one that ends", limits_.steps));
}

void Work::make(size_t bytes) {
  if (bytes > limits_.made_bytes || made_ > limits_.made_bytes - bytes)
    refuse(
        fmt::format("the template makes more than {} MiB of texts and lists, wanted a chat", limits_.made_bytes >> 20));
  made_ += bytes;
}

Work::Level::Level(Work& work) : work_(work) {
  if (++work_.depth_ <= work_.limits_.depth) return;
  --work_.depth_;  // the destructor will not run
  work_.refuse(fmt::format("calls and expressions within each other more than {} deep", work_.limits_.depth));
}

}  // namespace limbeck::text::jinja
