#include "trainer/build/attention_library.h"

#include <c10/util/Exception.h>
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "kernels/attention/flash_attention_3.h"
#include "kernels/operator/cuda_library.h"
#include "modules/errors.h"
#include "trainer/recipe/message.h"

namespace limbeck::build {
namespace {

constexpr int kHopper = 90;

std::vector<c10::Device> gpus_of(const recipe::Settings& settings) {
  std::vector<c10::Device> gpus;
  for (const recipe::Option& option : settings.table().options()) {
    if (option.kind != recipe::OptionKind::kDevice) continue;
    const std::optional<c10::Device> device = settings.device(option.name);
    if (device && device->is_cuda()) gpus.push_back(*device);
  }
  return gpus;
}

// A machine without a GPU may plan for another one: what cannot be used is refused where models are loaded.
void require_hopper(const std::vector<c10::Device>& gpus, const std::string& place) {
  if (gpus.empty()) {
    throw UsageError(
        fmt::format("{}: nothing is on a GPU, wanted one of compute capability 9.0 (H100, H200): set device = cuda, or "
                    "leave {} out",
                    place, kFlashAttention3));
  }
  for (const c10::Device& gpu : gpus) {
    const int number = std::max<int>(gpu.index(), 0), capability = kernels::cuda_compute_capability(number);
    if (capability == 0 || capability == kHopper) continue;
    throw UsageError(fmt::format(
        "{}: cuda:{} has compute capability {}.{}, wanted 9.0 (H100, H200): leave {} out, or use such a GPU", place,
        number, capability / 10, capability % 10, kFlashAttention3));
  }
}

// As it says it, without the name of the operator.
std::string words_of(const c10::Error& error) {
  const std::string text = error.what_without_backtrace(), line = text.substr(0, text.find('\n'));
  constexpr std::string_view kPlace = "[attention] ";
  return line.starts_with(kPlace) ? line.substr(kPlace.size()) : line;
}

std::atomic<bool> without = false;  // models of this process compute by what Limbeck has

[[noreturn]] void refuse_both(const std::string& place) {
  throw UsageError(
      fmt::format("{}: models of this process compute attention with FlashAttention 3 and others without it: set {} "
                  "alike, or use two processes",
                  place, kFlashAttention3));
}

}  // namespace

void choose_attention(const recipe::Settings& settings) {
  if (settings.table().find(kFlashAttention3) == nullptr) return;
  const std::string place = fmt::format("{} {}", kFlashAttention3, settings.where(kFlashAttention3));
  const std::vector<c10::Device> gpus = gpus_of(settings);
  if (settings.text(kFlashAttention3).empty()) {
    if (!gpus.empty() && kernels::uses_flash_attention_3()) refuse_both(place);
    if (!gpus.empty()) without = true;
    return;
  }
  require_hopper(gpus, place);
  if (without) refuse_both(place);
  try {
    kernels::use_flash_attention_3(settings.path(kFlashAttention3).string());
  } catch (const c10::Error& error) {
    throw UsageError(fmt::format("{}: {}", place, words_of(error)));
  }
}

}  // namespace limbeck::build
