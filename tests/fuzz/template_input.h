// One untrusted chat template through lexer, parser and evaluator, with the oracle: it ends soon, in a text within the
// limits or in a refusal that can be shown, and says the same when it is rendered again. A violation aborts.
// Shared by the libFuzzer target and by the corpus replay among the ordinary tests.
#pragma once
#include <cstddef>
#include <cstdint>

namespace limbeck::fuzz {

bool judge_template(const uint8_t* data, size_t size);  // whether it was rendered

}  // namespace limbeck::fuzz
