#include "modules/gguf/special_tokens.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "modules/io/json_file.h"
#include "modules/text/chat_template.h"

namespace limbeck::gguf {
namespace {

namespace fs = std::filesystem;

// "bos_token" and its like: a string, or an object that holds it.
std::optional<std::string> named_token(const fs::path& folder, const std::string& key) {
  for (const char* name : {"tokenizer_config.json", "special_tokens_map.json"}) {
    if (!fs::exists(fs::symlink_status(folder / name))) continue;
    const io::JsonFile file(folder / name);
    if (!file.has(key)) continue;
    const auto& value = file.value().at(key);
    if (value.is_string()) return value.get<std::string>();
    if (value.is_object() && value.contains("content") && value["content"].is_string())
      return value["content"].get<std::string>();
  }
  return std::nullopt;
}

class Reader {
 public:
  Reader(const fs::path& folder, const models::Architecture& architecture, const text::Frame& frame,
         const IdOfToken& id_of, SpecialTokens& found)
      : folder_(folder), a_(architecture), frame_(frame), id_of_(id_of), found_(found) {}

  void begin() {
    const size_t count = frame_.before.size();
    auto id = id_named("bos_token");
    if (count == 1) id = frame_.before[0];
    if (id) add("bos_token_id", static_cast<uint32_t>(*id));
    add("add_bos_token", count == 1);
    if (count > 1) {
      warn(fmt::format("the tokenizer puts the ids {} before a text, of which llama.cpp adds none",
                       fmt::join(frame_.before, ", ")));
    }
  }

  void end(int64_t default_end) {
    const size_t count = frame_.behind.size();
    const auto& ends = a_.end_of_sequence;
    auto id = id_named("eos_token");
    if (!id && !ends.empty()) id = ends[0];
    if (count == 1 && id && *id != frame_.behind[0]) {
      warn(fmt::format("the tokenizer puts the id {} behind a text, and the text's end is {}: llama.cpp adds none",
                       frame_.behind[0], *id));
    } else if (count == 1) {
      id = frame_.behind[0];
    }
    if (count > 1) {
      warn(fmt::format("the tokenizer puts the ids {} behind a text, of which llama.cpp adds none",
                       fmt::join(frame_.behind, ", ")));
    }
    add("add_eos_token", count == 1 && *id == frame_.behind[0]);
    if (!id) return warn(fmt::format("no token ends a text here; llama.cpp then takes the id {}", default_end));
    add("eos_token_id", static_cast<uint32_t>(*id));
    more_ends(*id);
  }

  void others() {
    found_.unknown = id_named("unk_token");
    if (found_.unknown) add("unknown_token_id", static_cast<uint32_t>(*found_.unknown));
    if (const auto padding = id_named("pad_token")) add("padding_token_id", static_cast<uint32_t>(*padding));
    if (auto chats = text::default_template(folder_))
      found_.metadata.emplace_back("tokenizer.chat_template", std::move(*chats));
  }

 private:
  std::optional<int64_t> id_named(const std::string& key) const {
    const auto token = named_token(folder_, key);
    return token ? id_of_(*token) : std::nullopt;
  }

  // A generation ends at any id of config.json's list; the file has a place for one more.
  void more_ends(int64_t id) {
    std::vector<int64_t> more = a_.end_of_sequence;
    more.erase(std::remove(more.begin(), more.end(), id), more.end());
    if (more.empty()) return;
    add("eot_token_id", static_cast<uint32_t>(more[0]));
    if (more.size() == 1) return;
    warn(fmt::format("a generation ends at {} ids here; the file says {} and {}", more.size() + 1, id, more[0]));
  }

  void add(const std::string& key, io::GgufValue value) {
    found_.metadata.emplace_back("tokenizer.ggml." + key, std::move(value));
  }
  void warn(std::string line) { found_.warnings.push_back(std::move(line)); }

  const fs::path& folder_;
  const models::Architecture& a_;
  const text::Frame& frame_;
  const IdOfToken& id_of_;
  SpecialTokens& found_;
};

}  // namespace

SpecialTokens special_tokens(const fs::path& folder, const models::Architecture& architecture, const text::Frame& frame,
                             const IdOfToken& id_of, int64_t default_end) {
  SpecialTokens found;
  Reader reader(folder, architecture, frame, id_of, found);
  reader.begin();
  reader.end(default_end);
  reader.others();
  return found;
}

}  // namespace limbeck::gguf
