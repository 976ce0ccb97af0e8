#include "modules/failure.h"

#include <c10/util/Exception.h>
#include <cxxabi.h>
#include <fmt/format.h>

#include <cstdlib>
#include <filesystem>
#include <memory>
#include <new>
#include <system_error>
#include <typeinfo>

#include "modules/errors.h"

namespace limbeck {
namespace {

constexpr const char* kMemoryAdvice =
    "lower data.batch_size or data.sequence_length, or choose a narrower dtype; 'limbeck check RECIPE' prints the "
    "memory plan";

int code(ExitCode exit_code) { return static_cast<int>(exit_code); }

std::string one_line(const std::string& text) {
  std::string out;
  for (const char c : text) {
    const bool blank = c == '\n' || c == '\r' || c == '\t' || c == ' ';
    if (!blank) {
      out += c;
    } else if (!out.empty() && out.back() != ' ') {
      out += ' ';
    }
  }
  while (!out.empty() && out.back() == ' ') out.pop_back();
  return out;
}

std::string type_of(const std::exception& exception) {
  int status = 0;
  const char* mangled = typeid(exception).name();
  const std::unique_ptr<char, decltype(&std::free)> name(abi::__cxa_demangle(mangled, nullptr, nullptr, &status),
                                                         &std::free);
  return name ? name.get() : mangled;
}

std::string internal(const std::string& what) {
  return fmt::format("{} (a fault in limbeck, not in your recipe: please report it; LIMBECK_TRACE=1 shows where)",
                     one_line(what));
}

Failure describe_torch(const c10::Error& error) {
  const std::string text = error.what_without_backtrace(), trace = error.what();
  const bool memory = dynamic_cast<const c10::OutOfMemoryError*>(&error) ||
                      text.find("DefaultCPUAllocator: can't allocate memory") != std::string::npos;
  if (memory)
    return {code(ExitCode::kNumeric), fmt::format("out of memory: {}; {}", one_line(text), kMemoryAdvice), trace};
  if (dynamic_cast<const c10::DistError*>(&error)) return {code(ExitCode::kDistributed), one_line(text), trace};
  return {kFaultInLimbeck, internal(text), trace};
}

template <class Kind>
struct Told : Kind, ToldElsewhere {
  using Kind::Kind;
};

template <class Kind>
[[noreturn]] void throw_as(const Failure& failure) {
  if (failure.told_elsewhere) throw Told<Kind>(failure.message);
  throw Kind(failure.message);
}

Failure out_of_memory(const std::exception& error) {
  return {code(ExitCode::kNumeric), fmt::format("out of memory; {}", kMemoryAdvice), type_of(error)};
}

}  // namespace

Failure describe_failure(std::exception_ptr exception) {
  try {
    std::rethrow_exception(exception);
  } catch (const Error& error) {
    return {code(error.code()), one_line(error.what()), type_of(error),
            dynamic_cast<const ToldElsewhere*>(&error) != nullptr};
  } catch (const c10::Error& error) {
    return describe_torch(error);
  } catch (const std::bad_alloc& error) {
    return out_of_memory(error);
  } catch (const std::system_error& error) {                          // filesystem_error is one
    if (error.code() == std::errc::resource_unavailable_try_again) {  // of std::thread alone
      return {
          code(ExitCode::kNumeric),
          fmt::format("a thread cannot be started ({}): raise the limits (ulimit -v, ulimit -u), or lower --threads",
                      error.code().message()),
          type_of(error)};
    }
    if (error.code() == std::errc::not_enough_memory) return out_of_memory(error);  // of the kernel, for a path
    return {code(ExitCode::kIo), one_line(error.what()), type_of(error)};
  } catch (const std::exception& error) {
    return {kFaultInLimbeck, internal(error.what()), type_of(error)};
  } catch (...) {
    return {kFaultInLimbeck, internal("an exception of unknown type"), ""};
  }
}

void throw_failure(const Failure& failure) {
  switch (static_cast<ExitCode>(failure.exit_code)) {
    case ExitCode::kUsage:
      throw_as<UsageError>(failure);
    case ExitCode::kInputData:
      throw_as<InputDataError>(failure);
    case ExitCode::kWeights:
      throw_as<WeightsError>(failure);
    case ExitCode::kNumeric:
      throw_as<NumericError>(failure);
    case ExitCode::kIo:
      throw_as<IoError>(failure);
    case ExitCode::kDistributed:
      throw_as<DistributedError>(failure);
    case ExitCode::kStopped:
      throw_as<StoppedError>(failure);
    default: {  // a fault of ours, on another rank: no exception of a kind that anybody handles
      const auto code = static_cast<ExitCode>(failure.exit_code);
      if (failure.told_elsewhere) throw Told<Error>(code, failure.message);
      throw Error(code, failure.message);
    }
  }
}

}  // namespace limbeck
