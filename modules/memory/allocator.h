// The C library's allocator, set for tensor work.
#pragma once

namespace limbeck::memory {

// Keeps freed buffers in the process instead of handing them back to the kernel after every step. Call before the first
// tensor exists. Leaves alone what the user sets in the environment (MALLOC_TRIM_THRESHOLD_ and its like, or another
// allocator in LD_PRELOAD).
void tune_allocator();

// Until the next tune_allocator() every buffer of a megabyte or more is mapped for itself, and handed back when freed:
// while whole models are built and divided among ranks, so that what is freed leaves no holes in the heap.
void map_large_buffers();

// Hands back what is free between buffers that are in use. For loops that keep a little of each round for good: it
// settles among the large buffers that the round has freed, where the next as large find no place any more, so that the
// heap would grow by some of them a round.
void give_back_holes();

}  // namespace limbeck::memory
