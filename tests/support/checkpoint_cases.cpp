#include "tests/support/checkpoint_cases.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>

#include "trainer/checkpoint/saver.h"

namespace limbeck::test {

using checkpoint::Kind;
using checkpoint::Piece;
using checkpoint::SaveRequest;

SaveRequest request_of(int64_t step) {
  // Bytes of no meaning: what is saved is bits. Made by hand, because a forked child must not start torch's threads.
  const auto made = [step](at::IntArrayRef shape, at::ScalarType type) {
    const at::Tensor tensor = at::empty(shape, at::TensorOptions(at::kCPU).dtype(type));
    auto* bytes = static_cast<unsigned char*>(tensor.mutable_data_ptr());
    for (size_t i = 0; i < tensor.nbytes(); ++i) {
      bytes[i] = static_cast<unsigned char>((i * 31 + static_cast<size_t>(step) * 7) % 251);
    }
    return tensor;
  };
  SaveRequest request;
  request.step = step;
  request.run_id = "run.1-a_B";
  request.config_digest = "digest";
  request.state = {
      {"cursor", uint64_t{18446744073709551615u}}, {"step", step}, {"loss", 0.1 * static_cast<double>(step)}};
  request.model = {checkpoint::whole_tensor("half", made({3, 5}, at::kHalf)),
                   checkpoint::whole_tensor("large", made({300, 1000}, at::kFloat)),  // more than a block
                   checkpoint::whole_tensor("none", made({0, 4}, at::kFloat)),
                   checkpoint::whole_tensor("scalar", made({}, at::kBFloat16)),
                   checkpoint::whole_tensor("brain", made({7, 11, 2}, at::kBFloat16))};
  request.optimizer = {checkpoint::whole_tensor("large", made({300, 1000}, at::kFloat)),
                       checkpoint::whole_tensor("steps", made({9}, at::kLong))};
  return request;
}

SaveRequest part_of(const SaveRequest& whole, int rank, int size) {
  // Rank r holds (r + 1) shares of the sum of all shares: uneven, and nothing of some small tensors.
  const auto cut = [&](int64_t elements, int upto) { return elements * upto * (upto + 1) / (size * (size + 1)); };
  SaveRequest part = whole;
  for (auto* pieces : {&part.model, &part.optimizer}) {
    for (Piece& piece : *pieces) {
      const int64_t elements = piece.data.numel(), begin = cut(elements, rank);
      piece.data = piece.data.reshape({-1}).narrow(0, begin, cut(elements, rank + 1) - begin);
      piece.begin = begin;
    }
  }
  if (rank != 0) part.state = nullptr;
  return part;
}

bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  return a.scalar_type() == b.scalar_type() && a.numel() == b.numel() &&
         (a.numel() == 0 || std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) == 0);
}

void expect_holds(const std::filesystem::path& path, const SaveRequest& wanted) {
  const auto saved = checkpoint::Checkpoint::open(path);
  EXPECT_EQ(saved.step(), wanted.step);
  EXPECT_EQ(saved.run_id(), wanted.run_id);
  EXPECT_EQ(saved.config_digest(), wanted.config_digest);
  EXPECT_EQ(saved.state(), wanted.state);
  EXPECT_EQ(saved.tensors().size(), wanted.model.size() + wanted.optimizer.size());
  for (const auto& [kind, pieces] :
       {std::pair(Kind::kModel, &wanted.model), std::pair(Kind::kOptimizer, &wanted.optimizer)}) {
    for (const Piece& piece : *pieces) {
      const at::Tensor got = saved.read(kind, piece.name);
      EXPECT_EQ(got.sizes(), at::IntArrayRef(piece.shape)) << piece.name;
      EXPECT_TRUE(same_bits(got, piece.data)) << piece.name;
    }
  }
}

std::filesystem::path save_alone(const std::filesystem::path& folder, const SaveRequest& request, int keep,
                                 io::Disk& disk) {
  const auto solo = parallel::make_solo();
  checkpoint::Saver saver(folder, *solo, {.keep = keep, .disk = disk});
  return saver.save(request).path;
}

template <class Body>
int WrappedDisk::pass_on(Call call, Body body) {
  if (const int error = before(call); error != 0) return error;
  const int error = body(call);
  if (error == 0) after(call);
  return error;
}

int WrappedDisk::create(const Path& path, int& descriptor) {
  return pass_on({.what = Call::kCreate, .path = path}, [&](Call& call) {
    const int error = io::posix_disk().create(path, descriptor);
    call.descriptor = descriptor;
    return error;
  });
}
int WrappedDisk::reserve(int descriptor, uint64_t bytes) {
  return pass_on({.what = Call::kReserve, .descriptor = descriptor, .bytes = bytes},
                 [&](Call&) { return io::posix_disk().reserve(descriptor, bytes); });
}
int WrappedDisk::set_direct(int descriptor, bool direct) { return io::posix_disk().set_direct(descriptor, direct); }
int WrappedDisk::write(int descriptor, const void* data, size_t bytes, size_t& written) {
  // At most half of what is asked at once: short writes are the rule here.
  const size_t some = bytes > 100'000 ? bytes / 2 : bytes;
  Call call{.what = Call::kWrite, .descriptor = descriptor, .data = std::string(static_cast<const char*>(data), some)};
  return pass_on(std::move(call), [&](Call&) { return io::posix_disk().write(descriptor, data, some, written); });
}
int WrappedDisk::flush(int descriptor) {
  return pass_on({.what = Call::kFlush, .descriptor = descriptor},
                 [&](Call&) { return io::posix_disk().flush(descriptor); });
}
int WrappedDisk::close(int descriptor) {
  const int error = pass_on({.what = Call::kClose, .descriptor = descriptor},
                            [&](Call&) { return io::posix_disk().close(descriptor); });
  if (error != 0) ::close(descriptor);  // as the kernel does: it is gone, whatever close() said
  return error;
}
int WrappedDisk::exchange(const Path& one, const Path& other) {
  return pass_on({.what = Call::kExchange, .path = one, .to = other},
                 [&](Call&) { return io::posix_disk().exchange(one, other); });
}

int WrappedDisk::rename(const Path& from, const Path& to) {
  return pass_on({.what = Call::kRename, .path = from, .to = to},
                 [&](Call&) { return io::posix_disk().rename(from, to); });
}
int WrappedDisk::make_folder(const Path& path) {
  return pass_on({.what = Call::kMake, .path = path}, [&](Call&) { return io::posix_disk().make_folder(path); });
}
int WrappedDisk::remove_file(const Path& path) {
  return pass_on({.what = Call::kRemoveFile, .path = path}, [&](Call&) { return io::posix_disk().remove_file(path); });
}
int WrappedDisk::remove_folder(const Path& path) {
  return pass_on({.what = Call::kRemoveFolder, .path = path},
                 [&](Call&) { return io::posix_disk().remove_folder(path); });
}
int WrappedDisk::flush_folder(const Path& path) {
  return pass_on({.what = Call::kFlushFolder, .path = path},
                 [&](Call&) { return io::posix_disk().flush_folder(path); });
}
int WrappedDisk::free_bytes(const Path& path, uint64_t& bytes) {
  return pass_on({.what = Call::kFree, .path = path}, [&](Call&) { return io::posix_disk().free_bytes(path, bytes); });
}

int FailingDisk::before(const Call& call) {
  if (--left_ != 0) return 0;
  failed_ = true;
  was_question_ = call.what == Call::kFree;
  return error_;
}

}  // namespace limbeck::test
