// Saves a checkpoint on all ranks, or on none: what has the name step-N is complete and on disk. Each rank writes its
// own files into a temporary folder; the ranks vote after every phase; rank 0 alone commits, by a rename.
// Whatever fails on whatever rank: nothing is committed, the temporary is removed, every rank throws the same error.
#pragma once
#include <filesystem>
#include <string>
#include <vector>

#include "modules/io/disk.h"
#include "modules/io/new_file.h"
#include "trainer/checkpoint/checkpoint_folder.h"
#include "trainer/checkpoint/save_request.h"
#include "trainer/parallel/communicator.h"

namespace limbeck::checkpoint {

struct SaverOptions {
  int keep = 0;  // so many of the newest good steps stay; 0: all
  io::Disk& disk = io::posix_disk();
};

class Saver {
 public:
  // folder: RUN/checkpoints, on a filesystem that all ranks share; rank 0 makes it when it is not there and removes
  // what a dead process left in it, so the caller holds the run's lock. Every rank calls this and save() in the same
  // order.
  Saver(std::filesystem::path folder, parallel::Communicator& ranks, SaverOptions options = {});

  // Blocks until the step is committed on disk. A step that is there already and whole is never overwritten (IoError);
  // one that is there and damaged is replaced.
  SaveReport save(const SaveRequest& request);

  const std::vector<std::string>& leftovers() const { return leftovers_; }  // what could not be swept (rank 0)

 private:
  struct Attempt;
  bool leads() const { return ranks_.rank() == 0; }
  void prepare(Attempt& attempt);
  void write_files(Attempt& attempt);
  void commit(Attempt& attempt);
  void after_commit(Attempt& attempt);
  void write_whole(Attempt& attempt, const std::string& name, const std::string& text);
  void must(int error, const std::filesystem::path& path, const char* doing, uint64_t needed = 0) const;

  std::filesystem::path folder_;
  parallel::Communicator& ranks_;
  io::Disk& disk_;
  io::DirectBuffer buffer_;
  Retention retention_;
  std::vector<std::string> leftovers_;
};

}  // namespace limbeck::checkpoint
