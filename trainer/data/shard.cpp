#include "trainer/data/shard.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <functional>

#include "modules/id_range.h"
#include "modules/io/crc32c.h"
#include "modules/io/safetensors_header.h"
#include "trainer/data/input_fault.h"

namespace limbeck::data {
namespace {

constexpr int64_t kChunk = int64_t{1} << 20;  // tokens read at once
constexpr const char* kPrefix[] = {"", "teacher."};

const char* prefix_of(Which which) { return kPrefix[which == Which::kTeacher ? 1 : 0]; }

// [begin, end) of `total`, chunk by chunk
void for_chunks(int64_t total, const std::function<void(int64_t, int64_t)>& visit) {
  for (int64_t begin = 0; begin < total; begin += kChunk) visit(begin, std::min(kChunk, total - begin));
}

std::vector<int32_t> read_int32(const io::InputFile& file, uint64_t at, int64_t begin, int64_t count) {
  std::vector<int32_t> values(static_cast<size_t>(count));
  as_input_data([&] { file.read(at + static_cast<uint64_t>(begin) * 4, values.data(), values.size() * 4); });
  return values;
}

io::InputFile opened(const std::filesystem::path& path) {
  return as_input_data([&] { return io::InputFile(path); });
}

}  // namespace

// The header of the file: which tensor lies where.
class Shard::Tensors {
 public:
  explicit Tensors(const io::InputFile& file) : file_(file) {
    const std::string where = file.path().string();
    std::array<unsigned char, io::kHeaderPrefixBytes> prefix{};
    if (file.size() >= prefix.size()) file.read(0, prefix.data(), prefix.size());
    std::string text(io::header_length(prefix, file.size(), where), '\0');
    file.read(io::kHeaderPrefixBytes, text.data(), text.size());
    header_ = io::parse_header(text, file.size(), where);
  }

  const io::HeaderEntry* find(const std::string& name) const {
    for (const io::HeaderEntry& entry : header_.entries) {
      if (entry.name == name) return &entry;
    }
    return nullptr;
  }

  // `count` -1: any length
  const io::HeaderEntry& vector(const std::string& name, io::StoredType type, int64_t count) const {
    const std::string wanted = fmt::format("{} [{}]", io::stored_name(type), count < 0 ? "N" : std::to_string(count));
    const io::HeaderEntry* entry = find(name);
    if (!entry) throw InputDataError(fmt::format("tensor {} is missing, wanted {}", name, wanted));
    if (entry->dtype == type && entry->shape.size() == 1 && (count < 0 || entry->shape[0] == count)) return *entry;
    throw InputDataError(fmt::format("tensor {} is {} [{}], wanted {}", name, io::stored_name(entry->dtype),
                                     fmt::join(entry->shape, ","), wanted));
  }

  std::vector<int64_t> int64s(const std::string& name, int64_t count) const {
    const io::HeaderEntry& entry = vector(name, io::StoredType::kI64, count);
    std::vector<int64_t> values(static_cast<size_t>(entry.shape[0]));
    as_input_data([&] { file_.read(entry.begin, values.data(), values.size() * sizeof(int64_t)); });
    return values;
  }

