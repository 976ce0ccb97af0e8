#include "trainer/checkpoint/saver.h"

#include <fmt/format.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <exception>
#include <utility>

#include "modules/errors.h"
#include "modules/io/atomic_file.h"
#include "modules/io/crc32c.h"
#include "modules/io/json_file.h"
#include "modules/io/json_text.h"
#include "modules/io/tensor_name.h"
#include "trainer/checkpoint/checked_blocks.h"
#include "trainer/checkpoint/shard_file.h"
#include "trainer/checkpoint/verify.h"
#include "trainer/parallel/ranks/together.h"

namespace limbeck::checkpoint {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr uint64_t kSlack = 4096;  // of a file: what the filesystem rounds up to
constexpr size_t kMostOfId = 128;
constexpr int64_t kMostStep = 999'999'999'999'999'999;

class Stopwatch {
 public:
  double lap() {
    const auto now = std::chrono::steady_clock::now();
    return std::chrono::duration<double>(now - std::exchange(last_, now)).count();
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

void check_request(const SaveRequest& request) {
  constexpr const char* kPlain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
  for (const std::string& text : {request.run_id, request.prefix}) {
    if (!text.empty() && text.size() <= kMostOfId && text.find_first_not_of(kPlain) == text.npos) continue;
    throw ContractError(fmt::format("checkpoint: run id or prefix {}, wanted 1 to {} letters, digits, . _ -",
                                    io::in_quotes(text), kMostOfId));
  }
  if (request.step < 0 || request.step > kMostStep) {
    throw ContractError(fmt::format("checkpoint: step {}, wanted 0 to {}", request.step, kMostStep));
  }
}

json identity_of(const SaveRequest& request) {
  return {request.prefix, request.step, request.run_id, request.config_digest};
}

json records_as_json(const std::vector<FileRecord>& records) {
  json out = json::array();
  for (const FileRecord& record : records) out.push_back(as_json(record));
  return out;
}

// What a rank found out by writing: for each of its files, the checksums of each chunk.
json crcs_of(const std::vector<FileRecord>& records) {
  json out = json::array();
  for (const FileRecord& record : records) {
    std::string all;
    for (const ChunkRecord& chunk : record.chunks) all += crc_text(chunk.crc);
    out.push_back(std::move(all));
  }
  return out;
}

void set_crcs(FileRecord& record, const std::string& text) {
  uint64_t blocks = 0;
  for (const ChunkRecord& chunk : record.chunks) blocks += chunk.crc.size();
  const auto crcs = parse_crc_text(text, blocks, "checkpoint: file " + record.name);
  auto from = crcs.begin();
  for (ChunkRecord& chunk : record.chunks) {
    const auto until = from + static_cast<std::ptrdiff_t>(chunk.crc.size());
    chunk.crc.assign(std::exchange(from, until), until);
  }
}

}  // namespace

struct Saver::Attempt {
  const SaveRequest& request;
  fs::path temporary, target;
  std::string state = {};             // state.json, of rank 0
  std::vector<ShardFile> files = {};  // of this rank
  Manifest manifest = {};             // of all ranks; on rank 0
  uint64_t manifest_bytes = 0;        // of its text
  bool replaces_damaged = false;      // rank 0
  SaveReport report = {};

