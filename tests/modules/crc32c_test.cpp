// The published vectors of CRC-32C, and both implementations against the definition, bit by bit.
#include "modules/io/crc32c.h"

#include <gtest/gtest.h>

#include <numeric>
#include <string>
#include <vector>

namespace limbeck::io {
namespace {

uint32_t bit_by_bit(const std::vector<unsigned char>& data) {
  uint32_t remainder = 0xFFFFFFFF;
  for (const unsigned char byte : data) {
    remainder ^= byte;
    for (int bit = 0; bit < 8; ++bit) remainder = (remainder & 1) != 0 ? (remainder >> 1) ^ 0x82F63B78 : remainder >> 1;
  }
  return ~remainder;
}

TEST(Crc32c, EqualsThePublishedVectors) {  // RFC 3720, appendix B.4, and the usual check value
  std::vector<unsigned char> ascending(32), descending(32);
  std::iota(ascending.begin(), ascending.end(), 0);
  std::iota(descending.rbegin(), descending.rend(), 0);
  const std::vector<unsigned char> zeros(32, 0), ones(32, 0xFF);
  const std::string digits = "123456789";
  for (const auto crc : {crc32c, crc32c_portable}) {
    EXPECT_EQ(crc(digits.data(), digits.size(), 0), 0xE3069283u);
    EXPECT_EQ(crc(zeros.data(), zeros.size(), 0), 0x8A9136AAu);
    EXPECT_EQ(crc(ones.data(), ones.size(), 0), 0x62A8AB43u);
    EXPECT_EQ(crc(ascending.data(), ascending.size(), 0), 0x46DD794Eu);
    EXPECT_EQ(crc(descending.data(), descending.size(), 0), 0x113FDB5Cu);
    EXPECT_EQ(crc(nullptr, 0, 0), 0u);
  }
}

TEST(Crc32c, HoldsForEveryLengthAndCut) {
  std::vector<unsigned char> data;
  uint32_t state = 12345;
  for (int length = 0; length <= 67; ++length) {
    const uint32_t wanted = bit_by_bit(data);
    EXPECT_EQ(crc32c(data.data(), data.size()), wanted) << length;
    EXPECT_EQ(crc32c_portable(data.data(), data.size()), wanted) << length;
    for (size_t cut = 0; cut <= data.size(); ++cut) {  // unaligned starts too
      const uint32_t first = crc32c(data.data(), cut);
      EXPECT_EQ(crc32c(data.data() + cut, data.size() - cut, first), wanted) << length << " cut at " << cut;
      EXPECT_EQ(crc32c_portable(data.data() + cut, data.size() - cut, first), wanted) << length << " cut at " << cut;
    }
    state = state * 1664525u + 1013904223u;
    data.push_back(static_cast<unsigned char>(state >> 24));
  }
}

// Three lanes of 4 KiB run at once: around their ends, and with several rounds of them.
TEST(Crc32c, HoldsAcrossTheLanesOfLongData) {
  std::vector<unsigned char> data(5 * 12288 + 100);
  uint32_t state = 54321;
  for (unsigned char& byte : data) byte = static_cast<unsigned char>((state = state * 1664525u + 1013904223u) >> 24);
  for (const size_t length : {12287u, 12288u, 12289u, 12296u, 24575u, 24576u, 36865u, 61540u}) {
    for (const size_t from : {0u, 1u, 7u}) {
      const size_t bytes = length - from;
      const uint32_t wanted = crc32c_portable(data.data() + from, bytes, 0x1234567u);
      EXPECT_EQ(crc32c(data.data() + from, bytes, 0x1234567u), wanted) << length << " from " << from;
    }
  }
}

TEST(Crc32c, SeesEverySingleFlippedBit) {
  std::vector<unsigned char> data(41, 0x5A);
  const uint32_t whole = crc32c(data.data(), data.size());
  for (size_t bit = 0; bit < 8 * data.size(); ++bit) {
    data[bit / 8] ^= static_cast<unsigned char>(1u << (bit % 8));
    EXPECT_NE(crc32c(data.data(), data.size()), whole) << "bit " << bit;
    data[bit / 8] ^= static_cast<unsigned char>(1u << (bit % 8));
  }
}

}  // namespace
}  // namespace limbeck::io