 private:
  const io::InputFile& file_;
  io::SafetensorsHeader header_;
};

Shard::Shard(const std::filesystem::path& folder, const ShardRecord& record, const ManifestFile& manifest)
    : file_(opened(folder / record.file)), name_(record.file) {
  check_bytes(record);
  const Tensors tensors = as_input_data([&] { return Tensors(file_); });
  student_.vocabulary = manifest.summary.vocabulary;
  try {
    open_stream(tensors, Which::kStudent, student_);
    if (manifest.has_teacher) {
      teacher_.vocabulary = manifest.summary.teacher_vocabulary;
      open_stream(tensors, Which::kTeacher, teacher_);
      positions_at_ = tensors.vector("teacher.position", io::StoredType::kI32, tokens(Which::kStudent)).begin;
    }
    open_classes(tensors, manifest.summary.classes);
  } catch (const InputDataError& error) {
    refuse(error.what());
  }
  scan(Which::kStudent, student_);
  if (manifest.has_teacher) {
    scan(Which::kTeacher, teacher_);
    scan_positions();
  }
  check_counts(record);
  count_documents(manifest.summary.end_of_sequence);
}

void Shard::refuse(const std::string& fault) const {
  throw InputDataError(fmt::format("{}: {}", file_.path().string(), fault));
}

void Shard::check_bytes(const ShardRecord& record) const {
  if (file_.size() != static_cast<uint64_t>(record.bytes)) {
    refuse(fmt::format("{} bytes, wanted {} (manifest.json): cut short or overwritten", file_.size(), record.bytes));
  }
  uint32_t crc = 0;
  std::vector<unsigned char> buffer(static_cast<size_t>(std::min<int64_t>(record.bytes, kChunk)));
  for_chunks(record.bytes, [&](int64_t begin, int64_t count) {
    as_input_data([&] { file_.read(static_cast<uint64_t>(begin), buffer.data(), static_cast<size_t>(count)); });
    crc = io::crc32c(buffer.data(), static_cast<size_t>(count), crc);
  });
  if (crc == record.crc32c) return;
  refuse(
      fmt::format("its CRC-32C is {:08x}, wanted {:08x} (manifest.json): damaged or overwritten", crc, record.crc32c));
}

void Shard::open_stream(const Tensors& tensors, Which which, Stream& out) const {
  const std::string prefix = prefix_of(which);
  const io::HeaderEntry& ids = tensors.vector(prefix + "input_ids", io::StoredType::kI32, -1);
  const std::string mask = prefix + "target_mask";
  out.ids_at = ids.begin;
  if (tensors.find(mask)) out.mask_at = tensors.vector(mask, io::StoredType::kU8, ids.shape[0]).begin;
  const int64_t documents = which == Which::kStudent ? -1 : static_cast<int64_t>(student_.offsets.size());
  out.offsets = tensors.int64s(prefix + "document_offsets", documents);
  const bool fits = !out.offsets.empty() && out.offsets.front() == 0 && out.offsets.back() == ids.shape[0] &&
                    std::is_sorted(out.offsets.begin(), out.offsets.end());
  if (fits) return;
  throw InputDataError(fmt::format("tensor {}document_offsets: wanted 0, ascending, up to the {} tokens of {}input_ids",
                                   prefix, ids.shape[0], prefix));
}

void Shard::open_classes(const Tensors& tensors, int64_t classes) {
  if (classes == 0) return;
  classes_ = tensors.int64s("classes", documents());
  for (size_t i = 0; i < classes_.size(); ++i) {
    if (classes_[i] == -100 || (classes_[i] >= 0 && classes_[i] < classes)) continue;
    throw InputDataError(
        fmt::format("record {}: class {}, wanted {}, or -100 for none", i, classes_[i], ids_below(classes)));
  }
}

void Shard::check_counts(const ShardRecord& record) const {
  auto check = [&](const char* what, int64_t got, int64_t wanted) {
    if (got != wanted) refuse(fmt::format("{} {}, wanted {} (manifest.json)", got, what, wanted));
  };
  check("documents", documents(), record.documents);
  check("tokens", tokens(Which::kStudent), record.tokens);
  check("targets", student_.targets, record.targets);
  check("teacher tokens", teacher_.offsets.back(), record.teacher_tokens);
}

std::string Shard::place(Which which, int64_t token) const {
  const std::vector<int64_t>& starts = offsets(which);
  const auto after = std::upper_bound(starts.begin(), starts.end(), token);
  const auto record = static_cast<int64_t>(after - starts.begin()) - 1;
  return fmt::format("record {}, {}token {}", record, which == Which::kTeacher ? "teacher's " : "",
                     token - starts[static_cast<size_t>(record)]);
}

std::string Shard::place_of_stranger(Which which, int64_t vocabulary) const {
  const Stream& of = stream(which);
  for (int64_t begin = 0; begin < tokens(which); begin += kChunk) {
    const auto ids = read_int32(file_, of.ids_at, begin, std::min(kChunk, tokens(which) - begin));
    for (size_t i = 0; i < ids.size(); ++i) {
      if (ids[i] >= 0 && ids[i] < vocabulary) continue;
      return fmt::format("{}: id {}", place(which, begin + static_cast<int64_t>(i)), ids[i]);
    }
  }
  return "";
}

// Ids and masks, once through. The smallest and largest id first: the place is looked for only when one is outside.
void Shard::scan(Which which, Stream& of) const {
  int64_t smallest = 0;
  for_chunks(tokens(which), [&](int64_t begin, int64_t count) {
    const auto ids = read_int32(file_, of.ids_at, begin, count);
    const auto [low, high] = std::minmax_element(ids.begin(), ids.end());
    smallest = std::min<int64_t>(smallest, *low);
    of.largest = std::max<int64_t>(of.largest, *high);
    std::vector<uint8_t> mask(static_cast<size_t>(count));
    read_mask(which, begin, count, mask.data());
    for (size_t i = 0; i < mask.size(); ++i) {
      if (mask[i] > 1) {
        refuse(
            fmt::format("{}: target mask {}, wanted 0 or 1", place(which, begin + static_cast<int64_t>(i)), mask[i]));
      }
      of.targets += mask[i];
    }
  });
  if (smallest >= 0 && of.largest < of.vocabulary) return;
  refuse(fmt::format("{}, wanted {}, the tokenizer's vocabulary (manifest.json)",
                     place_of_stranger(which, of.vocabulary), ids_below(of.vocabulary)));
}

void Shard::scan_positions() const {
  for (size_t i = 0; i + 1 < student_.offsets.size(); ++i) {
    const int64_t begin = student_.offsets[i], length = teacher_.offsets[i + 1] - teacher_.offsets[i];
    const auto positions = read_int32(file_, positions_at_, begin, student_.offsets[i + 1] - begin);
    int32_t before = -1;
    for (size_t k = 0; k < positions.size(); ++k) {
      if (positions[k] >= before && positions[k] < length) {
        before = positions[k];
        continue;
      }
      refuse(fmt::format("record {}, token {}: teacher's position {}, wanted {} to {}, ascending", i, k, positions[k],
                         before, length - 1));
    }
  }
}

void Shard::count_documents(int64_t end_of_sequence) {
  const std::vector<int64_t>& starts = student_.offsets;
  size_t document = 0;
  int64_t targets = 0;
  for_chunks(starts.back(), [&](int64_t begin, int64_t count) {
    const auto ids = read_int32(file_, student_.ids_at, begin, count);
    std::vector<uint8_t> mask(static_cast<size_t>(count));
    read_mask(Which::kStudent, begin, count, mask.data());
    for (int64_t i = 0; i < count; ++i) {
      while (starts[document + 1] <= begin + i) ++document;  // empty ones have no last token
      const bool first = starts[document] == begin + i, last = starts[document + 1] == begin + i + 1;
      if (first) targets = 0;
      targets += mask[static_cast<size_t>(i)];
      if (!last) continue;
      if (end_of_sequence >= 0 && ids[static_cast<size_t>(i)] != end_of_sequence) ++unended_;
      if (targets == 0) ++without_targets_;
    }
  });
}

void Shard::read_ids(Which which, int64_t begin, int64_t count, int64_t* out) const {
  const Stream& of = stream(which);
  const auto ids = read_int32(file_, of.ids_at, begin, count);
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] > of.largest) {
      refuse(fmt::format("{}: id {}, it was 0 to {} when the file was opened: the file changed during the run",
                         place(which, begin + static_cast<int64_t>(i)), ids[i], of.largest));
    }
    out[i] = ids[i];
  }
}

