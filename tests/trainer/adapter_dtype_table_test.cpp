// The dtype policy of adapters, one table: what an adapter's parameters are stored in, what it computes in, what it
// gives back and what its optimizer keeps beside it, by the base that it works on. Each row is looked at wherever an
// adapter comes to be or goes: created, exported, loaded, as a second one, resumed, merged. The rows are printed.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>

#include "modules/adapters/folder/peft_folder.h"
#include "modules/adapters/hosts/use_adapter.h"
#include "modules/adapters/merge/merge.h"
#include "modules/adapters/merge/merge_quantized.h"
#include "modules/adapters/new_adapter.h"
#include "modules/adapters/npt/create_npt.h"
#include "modules/errors.h"
#include "modules/io/safetensors.h"
#include "modules/precision/recorder.h"
#include "tests/support/recipe_settings.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/tiny_models.h"
#include "trainer/optim/optimizer.h"

namespace limbeck::test {
namespace {

using adapters::AdapterConfig;
using models::BuiltModel;
using optim::Optimizer;
using precision::ContractModule;

struct Row {
  std::string parameters, computes, result, master;
  bool operator==(const Row&) const = default;
};

void PrintTo(const Row& row, std::ostream* out) {
  *out << row.parameters << " computes " << row.computes << " gives " << row.result << " master " << row.master;
}

struct Base {
  std::string format;  // "" when it is not quantized
  at::ScalarType dtype;
  Row wanted;
};

const Base kBases[] = {
    {"", at::kFloat, {"float32", "float32", "float32", "-"}},
    {"", at::kBFloat16, {"bfloat16", "bfloat16", "bfloat16", "float32"}},
    {"", at::kHalf, {"float16", "float16", "float16", "float32"}},
    {"int8", at::kBFloat16, {"float32", "float32", "bfloat16", "-"}},
    {"int4", at::kBFloat16, {"float32", "float32", "bfloat16", "-"}},
    {"nf4", at::kBFloat16, {"float32", "float32", "bfloat16", "-"}},
    {"nf4-double", at::kBFloat16, {"float32", "float32", "bfloat16", "-"}},
    {"nf4", at::kFloat, {"float32", "float32", "float32", "-"}},
};

std::string base_name(const Base& base) {
  return (base.format.empty() ? "" : base.format + " beside ") + precision::dtype_name(base.dtype);
}

class AdapterDtypes : public ::testing::TestWithParam<std::tuple<Base, std::string>> {
 protected:
  const Base& row() const { return std::get<0>(GetParam()); }
  const std::string& kind() const { return std::get<1>(GetParam()); }

  BuiltModel base(bool packed = true) const {
    models::ModelRequest request;
    request.folder = model_;
    request.root = "student";
    request.dtype = row().dtype;
    request.random_init = true;
    request.for_training = true;
    request.seed = 5;
    if (packed && !row().format.empty())
      request.packing = precision::pack_all(kernels::format_named(row().format), "test");
    return models::load_model(request);
  }

  AdapterConfig create(BuiltModel& built, const std::string& name) const {
    if (kind() == "npt") {
      const adapters::NptOptions options{.rank = 4, .seed = 3};
      adapters::create_npt(built, options, name);
      return options;
    }
    adapters::NewAdapter wanted;
    wanted.config.kind = kind() == "ia3" ? adapters::PeftKind::kIa3 : adapters::PeftKind::kLora;
    wanted.config.dora = kind() == "dora";
    wanted.config.rank = 4;
    wanted.config.alpha = 8;
    wanted.config.dropout = 0.2;
    wanted.name = name;
    adapters::create_adapter(built, wanted);
    return wanted.config;
  }

