// --verify-resume: the same updates twice, from the same checkpoint.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "modules/errors.h"
#include "modules/io/crc32c.h"
#include "trainer/loop/trainer_state.h"
#include "trainer/parallel/ranks/together.h"

namespace limbeck::loop {
namespace {

// What is compared after an update: name and digest, the loss first.
using Fingerprint = std::vector<std::pair<std::string, uint64_t>>;

Fingerprint fingerprint(const session::UpdateResult& update, const optim::Optimizer& optimizer) {
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
  session::Session& session = *s.session;
  const int64_t start = session.steps_done(), end = std::min(start + steps, session.total_steps());
  const std::filesystem::path folder = s.folder->path() / "verify-resume";
  const auto remove_folder = [&] {
    parallel::together(s.ranks, [&] {
      if (s.leads()) std::filesystem::remove_all(folder);
    });
  };
  remove_folder();
  const auto saved = session.save_checkpoint(folder);
  std::vector<Fingerprint> before;
  while (session.steps_done() < end) before.push_back(fingerprint(session.step().update, session.optimizer()));
  session.restore(saved);
  for (const Fingerprint& first : before) {
    const session::StepResult again = session.step();
    const Fingerprint now = fingerprint(again.update, session.optimizer());
    parallel::together(s.ranks, [&] {
      for (size_t i = 0; i < now.size(); ++i) {
        if (now[i] == first[i]) continue;
        throw NumericError(
            fmt::format("step {}: {} differs after going back to the checkpoint of step {}: a resumed "
                        "run would not have the same bits; the checkpoint is kept in {}",
                        again.step, now[i].first, start, folder.string()));
      }
    });
  }
  remove_folder();
  s.note(
      fmt::format("verify-resume: {} updates after step {}, trained twice from one checkpoint: the loss and all {} "
                  "tensors of each have the same bits",
                  std::max<int64_t>(0, end - start), start, before.empty() ? 0 : before.front().size() - 1));
}

}  // namespace limbeck::loop