void Shard::read_mask(Which which, int64_t begin, int64_t count, uint8_t* out) const {
  const Stream& of = stream(which);
  if (of.mask_at == 0) {
    std::fill_n(out, count, uint8_t{1});
    return;
  }
  as_input_data([&] { file_.read(of.mask_at + static_cast<uint64_t>(begin), out, static_cast<size_t>(count)); });
}

void Shard::read_teacher_position(int64_t begin, int64_t count, int64_t* out) const {
  const auto positions = read_int32(file_, positions_at_, begin, count);
  std::copy(positions.begin(), positions.end(), out);
}

std::vector<OpenedShard> open_shards(const std::filesystem::path& folder, const ManifestFile& manifest) {
  std::vector<OpenedShard> out(manifest.shards.size());
  std::vector<std::exception_ptr> failures(out.size());  // the machine's, not the file's: an unreadable disk
  at::parallel_for(0, static_cast<int64_t>(out.size()), 1, [&](int64_t begin, int64_t end) {
    for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i) {
      try {
        out[i].shard.emplace(folder, manifest.shards[i], manifest);
      } catch (const InputDataError& error) {
        out[i].fault = error.what();
      } catch (...) {
        failures[i] = std::current_exception();
      }
    }
  });
  for (const std::exception_ptr& failure : failures) {
    if (failure) std::rethrow_exception(failure);
  }
  return out;
}

}  // namespace limbeck::data