  std::vector<FileRecord> records() const {
    std::vector<FileRecord> out;
    for (const ShardFile& file : files) out.push_back(file.record());
    return out;
  }
  FileRecord state_record() const {
    return {kStateName, state.size(), state.size(), io::crc32c(state.data(), state.size()), {}};
  }
};

Saver::Saver(fs::path folder, parallel::Communicator& ranks, SaverOptions options)
    : folder_(std::move(folder)), ranks_(ranks), disk_(options.disk), retention_(folder_, options.keep, disk_) {
  parallel::on_all_ranks(ranks_, [&]() -> json {
    if (!leads()) return nullptr;
    if (!fs::is_directory(folder_)) {
      must(disk_.make_folder(folder_), folder_, "cannot be made");
      must(disk_.flush_folder(io::folder_of(folder_)), folder_, "its name cannot be flushed to disk");
    }
    leftovers_ = sweep_leftovers(folder_, disk_);
    return nullptr;
  });
}

void Saver::must(int error, const fs::path& path, const char* doing, uint64_t needed) const {
  if (error == 0) return;
  throw IoError(fmt::format("{}: {}: {}{}", path.string(), doing, std::strerror(error),
                            io::space_text(disk_, folder_, needed, error)));
}

SaveReport Saver::save(const SaveRequest& request) {
  const std::string name = fmt::format(".tmp-{}-{}", step_name(request.prefix, request.step), request.run_id);
  Attempt attempt{
      .request = request, .temporary = folder_ / name, .target = folder_ / step_name(request.prefix, request.step)};
  attempt.report.path = attempt.target;
  std::exception_ptr failure;
  try {
    prepare(attempt);
    write_files(attempt);
    commit(attempt);
  } catch (...) {
    failure = std::current_exception();
  }
  if (!failure) {
    if (leads()) after_commit(attempt);
    return std::move(attempt.report);
  }
  try {
    if (leads() && fs::exists(attempt.temporary)) remove_tree(attempt.temporary, disk_);
  } catch (const std::exception&) {
    // The next save of this step, or the next process, removes it; the first failure is the one to tell.
  }
  std::rethrow_exception(failure);
}

// Phase 1: everything that can be refused before a byte is written.
void Saver::prepare(Attempt& attempt) {
  const SaveRequest& request = attempt.request;
  const auto plans = parallel::on_all_ranks(ranks_, [&]() -> json {
    check_request(request);
    for (const auto& [kind, pieces] :
         {std::pair(Kind::kModel, &request.model), std::pair(Kind::kOptimizer, &request.optimizer)}) {
      ShardFile file(kind, ranks_.rank(), *pieces);
      if (!file.empty()) attempt.files.push_back(std::move(file));
    }
    return {{"request", identity_of(request)}, {"files", leads() ? json() : records_as_json(attempt.records())}};
  });
  parallel::on_all_ranks(ranks_, [&]() -> json {
    for (size_t rank = 1; rank < plans.size(); ++rank) {
      if (plans[rank].at("request") == plans[0].at("request")) continue;
      throw DistributedError(fmt::format("checkpoint: rank {} saves {}, rank 0 saves {}", rank,
                                         plans[rank].at("request").dump(), plans[0].at("request").dump()));
    }
    if (!leads()) return nullptr;
    attempt.state = request.state.dump() + "\n";
    if (attempt.state.size() > io::kMaxJsonBytes || !request.state.is_object()) {
      throw ContractError(fmt::format("checkpoint: a state of {} bytes of type {}, wanted an object of at most {}",
                                      attempt.state.size(), request.state.type_name(), io::kMaxJsonBytes));
    }
    Manifest& manifest = attempt.manifest = {request.run_id, request.config_digest, request.step, {}};
    manifest.files = attempt.records();
    manifest.files.insert(manifest.files.begin(), attempt.state_record());
    for (size_t rank = 1; rank < plans.size(); ++rank) {
      for (const json& record : plans[rank].at("files")) {
        manifest.files.push_back(parse_file_record(io::JsonFile(record, "checkpoint")));
      }
    }
    manifest.tensors(attempt.target.string());
    uint64_t needed = attempt.report.bytes = manifest.text().size();
    for (const FileRecord& record : manifest.files) attempt.report.bytes += record.bytes;
    needed = attempt.report.bytes + (manifest.files.size() + 2) * kSlack;
    if (fs::exists(attempt.target)) {
      if (is_whole(verify(attempt.target))) {
        throw IoError(
            fmt::format("{}: is there already and whole, and a saved step is never overwritten: resume from "
                        "it, or move it away",
                        attempt.target.string()));
      }
      attempt.replaces_damaged = true;
    }
    uint64_t available = 0;
    must(disk_.free_bytes(folder_, available), folder_, "cannot be asked for its free space");
    if (available < needed) must(ENOSPC, attempt.target, "cannot be saved", needed);
    if (fs::exists(attempt.temporary)) remove_tree(attempt.temporary, disk_);
    must(disk_.make_folder(attempt.temporary), attempt.temporary, "cannot be made", needed);
    return nullptr;
  });
}

// Phase 2: every rank its own files, on disk before it votes.
void Saver::write_files(Attempt& attempt) {
  const auto written = parallel::on_all_ranks(ranks_, [&]() -> json {
    Stopwatch watch;
    try {
      for (ShardFile& file : attempt.files) file.write(disk_, attempt.temporary, buffer_);
      attempt.report.write_seconds = watch.lap();
      for (ShardFile& file : attempt.files) file.flush();
      for (ShardFile& file : attempt.files) file.finish();
      attempt.report.fsync_seconds = watch.lap();
    } catch (...) {
      attempt.files.clear();  // removes what is unfinished, before rank 0 hears of it and removes the folder
      throw;
    }
    return crcs_of(attempt.records());
  });
  if (!leads()) return;
  size_t file = 1;  // after state.json, in the order in which the ranks announced them
  for (const json& of_rank : written) {
    for (const json& crcs : of_rank) set_crcs(attempt.manifest.files.at(file++), crcs.get<std::string>());
  }
}

void Saver::write_whole(Attempt& attempt, const std::string& name, const std::string& text) {
  const fs::path path = attempt.temporary / name;
  io::NewFile file(disk_, path, text.size(), path.string());
  file.write(text.data(), text.size());
  file.flush();
  file.finish();
}

// Phase 3: rank 0 completes the folder and gives it its name. The last vote tells the others.
void Saver::commit(Attempt& attempt) {
  Stopwatch watch;
  const auto answers = parallel::on_all_ranks(ranks_, [&]() -> json {
    if (!leads()) return nullptr;
    write_whole(attempt, kStateName, attempt.state);
    const std::string text = attempt.manifest.text();
    write_whole(attempt, kManifestName, text);
    must(disk_.flush_folder(attempt.temporary), attempt.temporary, "cannot be flushed to disk");
    // What is there now is what a reader will find: looked at once more under its temporary name.
    if (io::read_json_text(attempt.temporary / kManifestName) != text) {
      throw IoError(attempt.temporary.string() + ": does not hold what was just written: is another process in it?");
    }
    for (const FileRecord& record : attempt.manifest.files) open_recorded(attempt.temporary, record);
    attempt.manifest_bytes = text.size();
    if (attempt.replaces_damaged) remove_checkpoint(attempt.target, attempt.request.run_id, disk_);
    must(disk_.rename(attempt.temporary, attempt.target), attempt.target, "cannot be put in place");
    if (const int error = disk_.flush_folder(folder_); error != 0) {
      // Not known to be on disk: it must not be taken for committed, so it loses its name again.
      disk_.rename(attempt.target, attempt.temporary);
      must(error, folder_, "cannot be flushed to disk");
    }
    return attempt.report.bytes;
  });
  attempt.report.bytes = answers.front().get<uint64_t>();
  attempt.report.commit_seconds = watch.lap();
}

// Phase 4, rank 0: the step is saved; what fails here is told and fails nothing.
void Saver::after_commit(Attempt& attempt) {
  if (attempt.request.prefix != kStepPrefix) return;
  auto& warnings = attempt.report.warnings;
  try {
    io::write_atomically(folder_ / "latest", attempt.target.filename().string() + "\n", disk_);
  } catch (const std::exception& error) {
    warnings.push_back(error.what());
  }
  try {
    std::vector<FileState> files{{kManifestName, attempt.manifest_bytes, ""}};
    for (const FileRecord& record : attempt.manifest.files) files.push_back({record.name, record.bytes, ""});
    const auto more = retention_.after_commit(attempt.target, attempt.request.run_id, std::move(files));
    warnings.insert(warnings.end(), more.begin(), more.end());
  } catch (const std::exception& error) {
    warnings.push_back(fmt::format("old checkpoints were not looked through: {}", error.what()));
  }
}

}  // namespace limbeck::checkpoint
