// Small checkpoints for tests: tensors whose every element depends on the step, and disks that record or fail.
#pragma once
#include <ATen/core/Tensor.h>

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "modules/io/disk.h"
#include "trainer/checkpoint/checkpoint.h"
#include "trainer/checkpoint/save_request.h"

namespace limbeck::test {

// All dtypes, a scalar, a tensor without elements, one of more than a block; different for each step.
checkpoint::SaveRequest request_of(int64_t step);
// The same request as rank `rank` of `size` would give it: every tensor cut into uneven parts.
checkpoint::SaveRequest part_of(const checkpoint::SaveRequest& whole, int rank, int size);
// Every tensor, the state and the step of `path` are those of the request, bit for bit.
void expect_holds(const std::filesystem::path& path, const checkpoint::SaveRequest& wanted);
bool same_bits(const at::Tensor& a, const at::Tensor& b);
// Saves it alone; keep as in SaverOptions.
std::filesystem::path save_alone(const std::filesystem::path& folder, const checkpoint::SaveRequest& request,
                                 int keep = 0, io::Disk& disk = io::posix_disk());

// Passes every call on to the real disk, after before() said 0; else the call fails with that errno.
class WrappedDisk : public io::Disk {
 public:
  int create(const Path& path, int& descriptor) override;
  int reserve(int descriptor, uint64_t bytes) override;
  int set_direct(int descriptor, bool direct) override;  // no call: how the others are done, not what
  int write(int descriptor, const void* data, size_t bytes, size_t& written) override;
  int flush(int descriptor) override;
  int close(int descriptor) override;
  int rename(const Path& from, const Path& to) override;
  int exchange(const Path& one, const Path& other) override;
  int make_folder(const Path& path) override;
  int remove_file(const Path& path) override;
  int remove_folder(const Path& path) override;
  int flush_folder(const Path& path) override;
  int free_bytes(const Path& path, uint64_t& bytes) override;

 protected:
  struct Call {
    enum What {
      kCreate,
      kReserve,
      kWrite,
      kFlush,
      kClose,
      kRename,
      kExchange,
      kMake,
      kRemoveFile,
      kRemoveFolder,
      kFlushFolder,
      kFree
    };
    What what;
    Path path = {}, to = {};
    int descriptor = -1;
    std::string data = {};
    uint64_t bytes = 0;
  };
  virtual int before(const Call& call) = 0;
  virtual void after(const Call&) {}  // it succeeded; create's call has its descriptor

 private:
  template <class Body>
  int pass_on(Call call, Body body);
};

// The n-th call fails once with the errno, n from 1.
class FailingDisk : public WrappedDisk {
 public:
  FailingDisk(int64_t which, int error) : left_(which), error_(error) {}
  bool failed() const { return failed_; }
  bool was_question() const { return was_question_; }  // for the free space: not knowing it need not fail a save

 private:
  int before(const Call& call) override;
  int64_t left_;
  int error_;
  bool failed_ = false, was_question_ = false;
};

}  // namespace limbeck::test
