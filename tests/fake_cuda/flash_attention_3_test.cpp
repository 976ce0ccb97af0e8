// The stand-in for a library of FlashAttention 3 refuses what would be wrong on a GPU without a word; and a process has
// one attention.
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <gtest/gtest.h>

#include <map>
#include <string>

#include "kernels/attention/flash_attention_3.h"
#include "modules/errors.h"
#include "trainer/build/attention_library.h"
#include "trainer/recipe/settings.h"

namespace limbeck::test {
namespace {

using at::Tensor;
using Arguments = std::map<std::string, c10::IValue>;

// The operator with these arguments, the others as its schema has them; what it refuses, or nothing.
std::string refusal(const std::string& name, const Arguments& given) {
  const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(("flash_attn_3::" + name).c_str(), "");
  torch::jit::Stack stack;
  for (const c10::Argument& argument : op.schema().arguments()) {
    const auto found = given.find(argument.name());
    stack.push_back(found != given.end() ? found->second : argument.default_value().value_or(c10::IValue()));
  }
  try {
    op.callBoxed(stack);
  } catch (const c10::Error& error) {
    const std::string text = error.what_without_backtrace();
    return text.substr(0, text.find('\n'));
  }
  return "";
}

TEST(FlashAttention3StandIn, RefusesWhatWouldBeWrongWithoutAWord) {
  kernels::use_flash_attention_3(LIMBECK_FAKE_FLASH_ATTENTION_3);
  const at::NoGradGuard no_gradient;
  const auto half = at::TensorOptions(at::kCUDA).dtype(at::kBFloat16);
  const Tensor q = at::ones({2, 10, 4, 16}, half), k = at::ones({2, 10, 2, 16}, half);
  const Tensor lse = at::ones({2, 4, 10}, half.dtype(at::kFloat));
  const Arguments forward{{"q", q}, {"k", k}, {"v", k}, {"softmax_scale", 0.25}, {"num_splits", 1}};
  const auto with = [](Arguments arguments, const std::string& name, const c10::IValue& value) {
    arguments[name] = value;
    return arguments;
  };
  EXPECT_EQ(refusal("fwd", forward), "");
  EXPECT_EQ(refusal("fwd", with(forward, "num_splits", 0)),
            "num_splits is 0: the number of processors would decide the order of sums");
  EXPECT_EQ(refusal("fwd", with(forward, "k", k.to(at::kHalf))), "query and key must have the same dtype");
  EXPECT_NE(refusal("fwd", with(forward, "q", q.to(at::kFloat))).find("only support fp16 and bf16"), std::string::npos);
  const Tensor flat = q.flatten(0, 1), flat_k = k.flatten(0, 1), ends = at::tensor({0, 12, 20}, half.dtype(at::kInt));
  Arguments documents{{"q", flat},         {"k", flat_k},          {"v", flat_k},          {"softmax_scale", 0.25},
                      {"num_splits", 1},   {"cu_seqlens_q", ends}, {"cu_seqlens_k", ends}, {"max_seqlen_q", 12},
                      {"max_seqlen_k", 12}};
  EXPECT_EQ(refusal("fwd", documents), "");
  EXPECT_EQ(refusal("fwd", with(documents, "max_seqlen_k", 10)), "max_seqlen is 10, and a sequence has 12");

  const Arguments backward{{"dout", q},
                           {"q", q},
                           {"k", k},
                           {"v", k},
                           {"out", q},
                           {"softmax_lse", lse},
                           {"dq", at::empty_like(q)},
                           {"dk", at::empty_like(k)},
                           {"dv", at::empty_like(k)},
                           {"softmax_scale", 0.25},
                           {"deterministic", true}};
  EXPECT_EQ(refusal("bwd", backward), "");
  EXPECT_EQ(refusal("bwd", with(backward, "deterministic", false)),
            "FlashAttention 3's backward would add up in any order");
  EXPECT_EQ(refusal("bwd", with(backward, "softmax_lse", lse.flatten(0, 1))),
            "softmax_lse is [8, 10] of Float, wanted dense [2, 4, 10]");
  EXPECT_NE(refusal("bwd", with(backward, "softmax_lse", lse.transpose(0, 1).contiguous().transpose(0, 1))), "");
  EXPECT_NE(refusal("bwd", with(backward, "softmax_lse", lse.to(at::kDouble))), "");
  Arguments wide = backward;
  for (const auto& [name, heads] :
       {std::pair{"q", 4}, {"dq", 4}, {"out", 4}, {"dout", 4}, {"k", 2}, {"v", 2}, {"dk", 2}, {"dv", 2}}) {
    wide[name] = at::ones({2, 10, heads, 200}, half);
  }
  EXPECT_EQ(refusal("bwd", wide), "Deterministic backward not supported for hdim 256.");
  kernels::use_flash_attention_3("");
}

recipe::Settings settings_with(const std::string& library) {
  recipe::OptionTable table;
  table.add(
      {.name = "device", .kind = recipe::OptionKind::kDevice, .fallback = "cuda", .help = "As every command has it."});
  table.add({.name = build::kFlashAttention3, .kind = recipe::OptionKind::kPath, .help = "As every command has it."});
  std::vector<recipe::Flag> flags;
  if (!library.empty()) {
    flags.push_back({.name = build::kFlashAttention3, .spelled = build::kFlashAttention3, .value = library});
  }
  return recipe::Settings(table, nullptr, flags);
}

TEST(AttentionLibrary, AProcessHasOneAttention) {
  const auto chosen = [](const std::string& library) -> std::string {
    try {
      build::choose_attention(settings_with(library));
    } catch (const UsageError& error) {
      return error.what();
    }
    return "";
  };
  const std::string both = "compute attention with FlashAttention 3 and others without it: set flash_attention_3 alike";
  EXPECT_EQ(chosen(LIMBECK_FAKE_FLASH_ATTENTION_3), "");
  EXPECT_TRUE(kernels::uses_flash_attention_3());
  EXPECT_EQ(chosen(LIMBECK_FAKE_FLASH_ATTENTION_3), "");
  EXPECT_NE(chosen("").find(both), std::string::npos);
  kernels::use_flash_attention_3("");
  EXPECT_EQ(chosen(""), "");
  EXPECT_NE(chosen(LIMBECK_FAKE_FLASH_ATTENTION_3).find(both), std::string::npos);
}

}  // namespace
}  // namespace limbeck::test
