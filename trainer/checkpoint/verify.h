// Is a checkpoint what was saved? verify() reads every byte of every file in it; newest_good() finds the one to resume
// from. Nothing here changes a file.
#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace limbeck::checkpoint {

struct FileState {
  std::string file;
  uint64_t bytes = 0;
  std::string fault;  // "" when it is right, else one line naming file and, where it is in one, tensor
};

// Every file that is there or should be, MANIFEST.json first. Never throws for what is wrong with the checkpoint.
std::vector<FileState> verify(const std::filesystem::path& path);
bool is_whole(const std::vector<FileState>& files);
std::string first_fault(const std::vector<FileState>& files);  // "" when whole

// The quick look at what was verified once: the manifest is whole and every file is still there in its length.
bool sizes_match(const std::filesystem::path& path, const std::vector<FileState>& files);

// The newest step of RUN/checkpoints that verifies; nothing when none was ever committed. Each that does not is a line
// of `notes`, with what is wrong and what is used instead. WeightsError when all are bad, and when strict and the
// newest is.
std::optional<std::filesystem::path> newest_good(const std::filesystem::path& folder, std::vector<std::string>& notes,
                                                 bool strict = false);

}  // namespace limbeck::checkpoint
