#include "trainer/data/manifest_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <limits>
#include <set>

#include "modules/io/crc32c.h"
#include "modules/io/input_file.h"
#include "modules/io/json_file.h"
#include "modules/io/json_text.h"
#include "modules/io/tensor_name.h"
#include "trainer/data/input_fault.h"

namespace limbeck::data {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMostTokens = int64_t{1} << 50;
constexpr int64_t kMostOfShard = std::numeric_limits<int32_t>::max();  // documents or tokens of one shard
constexpr int64_t kMostVocabulary = int64_t{1} << 24;  // as of a tokenizer.json; lists of ids are held in memory
constexpr const char* kAgain = "prepare the data again with tools/prepare_data.py";

uint32_t crc_of(std::string_view text) { return io::crc32c(text.data(), text.size()); }

uint32_t parse_crc(const io::JsonFile& file) {
  const std::string text = file.string("crc32c");
  if (text.size() != 8 || text.find_first_not_of("0123456789abcdef") != text.npos) {
    throw InputDataError(fmt::format("{}: key \"crc32c\" = {}, wanted 8 hexadecimal digits; {}", file.where(),
                                     io::in_quotes(text), kAgain));
  }
  return static_cast<uint32_t>(std::stoul(text, nullptr, 16));
}

std::string read_text(const fs::path& folder) {
  const fs::path path = folder / "manifest.json";
  if (!fs::exists(path)) {
    const bool split = fs::exists(folder / "train" / "manifest.json");
    throw InputDataError(fmt::format("{}: no such file, wanted a folder that tools/prepare_data.py wrote{}",
                                     path.string(),
                                     split ? fmt::format("; did you mean {}?", (folder / "train").string()) : ""));
  }
  const io::InputFile file(path);
  if (file.size() > io::kMaxJsonBytes) {
    throw InputDataError(
        fmt::format("{}: {} bytes, at most {} are allowed", path.string(), file.size(), io::kMaxJsonBytes));
  }
  return file.whole();
}

// The last key holds the CRC-32C of every byte before its line, so that the writer knows it when it gets there.
void check_own_crc(const io::JsonFile& file, const std::string& text) {
  const uint32_t wanted = parse_crc(file);
  const std::string ending = fmt::format("  \"crc32c\": \"{:08x}\"\n}}\n", wanted);
  const bool placed = text.size() > ending.size() && text.compare(text.size() - ending.size(), text.npos, ending) == 0;
  const uint32_t got = placed ? crc_of(std::string_view(text).substr(0, text.size() - ending.size())) : 0;
  if (placed && got == wanted) return;
  throw InputDataError(fmt::format("{}: {}: the file was changed after it was written; {}", file.where(),
                                   placed ? fmt::format("its crc32c is {:08x}, wanted {:08x}", got, wanted)
                                          : std::string("it does not end with its crc32c"),
                                   kAgain));
}

void check_version(const io::JsonFile& file) {
  const std::string format = file.string("format");
  if (format != "limbeck-tokens") {
    throw InputDataError(
        fmt::format("{}: format {}, wanted \"limbeck-tokens\"; {}", file.where(), io::in_quotes(format), kAgain));
  }
  const int64_t version = file.integer("version", 0, kMostTokens);
  if (version == kDataFormatVersion) return;
  throw InputDataError(
      fmt::format("{}: format version {}, wanted {}; {}", file.where(), version, kDataFormatVersion,
                  version > kDataFormatVersion ? "use a newer limbeck, or prepare the data again" : kAgain));
}

// "4,7-9": ascending ids and ranges of them.
std::vector<int64_t> parse_ids(const io::JsonFile& file, const std::string& key, int64_t vocabulary) {
  const std::string text = file.string(key);
  const auto refuse = [&] {
    throw InputDataError(fmt::format("{}: key \"{}\" = {}, wanted ascending ids below {} such as 4,7-9; {}",
                                     file.where(), key, io::in_quotes(text.substr(0, 80)), vocabulary, kAgain));
  };
  std::vector<int64_t> ids;
  const char *at = text.data(), *end = at + text.size();
  const auto number = [&] {
    int64_t value = 0;
    const auto [next, fault] = std::from_chars(at, end, value);
    const int64_t least = ids.empty() ? 0 : ids.back() + 1;
    if (fault != std::errc() || value < least || value >= vocabulary) refuse();
    at = next;
    return value;
  };
  while (at < end) {
    if (!ids.empty() && (*at++ != ',' || at == end)) refuse();
    ids.push_back(number());
    if (at == end || *at != '-') continue;
    ++at;
    const int64_t last = number();
    while (ids.back() < last) ids.push_back(ids.back() + 1);
  }
  return ids;
}

// What a masked language model's batches need to know of the tokenizer; data prepared before lacks it.
void parse_words(const io::JsonFile& file, Manifest& summary) {
  if (file.has("mask")) summary.mask = file.integer("mask", 0, summary.vocabulary - 1);
  if (file.has("special")) summary.special = parse_ids(file, "special", summary.vocabulary);
  summary.knows_words = file.has("continuing");
  if (!summary.knows_words) return;
  summary.continues.assign(static_cast<size_t>(summary.vocabulary), false);
  for (const int64_t id : parse_ids(file, "continuing", summary.vocabulary))
    summary.continues[static_cast<size_t>(id)] = true;
}

// "3x2,7,12x40": ascending lengths, each with the number of documents that have it.
LengthCounts parse_lengths(const io::JsonFile& file, const std::string& key, int64_t documents, int64_t tokens) {
  LengthCounts lengths;
  if (!file.has(key)) return lengths;
  const std::string text = file.string(key);
  const char *at = text.data(), *end = at + text.size();
  const auto refuse = [&] {
    throw InputDataError(
        fmt::format("{}: key \"{}\" = {}, wanted ascending lengths such as 3x2,7 of {} documents and {} tokens; {}",
                    file.where(), key, io::in_quotes(text.substr(0, 80)), documents, tokens, kAgain));
  };
  const auto number = [&](int64_t least) {
    int64_t value = 0;
    const auto [next, fault] = std::from_chars(at, end, value);
    if (fault != std::errc() || value < least || value > kMostOfShard) refuse();
    at = next;
    return value;
  };
  int64_t documents_of = 0, tokens_of = 0;
  while (at < end) {
    if (!lengths.empty() && *at++ != ',') refuse();
    const int64_t length = number(lengths.empty() ? 0 : lengths.back().first + 1);
    const bool several = at < end && *at == 'x';
    if (several) ++at;
    lengths.emplace_back(length, several ? number(1) : 1);
    documents_of += lengths.back().second;
    tokens_of += length * lengths.back().second;
    if (documents_of > documents || tokens_of > tokens) refuse();
  }
  if (documents_of != documents || tokens_of != tokens) refuse();
  return lengths;
}

struct Tokenizer {
  std::string digest, fingerprint;
  int64_t vocabulary, end_of_sequence, padding;
};

Tokenizer parse_tokenizer(const io::JsonFile& file) {
  Tokenizer out{file.string("digest"), file.string_or("ids_fingerprint", ""),
                file.integer("vocabulary", 1, kMostVocabulary), -1, -1};
  if (file.has("end_of_sequence")) out.end_of_sequence = file.integer("end_of_sequence", 0, out.vocabulary - 1);
  if (file.has("padding")) out.padding = file.integer("padding", 0, out.vocabulary - 1);
  return out;
}

std::string parse_name(const io::JsonFile& file) {
  const std::string name = file.string("file");
  const bool bare = !name.empty() && name.front() != '.' && name.find_first_of("/\\") == name.npos &&
                    name.size() <= 255 && io::name_fault(name).empty();
  if (bare && name.ends_with(".safetensors")) return name;
  throw InputDataError(fmt::format("{}: file {}, wanted a bare name that ends in .safetensors; {}", file.where(),
                                   io::in_quotes(name), kAgain));
}

ShardRecord parse_shard(const io::JsonFile& file, bool has_teacher) {
  ShardRecord shard;
  shard.file = parse_name(file);
  shard.bytes = file.integer("bytes", 0, std::numeric_limits<int64_t>::max());
  shard.crc32c = parse_crc(file);
  shard.documents = file.integer("documents", 0, kMostOfShard);
  shard.tokens = file.integer("tokens", 0, kMostOfShard);
  shard.targets = file.integer("targets", 0, shard.tokens);
  shard.teacher_tokens = has_teacher ? file.integer("teacher_tokens", 0, kMostOfShard) : 0;
  if (file.has("maximum_id")) shard.largest_id = file.integer("maximum_id", 0, kMostVocabulary);
  if (has_teacher && file.has("teacher_maximum_id")) {
    shard.teacher_largest_id = file.integer("teacher_maximum_id", 0, kMostVocabulary);
  }
  return shard;
}

void parse_shards(const io::JsonFile& file, ManifestFile& out) {
  const auto list = file.value().find("shards");
  if (list == file.value().end() || !list->is_array()) {
    throw InputDataError(fmt::format("{}: key \"shards\" is no list; {}", file.where(), kAgain));
  }
  std::set<std::string> names;
  int64_t documents = 0, tokens = 0;
  for (size_t i = 0; i < list->size(); ++i) {
    const std::string where = fmt::format("{}: shard {}", file.where(), i);
    if (!(*list)[i].is_object()) throw InputDataError(fmt::format("{}: is no object; {}", where, kAgain));
    out.shards.push_back(parse_shard(io::JsonFile((*list)[i], where), out.has_teacher));
    const ShardRecord& shard = out.shards.back();
    if (!names.insert(shard.file).second) {
      throw InputDataError(fmt::format("{}: {} is listed twice; {}", where, shard.file, kAgain));
    }
    documents += shard.documents;
    tokens += shard.tokens;
    out.summary.largest_id = std::max(out.summary.largest_id, shard.largest_id);
    out.summary.teacher_largest_id = std::max(out.summary.teacher_largest_id, shard.teacher_largest_id);
  }
  if (documents == out.summary.documents && tokens == out.summary.tokens) return;
  throw InputDataError(fmt::format("{}: {} documents and {} tokens, but its shards have {} and {}; {}", file.where(),
                                   out.summary.documents, out.summary.tokens, documents, tokens, kAgain));
}

ManifestFile parse(const io::JsonFile& file) {
  ManifestFile out;
  Manifest& summary = out.summary;
  const Tokenizer student = parse_tokenizer(file.child("tokenizer"));
  summary.tokenizer_digest = student.digest;
  summary.vocabulary = student.vocabulary;
  summary.end_of_sequence = student.end_of_sequence;
  summary.padding = student.padding;
  summary.ids_fingerprint = student.fingerprint;
  parse_words(file.child("tokenizer"), summary);
  out.has_teacher = file.has("teacher_tokenizer");
  if (out.has_teacher) {
    const Tokenizer teacher = parse_tokenizer(file.child("teacher_tokenizer"));
    summary.teacher_tokenizer_digest = teacher.digest;
    summary.teacher_vocabulary = teacher.vocabulary;
    summary.teacher_end_of_sequence = teacher.end_of_sequence;
    summary.teacher_padding = teacher.padding;
    summary.teacher_ids_fingerprint = teacher.fingerprint;
  }
  summary.documents = file.integer("documents", 0, kMostTokens);
  summary.tokens = file.integer("tokens", 0, kMostTokens);
  if (file.has("classes")) summary.classes = file.integer("classes", 1, kMostVocabulary);
  parse_shards(file, out);
  out.lengths = parse_lengths(file, "lengths", summary.documents, summary.tokens);
  if (out.has_teacher) {
    int64_t tokens = 0;
    for (const ShardRecord& shard : out.shards) tokens += shard.teacher_tokens;
    out.teacher_lengths = parse_lengths(file, "teacher_lengths", summary.documents, tokens);
  }
  summary.digest = digest_of(summary, out.shards);
  return out;
}

}  // namespace

std::string digest_of(const Manifest& summary, const std::vector<ShardRecord>& shards) {
  std::string text = summary.tokenizer_digest + "\n" + summary.teacher_tokenizer_digest + "\n";
  int64_t tokens = 0;
  for (const ShardRecord& shard : shards) {
    text += fmt::format("{} {} {:08x} {}\n", shard.file, shard.bytes, shard.crc32c, shard.tokens);
    tokens += shard.tokens;
  }
  return fmt::format("{}-{}-{:08x}", shards.size(), tokens, crc_of(text));
}

ManifestFile read_manifest(const fs::path& folder) {
  return as_input_data([&] {
    const std::string text = read_text(folder), where = (folder / "manifest.json").string();
    const io::JsonFile file(io::parse_json(text, where), where);
    if (!file.value().is_object()) throw InputDataError(fmt::format("{}: is no JSON object; {}", where, kAgain));
    check_version(file);
    check_own_crc(file, text);
    return parse(file);
  });
}

}  // namespace limbeck::data
