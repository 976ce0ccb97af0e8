#include "modules/io/crc32c.h"

#include <array>
#include <bit>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

namespace limbeck::io {
namespace {

static_assert(std::endian::native == std::endian::little);

constexpr uint32_t kPolynomial = 0x82F63B78;  // Castagnoli's, bits reversed
constexpr size_t kWord = sizeof(uint64_t);

using Table = std::array<uint32_t, 256>;

// tables[k][b]: what byte b does to the remainder when k more bytes follow it in the same word.
constexpr std::array<Table, kWord> make_tables() {
  std::array<Table, kWord> tables{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t remainder = byte;
    for (int bit = 0; bit < 8; ++bit) remainder = (remainder >> 1) ^ ((remainder & 1) != 0 ? kPolynomial : 0);
    tables[0][byte] = remainder;
  }
  for (size_t k = 1; k < kWord; ++k) {
    for (size_t byte = 0; byte < 256; ++byte) {
      const uint32_t shorter = tables[k - 1][byte];
      tables[k][byte] = (shorter >> 8) ^ tables[0][shorter & 0xFF];
    }
  }
  return tables;
}

constexpr std::array<Table, kWord> kTables = make_tables();

uint64_t load_word(const unsigned char* at) {
  uint64_t word;
  std::memcpy(&word, at, kWord);
  return word;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) uint32_t crc32c_instruction(const unsigned char* at, size_t bytes, uint32_t before) {
  uint64_t remainder = ~before;
  for (; bytes >= kWord; at += kWord, bytes -= kWord) remainder = _mm_crc32_u64(remainder, load_word(at));
  auto narrow = static_cast<uint32_t>(remainder);
  for (; bytes > 0; ++at, --bytes) narrow = _mm_crc32_u8(narrow, *at);
  return ~narrow;
}
#endif

}  // namespace

uint32_t crc32c_portable(const void* data, size_t bytes, uint32_t before) {
  const auto* at = static_cast<const unsigned char*>(data);
  uint32_t remainder = ~before;
  for (; bytes >= kWord; at += kWord, bytes -= kWord) {
    const uint64_t word = load_word(at) ^ remainder;
    remainder = 0;
    for (size_t k = 0; k < kWord; ++k) remainder ^= kTables[kWord - 1 - k][(word >> (8 * k)) & 0xFF];
  }
  for (; bytes > 0; ++at, --bytes) remainder = (remainder >> 8) ^ kTables[0][(remainder ^ *at) & 0xFF];
  return ~remainder;
}

uint32_t crc32c(const void* data, size_t bytes, uint32_t before) {
#if defined(__x86_64__)
  static const bool has_instruction = __builtin_cpu_supports("sse4.2");
  if (has_instruction) return crc32c_instruction(static_cast<const unsigned char*>(data), bytes, before);
#endif
  return crc32c_portable(data, bytes, before);
}

}  // namespace limbeck::io