  // What the adapter that works now is made of and does, by a real forward and backward under the recorder.
  Row seen(const BuiltModel& built, const std::string& name) const {
    std::set<std::string> parameters, computes;
    std::vector<optim::Parameter> trained;
    for (const auto& module : built.model->modules()) {
      const auto* adapter = dynamic_cast<const ContractModule*>(module.get());
      if (adapter == nullptr || adapter->role() != precision::Role::kAdapter) continue;
      if (!adapter->path().ends_with("." + name)) continue;
      EXPECT_TRUE(adapter->violations().empty()) << adapter->path();
      computes.insert(precision::dtype_name(adapter->precision().compute));
      for (const auto& entry : adapter->named_parameters(/*recurse=*/false)) {
        parameters.insert(precision::dtype_name(entry.value().scalar_type()));
        trained.push_back({adapter->path() + "." + entry.key(), entry.value(), "student", true});
      }
    }
    EXPECT_FALSE(trained.empty());
    const at::Tensor result = forward_and_backward(built, trained);
    return {joined(parameters), joined(computes), precision::dtype_name(result.scalar_type()), master_of(trained)};
  }

  at::Tensor forward_and_backward(const BuiltModel& built, const std::vector<optim::Parameter>& trained) const {
    precision::OperatorRecorder recorder;
    models::ModelInput input;
    input.ids = at::arange(12, at::kLong).reshape({2, 6});
    input.draws = models::draws_of(1, 0, input.ids.sizes(), c10::kCPU);
    const at::Tensor last = built.model->encode(input).last;
    last.backward(at::ones_like(last) * 0.01);
    EXPECT_TRUE(recorder.violations().empty()) << recorder.violations().front();
    for (const optim::Parameter& parameter : trained) {
      EXPECT_EQ(parameter.tensor.grad().scalar_type(), parameter.tensor.scalar_type()) << parameter.name;
      parameter.tensor.mutable_grad() = at::Tensor();
    }
    return last;
  }

  // Through the optimizer's own resume: what one kept fills another, made for the same parameters.
  std::string master_of(const std::vector<optim::Parameter>& trained) const {
    const auto settings = recipe_settings({{"student.model", model_.string()}});
    const optim::OptimizerOptions options = optim::read_optimizer_options(settings, 10);
    const Optimizer before(options, trained), after(options, trained);
    std::set<std::string> masters;
    const auto kept = before.state_tensors(), filled = after.state_tensors();
    for (size_t i = 0; i < kept.size(); ++i) {
      filled.at(i).part.copy_(kept[i].part);
      EXPECT_EQ(filled[i].part.scalar_type(), kept[i].part.scalar_type());
      if (filled[i].name.starts_with("master.")) masters.insert(precision::dtype_name(filled[i].part.scalar_type()));
    }
    return masters.empty() ? "-" : joined(masters);
  }

  // What is left when the adapter is part of the weights: they have the base's dtype, and no adapter works.
  void expect_merged(const char* where, const BuiltModel& built) const {
    std::set<std::string> dtypes;
    for (const auto& module : built.model->modules()) {
      const auto* linear = dynamic_cast<const models::Linear*>(module.get());
      if (linear == nullptr) continue;
      dtypes.insert(precision::dtype_name(linear->weight().scalar_type()));
      EXPECT_TRUE(linear->violations().empty()) << linear->path();
      EXPECT_EQ(linear->adapter(), nullptr) << linear->path();
    }
    print(where, {joined(dtypes), "", "", ""});
    EXPECT_EQ(joined(dtypes), precision::dtype_name(row().dtype)) << where;
  }

  static std::string joined(const std::set<std::string>& names) {
    std::string out;
    for (const std::string& name : names) out += (out.empty() ? "" : "+") + name;
    return out;
  }

  void print(const char* where, const Row& seen) const {
    std::printf("%-26s %-5s %-20s %-9s %-9s %-9s %s\n", base_name(row()).c_str(), kind().c_str(), where,
                seen.parameters.c_str(), seen.computes.c_str(), seen.result.c_str(), seen.master.c_str());
  }
  void expect_row(const char* where, const Row& seen) const {
    print(where, seen);
    EXPECT_EQ(seen, row().wanted) << where;
  }

