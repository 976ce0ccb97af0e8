#include <ATen/ops/empty.h>

#include <unordered_map>

#include "modules/errors.h"
#include "modules/io/input_file.h"
#include "modules/io/payload_reader.h"
#include "modules/io/safetensors.h"
#include "modules/io/safetensors_header.h"
#include "modules/io/tensor_dtype.h"
#include "modules/io/tensor_name.h"

namespace limbeck::io {
namespace {

std::string shape_text(c10::IntArrayRef shape) {
  std::string text = "[";
  for (const int64_t size : shape) {
    if (text.size() > 1) text += ",";
    text += std::to_string(size);
  }
  return text + "]";
}

std::string described(at::ScalarType dtype, c10::IntArrayRef shape) {
  return std::string(c10::toString(dtype)) + " " + shape_text(shape);
}

// "17 = [4,1]" for element 17 of a [8,4] tensor
std::string index_text(int64_t flat, const std::vector<int64_t>& shape) {
  std::vector<int64_t> index(shape.size());
  int64_t rest = flat;
  for (size_t i = shape.size(); i-- > 0;) {
    index[i] = rest % shape[i];
    rest /= shape[i];
  }
  return std::to_string(flat) + " = " + shape_text(index);
}

SafetensorsHeader read_header(const InputFile& file) {
  const std::string where = file.path().string();
  std::array<unsigned char, kHeaderPrefixBytes> prefix{};
  if (file.size() >= prefix.size()) file.read(0, prefix.data(), prefix.size());
  std::string text(header_length(prefix, file.size(), where), '\0');
  file.read(kHeaderPrefixBytes, text.data(), text.size());
  SafetensorsHeader header = parse_header(text, file.size(), where);
  file.check_size();
  return header;
}

void check_destination(const InputFile& file, const TensorEntry& entry, const at::Tensor& destination) {
  const std::string where = file.path().string() + ": tensor " + in_quotes(entry.name) + ": ";
  if (!destination.defined()) throw ContractError(where + "got an undefined tensor to read into");
  if (destination.scalar_type() != entry.dtype || destination.sizes() != entry.shape) {
    throw WeightsError(where + "the file holds " + described(entry.dtype, entry.shape) + ", wanted " +
                       described(destination.scalar_type(), destination.sizes()));
  }
  if (!destination.is_cpu() || !destination.is_contiguous()) {
    throw ContractError(where + "got a destination on " + destination.device().str() +
                        (destination.is_contiguous() ? "" : ", not contiguous") + ", wanted contiguous on cpu");
  }
}

}  // namespace

struct SafetensorsFile::State {
  explicit State(const std::filesystem::path& path) : file(path) {}
  InputFile file;
  std::vector<TensorEntry> entries;
  std::map<std::string, std::string> metadata;
  std::unordered_map<std::string, size_t> by_name;
};

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path) : state_(std::make_unique<State>(path)) {
  SafetensorsHeader header = read_header(state_->file);
  state_->metadata = std::move(header.metadata);
  state_->entries.reserve(header.entries.size());
  for (HeaderEntry& entry : header.entries) {
    state_->by_name.emplace(entry.name, state_->entries.size());
    state_->entries.push_back(
        {std::move(entry.name), scalar_type(entry.dtype), std::move(entry.shape), entry.begin, entry.end});
  }
}

SafetensorsFile::~SafetensorsFile() = default;
SafetensorsFile::SafetensorsFile(SafetensorsFile&&) noexcept = default;
SafetensorsFile& SafetensorsFile::operator=(SafetensorsFile&&) noexcept = default;

const std::filesystem::path& SafetensorsFile::path() const { return state_->file.path(); }
const std::vector<TensorEntry>& SafetensorsFile::entries() const { return state_->entries; }
const std::map<std::string, std::string>& SafetensorsFile::metadata() const { return state_->metadata; }

const TensorEntry* SafetensorsFile::find(const std::string& name) const {
  const auto found = state_->by_name.find(name);
  return found == state_->by_name.end() ? nullptr : &state_->entries[found->second];
}

at::Tensor SafetensorsFile::read(const TensorEntry& entry, NonFinite nonfinite) const {
  at::Tensor tensor = at::empty(entry.shape, at::TensorOptions(at::kCPU).dtype(entry.dtype));
  read_into(entry, tensor, nonfinite);
  return tensor;
}

void SafetensorsFile::read_into(const TensorEntry& entry, at::Tensor& destination, NonFinite nonfinite) const {
  check_destination(state_->file, entry, destination);
  const auto bad = read_payload(state_->file, entry.begin, destination, nonfinite == NonFinite::kRefuse);
  state_->file.check_size();
  if (bad) {
    throw WeightsError(path().string() + ": tensor " + in_quotes(entry.name) + ": element " +
                       index_text(*bad, entry.shape) +
                       " is NaN or infinite: damaged or diverged weights; --allow-nonfinite loads them all the same");
  }
}

NamedTensors read_safetensors(const std::filesystem::path& path) {
  const SafetensorsFile file(path);
  NamedTensors tensors;
  for (const TensorEntry& entry : file.entries()) tensors.emplace_back(entry.name, file.read(entry));
  return tensors;
}

}  // namespace limbeck::io
