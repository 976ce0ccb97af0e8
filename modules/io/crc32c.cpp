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
// The instruction gives a result after three cycles and takes new words in each of them: three lanes of neighbouring
// bytes run at once, and a remainder is moved over the lane that follows it (the remainder of zeros is linear).
constexpr size_t kLanes = 3, kLaneLog = 12, kLane = size_t{1} << kLaneLog;

using Moves = std::array<Table, sizeof(uint32_t)>;

constexpr uint32_t applied(const std::array<uint32_t, 32>& columns, uint32_t remainder) {
  uint32_t out = 0;
  for (size_t bit = 0; bit < columns.size(); ++bit) out ^= ((remainder >> bit) & 1) != 0 ? columns[bit] : 0;
  return out;
}

// What kLane zero bytes make of byte b of a remainder, by its place and its value.
constexpr Moves make_moves() {
  std::array<uint32_t, 32> columns{};
  for (size_t bit = 0; bit < columns.size(); ++bit) {
    const uint32_t one = uint32_t{1} << bit;
    columns[bit] = (one >> 8) ^ kTables[0][one & 0xFF];
  }
  for (size_t doubling = 0; doubling < kLaneLog; ++doubling) {
    std::array<uint32_t, 32> twice{};
    for (size_t bit = 0; bit < columns.size(); ++bit) twice[bit] = applied(columns, columns[bit]);
    columns = twice;
  }
  Moves moves{};
  for (size_t place = 0; place < moves.size(); ++place) {
    for (uint32_t byte = 0; byte < 256; ++byte) moves[place][byte] = applied(columns, byte << (8 * place));
  }
  return moves;
}

constexpr Moves kMoves = make_moves();

uint64_t over_a_lane(uint64_t remainder) {
  uint32_t out = 0;
  for (size_t place = 0; place < kMoves.size(); ++place) out ^= kMoves[place][(remainder >> (8 * place)) & 0xFF];
  return out;
}

__attribute__((target("sse4.2"))) uint32_t crc32c_instruction(const unsigned char* at, size_t bytes, uint32_t before) {
  uint64_t remainder = static_cast<uint32_t>(~before);
  for (; bytes >= kLanes * kLane; at += kLanes * kLane, bytes -= kLanes * kLane) {
    uint64_t second = 0, third = 0;
    for (size_t i = 0; i < kLane; i += kWord) {
      remainder = _mm_crc32_u64(remainder, load_word(at + i));
      second = _mm_crc32_u64(second, load_word(at + kLane + i));
      third = _mm_crc32_u64(third, load_word(at + 2 * kLane + i));
    }
    remainder = over_a_lane(over_a_lane(remainder) ^ second) ^ third;
  }
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