  const std::filesystem::path model_ = tiny_model("llama");
  const TemporaryFolder folder_;
};

TEST_P(AdapterDtypes, AreThoseOfTheTableWhereverAnAdapterComesToBe) {
  std::printf("%-26s %-5s %-20s %-9s %-9s %-9s %s\n", "base", "kind", "at", "weights", "computes", "result", "master");
  BuiltModel built = base();
  const AdapterConfig config = create(built, "first");
  expect_row("create", seen(built, "first"));

  const auto folder = folder_ / "adapter";
  std::filesystem::create_directories(folder);
  adapters::save_adapter(built, config, "first", folder);
  std::set<std::string> stored;
  const io::SafetensorsFile file(folder / "adapter_model.safetensors");
  for (const auto& entry : file.entries()) stored.insert(precision::dtype_name(entry.dtype));
  print("export", {joined(stored), "", "", ""});
  EXPECT_EQ(joined(stored), row().wanted.parameters) << "export";

  BuiltModel fresh = base();
  EXPECT_EQ(adapters::load_adapter(fresh, {.folder = folder, .name = "first", .trainable = true}).cast_tensors, 0);
  expect_row("load, resume", seen(fresh, "first"));
  EXPECT_EQ(adapters::load_adapter(fresh, {.folder = folder, .name = "loaded", .trainable = true}).cast_tensors, 0);
  expect_row("second", seen(fresh, "loaded"));
  create(fresh, "created");
  adapters::use_adapter(fresh, "created");
  expect_row("third", seen(fresh, "created"));
  adapters::use_adapter(fresh, "first");
  expect_row("again", seen(fresh, "first"));
}

TEST_P(AdapterDtypes, StayThoseOfTheBaseWhenItIsMerged) {
  BuiltModel built = base();
  create(built, "first");
  if (kind() == "npt") {
    EXPECT_THROW(adapters::merge_adapter(built), UsageError);
    return;
  }
  if (row().format.empty()) {
    EXPECT_GT(adapters::merge_adapter(built).report().modules, 0);
    expect_merged("merge", built);
    return;
  }
  EXPECT_THROW(adapters::merge_adapter(built), UsageError) << "without a choice";
  for (const adapters::MergeInto into : adapters::kMergeWays) {
    BuiltModel plain = base(/*packed=*/false);
    EXPECT_GT(adapters::merge_quantized_adapter(built, plain, into).modules, 0);
    expect_merged(("merge, " + std::string(adapters::merge_into_name(into))).c_str(), plain);
  }
}

TEST_P(AdapterDtypes, AnyOtherIsAViolationThatNamesTheModule) {
  BuiltModel built = base();
  create(built, "first");
  int64_t tried = 0;
  for (const auto& module : built.model->modules()) {
    auto* adapter = dynamic_cast<ContractModule*>(module.get());
    if (adapter == nullptr || adapter->role() != precision::Role::kAdapter) continue;
    for (const auto& entry : adapter->named_parameters(/*recurse=*/false)) {
      const at::Tensor own = entry.value();
      const auto other = own.scalar_type() == at::kFloat ? at::kHalf : at::kFloat;
      adapter->replace_parameter(entry.key(), own.detach().to(other));
      const auto found = adapter->violations();
      ASSERT_EQ(found.size(), 1u) << adapter->path();
      EXPECT_NE(found[0].find(adapter->path()), std::string::npos) << found[0];
      EXPECT_NE(found[0].find(precision::dtype_name(other)), std::string::npos) << found[0];
      adapter->replace_parameter(entry.key(), own);
      ++tried;
    }
  }
  EXPECT_GT(tried, 0);
}

INSTANTIATE_TEST_SUITE_P(Rows, AdapterDtypes,
                         ::testing::Combine(::testing::ValuesIn(kBases),
                                            ::testing::Values("lora", "dora", "ia3", "npt")),
                         [](const auto& test) {
                           std::string name = base_name(std::get<0>(test.param)) + "_" + std::get<1>(test.param);
                           for (char& c : name) c = c == ' ' || c == '-' ? '_' : c;
                           return name;
                         });

}  // namespace
}  // namespace limbeck::test
