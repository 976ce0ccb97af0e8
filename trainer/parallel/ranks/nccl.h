// Ranks as processes with a GPU each: tensors go by NCCL, control by a Gloo line. The body is liblimbeck_nccl.so, which
// needs libtorch_cuda and is opened only when a run with several ranks asks for GPUs.
// Never run on GPUs: the machines that built it had none. It runs on the fake devices of tests/fake_cuda/, where
// another stands in NCCL's place (tests/trainer/nccl_test.cpp, tests/python/test_fake_ranks.py).
#pragma once
#include <filesystem>
#include <memory>

#include "trainer/parallel/ranks/gloo.h"
#include "trainer/parallel/ranks/meeting.h"

namespace limbeck::parallel {

struct NcclOptions {
  int device = 0;  // which GPU of those that this process sees
  double first_timeout_s = 1800, timeout_s = 600;
  bool verify_calls = false;
  // Of the run, or empty: a rank that fails leaves its last operations there, and one that ends well takes away what an
  // earlier failure left. Without it, or where the rank cannot write there, in a new folder that nobody else can enter.
  std::filesystem::path folder = {};
};

// `control` is a line of `meeting`. UsageError when two ranks have one GPU.
std::unique_ptr<Communicator> make_nccl(std::unique_ptr<Communicator> control, const Meeting& meeting,
                                        const NcclOptions& options);

// A rank's word on its GPU, "host nodeA, GPU 0000:3b:00.0": UsageError when another rank says the same.
void refuse_shared_gpu(Communicator& ranks, const std::string& mine);

// What the library exports under this name.
inline constexpr const char* kNcclLibrary = "liblimbeck_nccl.so";
inline constexpr const char* kNcclFactory = "limbeck_make_nccl";
using NcclFactory = Communicator* (*)(Communicator* control, const Meeting* meeting, const NcclOptions* options);

}  // namespace limbeck::parallel
