#include <dlfcn.h>
#include <fmt/format.h>

#include "kernels/operator/cuda_library.h"
#include "modules/errors.h"
#include "trainer/parallel/ranks/nccl.h"

namespace limbeck::parallel {

std::unique_ptr<Communicator> make_nccl(std::unique_ptr<Communicator> control, const Meeting& meeting,
                                        const NcclOptions& options) {
  void* symbol = nullptr;
  try {
    symbol = dlsym(kernels::open_library_beside(kNcclLibrary), kNcclFactory);
  } catch (const c10::Error& error) {
    throw DistributedError(fmt::format("several ranks on GPUs: {}", error.what_without_backtrace()));
  }
  if (symbol == nullptr) {
    throw DistributedError(
        fmt::format("{} has no {}: it belongs to another build of limbeck: install all libraries of "
                    "one build, or type --device=cpu",
                    kNcclLibrary, kNcclFactory));
  }
  return std::unique_ptr<Communicator>(reinterpret_cast<NcclFactory>(symbol)(control.release(), &meeting, &options));
}

void refuse_shared_gpu(Communicator& ranks, const std::string& mine) {
  const std::vector<std::string> all = ranks.all_gather(mine);
  for (size_t one = 0; one < all.size(); ++one) {
    for (size_t other = one + 1; other < all.size(); ++other) {
      if (all[one] != all[other]) continue;
      throw UsageError(fmt::format(
          "ranks {} and {} are both on {}: wanted a GPU for each rank; type --device=cuda, which gives each its own by "
          "its local rank, and check CUDA_VISIBLE_DEVICES and the number of processes a node",
          one, other, all[one]));
    }
  }
}

}  // namespace limbeck::parallel
