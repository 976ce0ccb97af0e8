// Codes of 2, 3 or 4 bits as they lie in words of 32: low bits first and without gaps, so that one of 3 bits may begin
// in a word and end in the next. Loops take them as nibbles, to which they are widened here: a block of 32 neighbours
// is as many words as a code has bits, and four words of nibbles in the same order. No torch.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernels/operator/formula.h"
#include "kernels/operator/rounded_up.h"

namespace limbeck::kernels {

inline constexpr int64_t kBlockCodes = 32;
inline constexpr int kNibbleWords = 4;  // of a block

LIMBECK_FORMULA int64_t words_of_codes(int bits, int64_t codes) { return rounded_up_quotient(codes * bits, 32); }

// Code `index` in words of which each lies `step` behind the one before.
LIMBECK_FORMULA uint32_t code_in_words(const uint32_t* words, int64_t step, int bits, int64_t index) {
  const int64_t bit = index * bits, word = bit / 32;
  const int at = static_cast<int>(bit % 32);
  uint32_t code = words[word * step] >> at;
  if (at + bits > 32) code |= words[(word + 1) * step] << (32 - at);
  return code & ((1u << bits) - 1u);
}

// The same place, where zeros are, is given the code.
inline void put_in_words(uint32_t* words, int64_t step, int bits, int64_t index, uint32_t code) {
  const int64_t bit = index * bits, word = bit / 32;
  const int at = static_cast<int>(bit % 32);
  words[word * step] |= code << at;
  if (at + bits > 32) words[(word + 1) * step] |= code >> (32 - at);
}

// The fewest codes that are whole words.
LIMBECK_FORMULA int64_t codes_of_whole_words(int bits) { return bits == 3 ? 32 : 32 / bits; }

// Eight codes in the low bits, apart: halves, quarters, then single ones go where their nibbles are. U: a word, or a
// vector of them.
template <int bits, class U>
LIMBECK_FORMULA U in_nibbles(U codes) {
  static_assert(bits == 2 || bits == 3);
  if constexpr (bits == 2) {
    codes = (codes & 0x00ffu) | (codes & 0xff00u) << 8;
    codes = (codes & 0x000f000fu) | (codes & 0x00f000f0u) << 4;
    return (codes & 0x03030303u) | (codes & 0x0c0c0c0cu) << 2;
  } else {
    codes = (codes & 0x000fffu) | (codes & 0xfff000u) << 4;
    codes = (codes & 0x003f003fu) | (codes & 0x0fc00fc0u) << 2;
    return (codes & 0x07070707u) | (codes & 0x38383838u) << 1;
  }
}

// A block from its words [bits].
template <int bits, class U>
LIMBECK_FORMULA void widen_block(const U* words, U* nibbles) {
  if constexpr (bits == 2) {
    nibbles[0] = in_nibbles<2>(words[0]);
    nibbles[1] = in_nibbles<2>(words[0] >> 16);
    nibbles[2] = in_nibbles<2>(words[1]);
    nibbles[3] = in_nibbles<2>(words[1] >> 16);
  } else if constexpr (bits == 3) {
    nibbles[0] = in_nibbles<3>(words[0]);
    nibbles[1] = in_nibbles<3>(words[0] >> 24 | words[1] << 8);
    nibbles[2] = in_nibbles<3>(words[1] >> 16 | words[2] << 16);
    nibbles[3] = in_nibbles<3>(words[2] >> 8);
  } else {
    for (int i = 0; i < kNibbleWords; ++i) nibbles[i] = words[i];
  }
}

// Where the words are fewer, at the end of a row, what they lack is zeros.
inline void widen_some(int bits, const uint32_t* words, int64_t count, uint32_t* nibbles) {
  uint32_t have[kNibbleWords] = {};
  std::copy_n(words, std::min<int64_t>(bits, count), have);
  if (bits == 2) return widen_block<2>(have, nibbles);
  if (bits == 3) return widen_block<3>(have, nibbles);
  widen_block<4>(have, nibbles);
}

// Codes [first, first + count) of a row of `words`, a byte each; `first` begins a block.
inline void unpack_codes(int bits, const uint32_t* words, int64_t all_words, int64_t first, int64_t count,
                         uint8_t* codes) {
  for (int64_t done = 0; done < count; done += kBlockCodes) {
    const int64_t word = (first + done) / kBlockCodes * bits;
    uint32_t nibbles[kNibbleWords];
    widen_some(bits, words + word, all_words - word, nibbles);
    uint8_t block[kBlockCodes];
    for (int i = 0; i < kBlockCodes; ++i) block[i] = static_cast<uint8_t>(nibbles[i / 8] >> i % 8 * 4 & 15u);
    std::copy_n(block, std::min(kBlockCodes, count - done), codes + done);
  }
}

// Codes [count], a byte each, into words of which the first begins with them; the last one is filled up with zeros.
inline void pack_codes(int bits, const uint8_t* codes, int64_t count, uint32_t* words) {
  for (int64_t done = 0; done < count; done += kBlockCodes) {
    const int64_t left = std::min(kBlockCodes, count - done);
    uint8_t block[kBlockCodes] = {};
    std::copy_n(codes + done, left, block);
    uint32_t packed[kNibbleWords + 1] = {};
    for (int eight = 0; eight < 4; ++eight) {
      uint64_t x;
      std::memcpy(&x, block + 8 * eight, sizeof x);
      // Pairs, fours and the eight move together.
      x = (x & 0x00ff00ff00ff00ffu) | (x >> 8 & 0x00ff00ff00ff00ffu) << bits;
      x = (x & 0x0000ffff0000ffffu) | (x >> 16 & 0x0000ffff0000ffffu) << 2 * bits;
      x = (x & 0xffffffffu) | x >> 32 << 4 * bits;
      const int bit = 8 * bits * eight;
      packed[bit / 32] |= static_cast<uint32_t>(x << bit % 32);
      packed[bit / 32 + 1] |= static_cast<uint32_t>(x << bit % 32 >> 32);
    }
    std::copy_n(packed, words_of_codes(bits, left), words + done / kBlockCodes * bits);
  }
}

}  // namespace limbeck::kernels
