// own_quantize MODEL OUTPUT: prints what the folder weighs.
#include <cstdio>

#include "quantize_folder.h"

int main(int count, char** words) {
  if (count != 3) return 2;
  const int64_t bytes = quantize_folder(words[1], words[2]);
  if (bytes < 0) return 1;
  std::printf("%lld\n", static_cast<long long>(bytes));
  return 0;
}
