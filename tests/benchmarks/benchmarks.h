// The benchmarks of limbeck_bench, each a function in the place of a main(). They time what the libraries do; one
// program of them all is built in the time of one.
#pragma once

namespace limbeck::bench {

namespace adamw_bench {
int main_of(int argc, char** argv);
}
namespace checkpoint_bench {
int main_of(int argc, char** argv);
}
namespace head_loss_bench {
int main_of(int argc, char** argv);
}
namespace kernels_bench {
int main_of(int argc, char** argv);
}
namespace linear_bench {
int main_of(int argc, char** argv);
}
namespace load_bench {
int main_of(int argc, char** argv);
}
namespace quantized_bench {
int main_of(int argc, char** argv);
}
namespace resolvent_bench {
int main_of(int argc, char** argv);
}

}  // namespace limbeck::bench
