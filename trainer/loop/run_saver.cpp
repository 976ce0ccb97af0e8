#include "trainer/loop/run_saver.h"

#include <utility>

#include "modules/errors.h"

namespace limbeck::loop {

RunSaver::RunSaver(const CheckpointOptions& options, const std::filesystem::path& folder, parallel::Communicator& ranks)
    : plan_(options), async_(options.async) {
  if (!plan_.enabled()) return;
  line_ = ranks.line("checkpoint");
  checkpoint::SaverOptions of_saver;
  of_saver.keep = options.keep;
  saver_ = std::make_unique<checkpoint::AsyncSaver>(folder, *line_, of_saver);
}

void RunSaver::save(checkpoint::SaveRequest request, bool wait) {
  saver_->start(std::move(request));
  if (wait || !async_) saver_->drain();
}

void RunSaver::drain() {
  if (saver_) saver_->drain();
}

std::vector<SaveOutcome> RunSaver::outcomes() {
  std::vector<SaveOutcome> found;
  if (!saver_) return found;
  while (auto report = saver_->take_report()) {
    const int64_t failed_before = std::exchange(failures_, 0);
    const double beside = report->write_seconds + report->fsync_seconds + report->commit_seconds;
    const double standing = report->stage_seconds + (async_ ? 0 : beside);
    plan_.cost(standing, report->stage_seconds + beside);
    found.push_back({std::move(report), "", failed_before});
  }
  while (const std::exception_ptr error = saver_->take_error()) {
    try {
      std::rethrow_exception(error);
    } catch (const DistributedError&) {
      throw;  // no failed save, but ranks that have lost each other
    } catch (const std::exception& failure) {
      ++failures_;
      last_failure_ = failure.what();
      found.push_back({std::nullopt, last_failure_, 0});
    }
  }
  return found;
}

}  // namespace limbeck::loop
