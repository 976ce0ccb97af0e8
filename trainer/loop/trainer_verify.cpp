// --verify-resume: the same updates twice, from the same checkpoint.
#include <fmt/format.h>

#include <cstring>

#include "modules/errors.h"
#include "modules/io/crc32c.h"
#include "trainer/checkpoint/saver.h"
#include "trainer/loop/trainer_state.h"
#include "trainer/parallel/ranks/together.h"

namespace limbeck::loop {
namespace {

// What is compared after an update: name and digest, the loss first.
using Fingerprint = std::vector<std::pair<std::string, uint64_t>>;

Fingerprint fingerprint(const UpdateResult& update, const optim::Optimizer& optimizer) {
  uint64_t loss = 0;
  std::memcpy(&loss, &update.loss, sizeof(loss));
  Fingerprint found = {{"the loss", loss}};
  const auto add = [&](const std::vector<optim::StateTensor>& tensors) {
    for (const optim::StateTensor& tensor : tensors) {
      const at::Tensor plain = tensor.part.cpu().contiguous();
      found.emplace_back(tensor.name, io::crc32c(plain.const_data_ptr(), plain.nbytes()));
    }
  };
  add(optimizer.weight_tensors());
  add(optimizer.state_tensors());
  return found;
}

}  // namespace

void Trainer::verify_resume(int64_t steps) {
  State& s = *state_;
  const RunState start = s.run;
  const int64_t end = std::min(start.step + steps, s.total_steps);
  const std::filesystem::path folder = s.folder->path() / "verify-resume";
  const auto line = s.ranks.line("verify-resume");
  parallel::together(s.ranks, [&] {
    if (s.leads()) std::filesystem::remove_all(folder);
  });
  checkpoint::Saver saver(folder, *line);
  const auto saved = saver.save(save_request(start, *s.objective, *s.optimizer, s.leads())).path;

  std::vector<Fingerprint> before;
  for (const bool again : {false, true}) {
    if (again) {
      parallel::together(s.ranks, [&] { restore(checkpoint::Checkpoint::open(saved), *s.objective, *s.optimizer); });
      s.optimizer->shares().publish();
    }
    data::Prefetcher prefetched = s.batches_from(start.step, end);
    for (s.run.step = start.step; s.run.step < end; ++s.run.step) {
      const auto batches = s.own_batches(prefetched);
      const StepRecord record = s.update(batches, s.meet(batches, false));
      const Fingerprint now = fingerprint(record.update, *s.optimizer);
      if (!again) {
        before.push_back(now);
        continue;
      }
      const Fingerprint& first = before[static_cast<size_t>(s.run.step - start.step)];
      parallel::together(s.ranks, [&] {
        for (size_t i = 0; i < now.size(); ++i) {
          if (now[i] == first[i]) continue;
          throw NumericError(
              fmt::format("step {}: {} differs after going back to the checkpoint of step {}: a resumed "
                          "run would not have the same bits; the checkpoint is kept in {}",
                          record.step, now[i].first, start.step, folder.string()));
        }
      });
    }
  }
  parallel::together(s.ranks, [&] {
    if (s.leads()) std::filesystem::remove_all(folder);
  });
  s.note(
      fmt::format("verify-resume: {} updates after step {}, trained twice from one checkpoint: the loss and all {} "
                  "tensors of each have the same bits",
                  end - start.step, start.step, before.empty() ? 0 : before.front().size() - 1));
}

}  // namespace limbeck::loop
