#include "kernels/attention/flash_attention_3_library.h"

#include <ATen/Context.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <dlfcn.h>
#include <torch/csrc/jit/frontend/function_schema_parser.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <mutex>
#include <stdexcept>
#include <string_view>

#include "kernels/attention/flash_attention_3.h"
#include "kernels/operator/operator_handle.h"

namespace limbeck::kernels {
namespace {

using at::Tensor;
using MaybeTensor = OptionalTensor;
using MaybeNumber = std::optional<int64_t>;

constexpr const char* kForwardOf3 =
    "flash_attn_3::fwd(Tensor q, Tensor k, Tensor v, Tensor(k_new!)? k_new=None, Tensor(v_new!)? v_new=None, "
    "Tensor? q_v=None, Tensor(out!)? out=None, Tensor? cu_seqlens_q=None, Tensor? cu_seqlens_k=None, "
    "Tensor? cu_seqlens_k_new=None, Tensor? seqused_q=None, Tensor? seqused_k=None, int? max_seqlen_q=None, "
    "int? max_seqlen_k=None, Tensor? page_table=None, Tensor? kv_batch_idx=None, Tensor? leftpad_k=None, "
    "Tensor? rotary_cos=None, Tensor? rotary_sin=None, Tensor? seqlens_rotary=None, Tensor? q_descale=None, "
    "Tensor? k_descale=None, Tensor? v_descale=None, float? softmax_scale=None, bool is_causal=False, "
    "int window_size_left=-1, int window_size_right=-1, int attention_chunk=0, float softcap=0., "
    "bool is_rotary_interleaved=False, Tensor? scheduler_metadata=None, int num_splits=0, bool? pack_gqa=None, "
    "int sm_margin=0) -> (Tensor(out!), Tensor, Tensor, Tensor)";
constexpr const char* kBackwardOf3 =
    "flash_attn_3::bwd(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor softmax_lse, "
    "Tensor(dq!)? dq=None, Tensor(dk!)? dk=None, Tensor(dv!)? dv=None, Tensor? cu_seqlens_q=None, "
    "Tensor? cu_seqlens_k=None, Tensor? seqused_q=None, Tensor? seqused_k=None, int? max_seqlen_q=None, "
    "int? max_seqlen_k=None, float? softmax_scale=None, bool is_causal=False, int window_size_left=-1, "
    "int window_size_right=-1, float softcap=0., bool deterministic=False, int sm_margin=0) "
    "-> (Tensor(dq!), Tensor(dk!), Tensor(dv!), Tensor, Tensor, Tensor, Tensor, Tensor)";

using ForwardOf3 = std::tuple<Tensor, Tensor, Tensor, Tensor>(
    const Tensor& q, const Tensor& k, const Tensor& v, const MaybeTensor& k_new, const MaybeTensor& v_new,
    const MaybeTensor& q_v, const MaybeTensor& out, const MaybeTensor& ends_q, const MaybeTensor& ends_k,
    const MaybeTensor& ends_k_new, const MaybeTensor& used_q, const MaybeTensor& used_k, MaybeNumber longest_q,
    MaybeNumber longest_k, const MaybeTensor& page_table, const MaybeTensor& kv_batch, const MaybeTensor& leftpad,
    const MaybeTensor& rotary_cos, const MaybeTensor& rotary_sin, const MaybeTensor& rotary_lengths,
    const MaybeTensor& q_descale, const MaybeTensor& k_descale, const MaybeTensor& v_descale,
    std::optional<double> scale, bool causal, int64_t left, int64_t right, int64_t chunk, double softcap,
    bool rotary_interleaved, const MaybeTensor& scheduler, int64_t splits, std::optional<bool> pack_gqa,
    int64_t margin);
using BackwardOf3 = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>(
    const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out, const Tensor& lse,
    const MaybeTensor& dq, const MaybeTensor& dk, const MaybeTensor& dv, const MaybeTensor& ends_q,
    const MaybeTensor& ends_k, const MaybeTensor& used_q, const MaybeTensor& used_k, MaybeNumber longest_q,
    MaybeNumber longest_k, std::optional<double> scale, bool causal, int64_t left, int64_t right, double softcap,
    bool deterministic, int64_t margin);

enum class Softcaps { kUnknown, kComputed, kRefused };

struct LoadedLibrary {
  std::mutex mutex;
  std::string loaded;  // absolute
  std::atomic<bool> in_use = false;
  std::atomic<Softcaps> softcaps = Softcaps::kUnknown;
};

LoadedLibrary& loaded_library() {
  static LoadedLibrary one;
  return one;
}

std::optional<c10::OperatorHandle> registered_as(const c10::FunctionSchema& schema) {
  return c10::Dispatcher::singleton().findSchema(schema.operator_name());
}

// Names and types of all arguments and the types of all results: what a call by position relies on. Defaults are none
// of it, because every argument is given.
bool called_alike(const c10::FunctionSchema& one, const c10::FunctionSchema& other) {
  const auto same = [](const c10::Argument& a, const c10::Argument& b) { return *a.type() == *b.type(); };
  const auto same_named = [&](const c10::Argument& a, const c10::Argument& b) {
    return a.name() == b.name() && same(a, b);
  };
  const auto &a = one.arguments(), &b = other.arguments();
  const auto &c = one.returns(), &d = other.returns();
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), same_named) &&
         std::equal(c.begin(), c.end(), d.begin(), d.end(), same);
}

