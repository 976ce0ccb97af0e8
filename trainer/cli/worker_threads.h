// The threads that operators compute with, started before the work: later the OpenMP runtime would end the process
// without a word of ours when the system refuses one.
#pragma once

namespace limbeck::cli {

// at::set_num_threads(), whose pool waits for ever for a thread that the system has refused. NumericError instead.
void set_worker_threads(int count);

// As many as at::get_num_threads() says, for the calling thread. NumericError when the system has no room for them.
void start_worker_threads();

}  // namespace limbeck::cli
