// One safetensors file of a checkpoint, in two steps: planned, when every length and position is known, and written,
// straight from the memory of the pieces, its checksums taken on the way.
#pragma once
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "modules/io/new_file.h"
#include "trainer/checkpoint/manifest.h"
#include "trainer/checkpoint/save_request.h"

namespace limbeck::checkpoint {

class ShardFile {
 public:
  // pieces must outlive this. ContractError for a piece that cannot be saved.
  ShardFile(Kind kind, int rank, const std::vector<Piece>& pieces);

  bool empty() const { return record_.chunks.empty(); }
  const FileRecord& record() const { return record_; }  // checksums are zero until write() returned

  void write(io::Disk& disk, const std::filesystem::path& folder, io::DirectBuffer& buffer);
  void flush();  // then finish(): the file is closed and stays
  void finish();

 private:
  FileRecord record_;
  std::string head_;
  std::vector<const Piece*> pieces_;  // of the chunks
  std::unique_ptr<io::NewFile> file_;
};

}  // namespace limbeck::checkpoint
