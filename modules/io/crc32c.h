// CRC-32C (Castagnoli), the checksum of data, of checkpoints and of TensorBoard's records. Runs on the CPU's own
// instruction where there is one; both ways give the same number.
#pragma once
#include <cstddef>
#include <cstdint>

namespace limbeck::io {

// Of data alone, or, with the result for what came before, of both together: crc32c(b, n, crc32c(a, m)) is of a then b.
uint32_t crc32c(const void* data, size_t bytes, uint32_t before = 0);

// The same from tables, on every CPU; crc32c() chooses.
uint32_t crc32c_portable(const void* data, size_t bytes, uint32_t before = 0);

}  // namespace limbeck::io
