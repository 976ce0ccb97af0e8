// In the place of libtorch_cuda's header: of what its allocator tells, the segments of a graph's memory.
#pragma once
#include <c10/core/CachingDeviceAllocator.h>

#include <vector>

#include "fake_cuda/graph.h"

namespace c10::cuda::CUDACachingAllocator {

struct SnapshotInfo {
  std::vector<c10::CachingDeviceAllocator::SegmentInfo> segments;
};

inline SnapshotInfo snapshot(c10::MempoolId_t pool, bool /*include_traces*/) {
  c10::CachingDeviceAllocator::SegmentInfo segment;
  segment.owner_private_pool_id = pool;
  segment.total_size = static_cast<size_t>(limbeck::fake_cuda::GraphMemory::of(pool.first)->most_bytes());
  return {{segment}};
}

}  // namespace c10::cuda::CUDACachingAllocator
