// limbeck verify: reads every byte of a data set or of checkpoints again and holds it against the manifest.
#include <fmt/format.h>

#include "modules/errors.h"
#include "trainer/checkpoint/checkpoint_folder.h"
#include "trainer/checkpoint/verify.h"
#include "trainer/cli/commands/command.h"
#include "trainer/cli/console/text_table.h"
#include "trainer/data/data_set_check.h"
#include "trainer/recipe/message.h"

namespace limbeck::cli {
namespace {

nlohmann::ordered_json as_json(const data::DataSetCheck& check) {
  const data::Manifest& summary = check.manifest.summary;
  nlohmann::ordered_json out = {
      {"folder", check.folder.string()},  {"documents", summary.documents},        {"tokens", summary.tokens},
      {"vocabulary", summary.vocabulary}, {"tokenizer", summary.tokenizer_digest}, {"digest", summary.digest}};
  if (check.manifest.has_teacher) {
    out["teacher_vocabulary"] = summary.teacher_vocabulary;
    out["teacher_tokenizer"] = summary.teacher_tokenizer_digest;
  }
  out["shards"] = nlohmann::ordered_json::array();
  for (const data::ShardCheck& shard : check.shards) {
    out["shards"].push_back({{"file", shard.record.file},
                             {"bytes", shard.record.bytes},
                             {"documents", shard.record.documents},
                             {"tokens", shard.record.tokens},
                             {"targets", shard.record.targets},
                             {"fault", shard.fault}});
  }
  return out;
}

std::string rendered(const data::DataSetCheck& check, int width) {
  TextTable table({{"shard"},
                   {"documents", Align::kRight},
                   {"tokens", Align::kRight},
                   {"targets", Align::kRight},
                   {"bytes", Align::kRight},
                   {"state"}});
  for (const data::ShardCheck& shard : check.shards) {
    const data::ShardRecord& record = shard.record;
    table.add_row({record.file, std::to_string(record.documents), std::to_string(record.tokens),
                   std::to_string(record.targets), std::to_string(record.bytes), shard.fault.empty() ? "ok" : "BAD"});
  }
  const data::Manifest& summary = check.manifest.summary;
  std::string out = fmt::format(
      "{}: {} documents, {} tokens, vocabulary {}{}\n", check.folder.string(), summary.documents, summary.tokens,
      summary.vocabulary,
      check.manifest.has_teacher ? fmt::format(", teacher's vocabulary {}", summary.teacher_vocabulary) : "");
  return out + table.render(width);
}

nlohmann::ordered_json as_json(const std::filesystem::path& path, const std::vector<checkpoint::FileState>& files) {
  nlohmann::ordered_json out = {{"folder", path.string()}, {"files", nlohmann::ordered_json::array()}};
  for (const checkpoint::FileState& file : files) {
    out["files"].push_back({{"file", file.file}, {"bytes", file.bytes}, {"fault", file.fault}});
  }
  return out;
}

std::string rendered(const std::filesystem::path& path, const std::vector<checkpoint::FileState>& files, int width) {
  TextTable table({{"file"}, {"bytes", Align::kRight}, {"state"}});
  for (const checkpoint::FileState& file : files) {
    table.add_row({file.file, std::to_string(file.bytes), file.fault.empty() ? "ok" : "BAD"});
  }
  return path.string() + "\n" + table.render(width);
}

void verify_checkpoints(Invocation& call, const std::vector<std::filesystem::path>& paths) {
  std::string first;
  size_t files_read = 0, bad = 0;
  call.result["checkpoints"] = nlohmann::ordered_json::array();
  for (const auto& path : paths) {
    const auto files = checkpoint::verify(path);
    call.result["checkpoints"].push_back(as_json(path, files));
    call.console.result(rendered(path, files, call.width));
    for (const checkpoint::FileState& file : files) {
      ++files_read;
      if (file.fault.empty()) continue;
      if (bad++ == 0) first = file.fault;
      call.console.warning(file.fault);
    }
  }
  if (bad == 0) {
    call.console.result(
        fmt::format("{} checkpoints, {} files, every byte is what was saved", paths.size(), files_read));
    return;
  }
  throw WeightsError(fmt::format("{} of {} files are bad, the first: {}", bad, files_read, first));
}

void verify_data_sets(Invocation& call, const std::vector<std::filesystem::path>& folders) {
  std::string first_fault;
  size_t shards = 0, bad = 0;
  call.result["data_sets"] = nlohmann::ordered_json::array();
  for (const auto& folder : folders) {
    const data::DataSetCheck check = data::check_data_set(folder);
    call.result["data_sets"].push_back(as_json(check));
    call.console.result(rendered(check, call.width));
    for (const data::ShardCheck& shard : check.shards) {
      ++shards;
      if (shard.fault.empty()) continue;
      if (bad++ == 0) first_fault = shard.fault;
      call.console.warning(shard.fault);
    }
  }
  if (bad == 0) {
    call.console.result(fmt::format("{} shards, every checksum and every id is right", shards));
    return;
  }
  throw InputDataError(
      fmt::format("{} of {} shards are bad, the first: {}; prepare the data again", bad, shards, first_fault));
}

void run_verify(Invocation& call) {
  const std::filesystem::path path = call.operands.front();
  const auto folders = data::data_sets_of(path);
  if (!folders.empty()) return verify_data_sets(call, folders);
  const auto checkpoints = checkpoint::checkpoints_of(path);
  if (!checkpoints.empty()) return verify_checkpoints(call, checkpoints);
  throw InputDataError(
      fmt::format("{}: no manifest.json there, wanted a folder that tools/prepare_data.py wrote, or a "
                  "run or checkpoint of `limbeck train`",
                  recipe::shown(path.string())));
}

}  // namespace

Command verify_command() {
  return {.name = "verify",
          .summary = "Every checksum of a data set, a run or a checkpoint.",
          .example = "limbeck verify runs/mine",
          .operands = {{"PATH", "A folder of tools/prepare_data.py, a run, its checkpoints folder or one of them."}},
          .run = run_verify};
}

}  // namespace limbeck::cli
