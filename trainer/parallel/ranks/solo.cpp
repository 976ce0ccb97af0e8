#include <stdexcept>
#include <utility>

#include "trainer/parallel/communicator.h"

namespace limbeck::parallel {
namespace {

class Done : public Pending {
 public:
  void wait() override {}
};

class Solo : public Communicator {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  void all_reduce(std::vector<int64_t>&, Reduce) override {}
  std::vector<std::string> all_gather(const std::string& mine) override { return {mine}; }
  std::shared_ptr<Pending> all_gather(const at::Tensor& whole, const at::Tensor& shard, const std::string&) override {
    return copied(whole, shard);
  }
  std::shared_ptr<Pending> reduce_scatter(const at::Tensor& shard, const at::Tensor& whole, Order,
                                          const std::string&) override {
    return copied(shard, whole);
  }
  std::shared_ptr<Pending> all_reduce(const at::Tensor&, Order, const std::string&) override { return done_; }
  std::unique_ptr<Communicator> line(const std::string&) override { return std::make_unique<Solo>(); }

 private:
  std::shared_ptr<Pending> copied(const at::Tensor& to, const at::Tensor& from) {
    if (to.data_ptr() != from.data_ptr()) to.copy_(from);
    return done_;
  }
  std::shared_ptr<Pending> done_ = std::make_shared<Done>();
};

class Planned : public Communicator {
 public:
  explicit Planned(int size) : size_(size) {}
  int rank() const override { return 0; }
  int size() const override { return size_; }
  void all_reduce(std::vector<int64_t>&, Reduce) override {}
  std::vector<std::string> all_gather(const std::string& mine) override {
    return std::vector<std::string>(static_cast<size_t>(size_), mine);
  }
  std::shared_ptr<Pending> all_gather(const at::Tensor& whole, const at::Tensor& shard, const std::string&) override {
    return held({whole, shard}, shard.numel() * size_);
  }
  std::shared_ptr<Pending> reduce_scatter(const at::Tensor& shard, const at::Tensor& whole, Order,
                                          const std::string&) override {
    return held({whole, shard}, shard.numel() * size_);
  }
  std::shared_ptr<Pending> all_reduce(const at::Tensor& whole, Order, const std::string&) override {
    return held({whole}, whole.numel());
  }
  std::unique_ptr<Communicator> line(const std::string&) override { return std::make_unique<Planned>(size_); }

 private:
  // A real operation keeps its tensors until it is done, at the latest when it is waited for.
  class Held : public Pending {
   public:
    explicit Held(std::vector<at::Tensor> tensors) : tensors_(std::move(tensors)) {}
    void wait() override { tensors_.clear(); }

   private:
    std::vector<at::Tensor> tensors_;
  };

  static std::shared_ptr<Pending> held(std::vector<at::Tensor> tensors, int64_t elements) {
    if (!tensors.front().is_meta() || tensors.front().numel() != elements) {
      throw std::logic_error("planned ranks share tensors on meta alone, cut into equal parts");
    }
    return std::make_shared<Held>(std::move(tensors));
  }

  int size_;
};

}  // namespace

std::unique_ptr<Communicator> make_planned(int size) { return std::make_unique<Planned>(size); }

std::unique_ptr<Communicator> make_solo() { return std::make_unique<Solo>(); }

}  // namespace limbeck::parallel
