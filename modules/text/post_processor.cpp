#include "modules/text/post_processor.h"

#include <fmt/format.h>

#include "modules/errors.h"
#include "modules/text/normalizer.h"

namespace limbeck::text {
namespace {

constexpr size_t kMostIds = 4096;

TokenId id_of(const nlohmann::json& value, const std::string& where) {
  if (value.is_number_unsigned() && value.get<uint64_t>() <= static_cast<uint64_t>(kMaxTokenId)) {
    return value.get<TokenId>();
  }
  throw WeightsError(fmt::format("{}: wanted an id in [0, {}]", where, kMaxTokenId));
}

// ["[SEP]", 102]
TokenId read_pair(const io::JsonFile& from, const std::string& key) {
  const auto found = from.value().find(key);
  if (found == from.value().end() || !found->is_array() || found->size() != 2) {
    throw WeightsError(fmt::format("{}: key \"{}\", wanted a token and its id", from.where(), key));
  }
  return id_of((*found)[1], fmt::format("{}: \"{}\"", from.where(), key));
}

Frame read_template(const io::JsonFile& from) {
  Frame frame;
  bool text_seen = false;
  const io::JsonFile specials = from.child("special_tokens");
  for (const io::JsonFile& step : read_steps(from, "single", 0)) {
    if (step.has("Sequence")) {
      if (text_seen || step.child("Sequence").string_or("id", "A") != "A") {
        throw WeightsError(step.where() + ": wanted sequence A once in \"single\"");
      }
      text_seen = true;
      continue;
    }
    const std::string name = step.child("SpecialToken").string("id");
    const io::JsonFile special = specials.child(name);
    const auto ids = special.value().find("ids");
    if (ids == special.value().end() || !ids->is_array()) {
      throw WeightsError(special.where() + ": key \"ids\", wanted a list of ids");
    }
    Ids& side = text_seen ? frame.behind : frame.before;
    for (const auto& id : *ids) side.push_back(id_of(id, special.where() + ": \"ids\""));
    if (side.size() > kMostIds) throw WeightsError(fmt::format("{}: more than {} ids", from.where(), kMostIds));
  }
  if (!text_seen) throw WeightsError(from.where() + ": \"single\" has no place for the text (Sequence A)");
  return frame;
}

}  // namespace

Frame read_post_processor(const io::JsonFile& from, int depth) {
  const std::string type = from.string("type");
  if (type == "TemplateProcessing") return read_template(from);
  if (type == "ByteLevel") return {};  // moves offsets only
  if (type == "BertProcessing" || type == "RobertaProcessing") {
    return {{read_pair(from, "cls")}, {read_pair(from, "sep")}};
  }
  if (type == "Sequence") {
    Frame frame;
    for (const io::JsonFile& step : read_steps(from, "processors", depth)) {
      const Frame outer = read_post_processor(step, depth + 1);
      frame.before.insert(frame.before.begin(), outer.before.begin(), outer.before.end());
      frame.behind.insert(frame.behind.end(), outer.behind.begin(), outer.behind.end());
    }
    return frame;
  }
  refuse_type(from, "TemplateProcessing, BertProcessing, RobertaProcessing, ByteLevel or Sequence");
}

}  // namespace limbeck::text