void check_operator(const char* text, const std::string& path) {
  const c10::FunctionSchema wanted = torch::jit::parseSchema(text);
  const auto found = registered_as(wanted);
  TORCH_CHECK(found, "[attention] ", path, " registers no operator ", wanted.name(),
              ": name a library of FlashAttention 3 (flash_attn_3/_C.so of Dao-AILab's or xformers' wheels)");
  TORCH_CHECK(called_alike(found->schema(), wanted), "[attention] ", path, " registers ", found->schema(), ", wanted ",
              wanted, ": name a library of another version of FlashAttention 3");
  TORCH_CHECK(found->hasKernelForDispatchKey(c10::DispatchKey::CUDA), "[attention] ", path, " has no kernel of ",
              wanted.name(), " for CUDA: name a library that was built with CUDA");
}

// Beside our libtorch_cpu.so. We are not linked to it, the library is.
bool open_whole_torch() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(&at::globalContext), &info) == 0 || info.dli_fname == nullptr) return false;
  const auto whole = std::filesystem::path(info.dli_fname).parent_path() / "libtorch.so";
  return dlopen(whole.c_str(), RTLD_LAZY | RTLD_GLOBAL) != nullptr;
}

// Why it cannot be loaded, or nothing. Lazily: of a library that Python imports, the names of Python's own functions
// stay unbound.
std::string open_library(const std::string& path) {
  const auto fault = [&]() -> std::string {
    if (dlopen(path.c_str(), RTLD_LAZY | RTLD_LOCAL) != nullptr) return "";
    const char* reason = dlerror();
    return reason == nullptr ? "unknown reason" : reason;
  };
  const std::string said = fault();
  return said.starts_with("libtorch.so:") && open_whole_torch() ? fault() : said;
}

void load_flash_attention_3(const std::string& path) {
  std::string& loaded = loaded_library().loaded;
  if (loaded == path) return;
  TORCH_CHECK(loaded.empty(), "[attention] FlashAttention 3 of ", loaded,
              " is in this process, and cannot leave it for ", path, ": use one library in a process");
  const bool there = registered_as(torch::jit::parseSchema(kForwardOf3)).has_value();
  TORCH_CHECK(!there, "[attention] FlashAttention 3 is in this process already, and not from ", path,
              ": name it before something else brings it");
  TORCH_CHECK(std::filesystem::is_regular_file(path), "[attention] ", path, ": no such file, wanted a library of ",
              "FlashAttention 3 (flash_attn_3/_C.so of Dao-AILab's or xformers' wheels)");
  const std::string fault = open_library(path);
  TORCH_CHECK(fault.empty(), "[attention] cannot load ", path, ": ", fault,
              ": wanted a library of FlashAttention 3, and the folder of what it needs in LD_LIBRARY_PATH "
              "(libcudart.so.12 is of nvidia-cuda-runtime-cu12)");
  check_operator(kForwardOf3, path);
  check_operator(kBackwardOf3, path);
  loaded = path;
}

