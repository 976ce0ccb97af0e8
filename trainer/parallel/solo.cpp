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

}  // namespace

std::unique_ptr<Communicator> make_solo() { return std::make_unique<Solo>(); }

}  // namespace limbeck::parallel
