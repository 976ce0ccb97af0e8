// How many steps of its scale the largest magnitude of a row of x has, where the row becomes 8-bit codes. No torch.
#pragma once

namespace limbeck::kernels {

// In products by int8-dynamic and int4-dynamic, as compressed-tensors and torchao have it: codes from -128 to 127.
inline constexpr float kStepsOfDynamic = 127.5F;
// Where the codes are all that is wanted of it (row_codes.h): from -127 to 127. The largest value is a code itself,
// where 127.5 steps leave it to the last bit of a negative one whether it is -127 or -128.
inline constexpr float kStepsOfSymmetric = 127.0F;

}  // namespace limbeck::kernels
