// What memory gives to a read that does nothing else: a search for a byte, on all threads, that does not find it.
#pragma once
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <cstdlib>
#include <cstring>

namespace limbeck::bench {

// `block` has no byte that is 1; one that no cache holds has 256 MiB.
inline void search_in_vain(const at::Tensor& block) {
  const auto* bytes = static_cast<const char*>(block.const_data_ptr());
  const auto length = static_cast<int64_t>(block.nbytes());
  at::parallel_for(0, length, length / at::get_num_threads(), [&](int64_t begin, int64_t end) {
    if (std::memchr(bytes + begin, 1, static_cast<size_t>(end - begin)) != nullptr) std::abort();
  });
}

}  // namespace limbeck::bench
