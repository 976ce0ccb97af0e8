#include "trainer/parallel/ranks/patient_store.h"

#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <vector>

#include "modules/errors.h"

namespace limbeck::parallel {
namespace {

constexpr auto kStorePatience = std::chrono::seconds(2);

struct Question {
  std::function<std::string(c10d::Store&)> ask;
  std::string answer;
  std::exception_ptr failure;
  bool done = false;
};

}  // namespace

struct PatientStore::Desk {
  explicit Desk(c10::intrusive_ptr<c10d::Store> s) : store(std::move(s)) {}

  void work() {
    std::unique_lock lock(mutex);
    while (true) {
      changed.wait(lock, [this] { return stopped || !questions.empty(); });
      if (stopped) return;
      const auto question = questions.front();
      lock.unlock();
      try {
        question->answer = question->ask(*store);
      } catch (...) {
        question->failure = std::current_exception();
      }
      lock.lock();
      questions.pop_front();
      silent = false;
      question->done = true;
      changed.notify_all();
    }
  }

  c10::intrusive_ptr<c10d::Store> store;
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::shared_ptr<Question>> questions;
  bool stopped = false;
  bool silent = false;  // the last question was not answered in time
};

PatientStore::PatientStore(c10::intrusive_ptr<c10d::Store> store)
    : desk_(std::make_shared<Desk>(std::move(store))), thread_([desk = desk_] { desk->work(); }) {}

PatientStore::~PatientStore() {
  bool waits = false;
  {
    const std::lock_guard lock(desk_->mutex);
    desk_->stopped = true;
    waits = !desk_->questions.empty();
  }
  desk_->changed.notify_all();
  if (waits) {
    thread_.detach();
  } else {
    thread_.join();
  }
}

std::string PatientStore::ask(std::function<std::string(c10d::Store&)> question) {
  const auto asked = std::make_shared<Question>();
  asked->ask = std::move(question);
  std::unique_lock lock(desk_->mutex);
  if (desk_->silent) throw IoError("the store does not answer");  // nobody waits for it a second time
  desk_->questions.push_back(asked);
  desk_->changed.notify_all();
  if (!desk_->changed.wait_for(lock, kStorePatience, [&] { return asked->done; })) {
    desk_->silent = true;
    throw IoError("the store does not answer");
  }
  if (asked->failure) std::rethrow_exception(asked->failure);
  return asked->answer;
}

void PatientStore::set(const std::string& key, const std::string& text) {
  ask([key, text](c10d::Store& store) {
    store.set(key, std::vector<uint8_t>(text.begin(), text.end()));
    return std::string();
  });
}

std::string PatientStore::get(const std::string& key) {
  return ask([key](c10d::Store& store) -> std::string {
    if (!store.check({key})) return "";
    const std::vector<uint8_t> bytes = store.get(key);
    return std::string(bytes.begin(), bytes.end());
  });
}

}  // namespace limbeck::parallel
