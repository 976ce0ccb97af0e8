// What a template may take, and how it is refused: everything in this folder counts its steps and the bytes it makes
// here, so that a hostile template ends in a message. Every refusal is an InputDataError: file, line, what, wanted.
#pragma once
#include <cstddef>
#include <string>

namespace limbeck::text::jinja {

struct Limits {
  size_t template_bytes = size_t{1} << 20;
  size_t steps = 20'000'000;               // about two seconds
  size_t made_bytes = size_t{256} << 20;   // texts and lists together, also those that are gone
  size_t output_bytes = size_t{16} << 20;  // of one rendering
  int depth = 600;                         // of expressions, statements and calls within each other
  int nesting = 100;                       // of brackets, blocks and values within values
};

class Work {
 public:
  // `subject`: what is rendered, named behind each message.
  explicit Work(std::string where, const Limits& limits = {}, std::string subject = "")
      : where_(std::move(where)), subject_(std::move(subject)), limits_(limits) {}
  Work(const Work&) = delete;
  Work& operator=(const Work&) = delete;

  const Limits& limits() const { return limits_; }
  int line() const { return line_; }
  void at(int line) { line_ = line; }

  [[noreturn]] void refuse(const std::string& what) const;
  // What Jinja knows and Limbeck does not.
  [[noreturn]] void refuse_unsupported(const std::string& what) const;
  void step(size_t count = 1);
  void make(size_t bytes);  // before the memory is taken

  // One level of recursion, while it lives.
  class Level {
   public:
    explicit Level(Work& work);
    ~Level() { --work_.depth_; }
    Level(const Level&) = delete;
    Level& operator=(const Level&) = delete;

   private:
    Work& work_;
  };

 private:
  std::string where_, subject_;
  Limits limits_;
  size_t steps_ = 0, made_ = 0;
  int line_ = 1, depth_ = 0;
};

}  // namespace limbeck::text::jinja