// It throws what is no error of LibTorch's; what its build lacks is among that.
template <class Call>
auto in_words(const Call& call) {
  try {
    return call();
  } catch (const std::runtime_error& error) {
    const std::string said = error.what();
    TORCH_CHECK(false, "[attention] FlashAttention 3 of ", loaded_library().loaded, ": ",
                said.substr(0, said.find('\n')),
                ": leave flash_attention_3 out, or name a library that was built with it");
  }
}

std::tuple<Tensor, Tensor> call_forward_of_3(const FlashAttention3Call& c) {
  static const auto op = typed_operator<ForwardOf3>("flash_attn_3::fwd");
  constexpr int64_t kWhole = 1;  // keys are not split: how often would be decided by the number of processors
  auto [out, lse, split_out, split_lse] =
      op.call(c.q, c.k, c.v, {}, {}, {}, {}, c.ends, c.ends, {}, {}, {}, c.longest_q, c.longest_k, {}, {}, {}, {}, {},
              {}, {}, {}, {}, c.scale, c.causal, c.left, c.right, /*chunk=*/0, c.softcap, false, {}, kWhole, {}, 0);
  return {out, lse};
}

// Some are built without, which only a call tells: xformers' is.
Softcaps asked_for_softcaps(c10::Device gpu) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  const Tensor one = at::empty({1, 1, 1, 64}, at::TensorOptions(gpu).dtype(at::kHalf));
  try {
    call_forward_of_3({.q = one,
                       .k = one,
                       .v = one,
                       .ends = {},
                       .longest_q = 1,
                       .longest_k = 1,
                       .scale = 1.0,
                       .causal = false,
                       .left = -1,
                       .right = -1,
                       .softcap = 1.0});
  } catch (const std::exception& error) {  // of LibTorch or not, as the library was built
    if (std::string_view(error.what()).find("softcap") == std::string_view::npos) throw;
    return Softcaps::kRefused;
  }
  return Softcaps::kComputed;
}

}  // namespace

void use_flash_attention_3(const std::string& path) {
  const std::lock_guard lock(loaded_library().mutex);
  if (!path.empty()) load_flash_attention_3(std::filesystem::absolute(path).string());
  loaded_library().softcaps = Softcaps::kUnknown;
  loaded_library().in_use = !path.empty();
}

bool uses_flash_attention_3() { return loaded_library().in_use.load(std::memory_order_relaxed); }

bool flash_attention_3_computes_softcaps(c10::Device device) {
  std::atomic<Softcaps>& known = loaded_library().softcaps;
  if (known.load() == Softcaps::kUnknown && device.is_cuda()) known = asked_for_softcaps(device);
  return known.load() == Softcaps::kComputed;
}

std::tuple<Tensor, Tensor> call_flash_attention_3_forward(const FlashAttention3Call& c) {
  return in_words([&] { return call_forward_of_3(c); });
}

void call_flash_attention_3_backward(const FlashAttention3Call& c, const FlashAttention3Gradients& g) {
  static const auto op = typed_operator<BackwardOf3>("flash_attn_3::bwd");
  in_words([&] {
    op.call(g.dout, c.q, c.k, c.v, g.out, g.lse, g.dq, g.dk, g.dv, c.ends, c.ends, {}, {}, c.longest_q, c.longest_k,
            c.scale, c.causal, c.left, c.right, c.softcap, /*deterministic=*/true, 0);
  });
}

// For who compares: torch.ops.limbeck.use_flash_attention_3("LIB.so"), and "" for FlashAttention 2 again.
TORCH_LIBRARY_FRAGMENT(limbeck, m) {
  m.def("use_flash_attention_3(str library) -> ()", [](std::string path) { use_flash_attention_3(path); });
}

}  // namespace limbeck::kernels
