// Reading with the manifest's checksums: the bytes of a file, block by block, each held against its CRC-32C before
// anyone sees it. WeightsError names file and tensor.
#pragma once
#include <cstdint>

#include "modules/io/input_file.h"
#include "trainer/checkpoint/manifest.h"

namespace limbeck::checkpoint {

// Bytes [from, from + bytes) of a chunk into `to`; only the blocks it touches are read. `to` may be null: only judged.
void read_chunk(const io::InputFile& file, const ChunkRecord& chunk, uint64_t from, uint64_t bytes, char* to);

// The head of a file: all of state.json, or a safetensors header, which must list what the manifest lists.
std::string read_head(const io::InputFile& file, const FileRecord& record);

// Opened, and of the length in the manifest.
io::InputFile open_recorded(const std::filesystem::path& folder, const FileRecord& record);

}  // namespace limbeck::checkpoint
