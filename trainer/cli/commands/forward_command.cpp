// limbeck forward: the logits, hidden states, losses and gradients of any supported Hugging Face folder.
#include <ATen/ATen.h>
#include <fmt/format.h>

#include <chrono>

#include "modules/errors.h"
#include "modules/id_range.h"
#include "modules/io/safetensors.h"
#include "modules/models/network/token_loss.h"
#include "modules/precision/casts.h"
#include "trainer/cli/commands/command.h"
#include "trainer/cli/commands/model_options.h"

namespace limbeck::cli {
namespace {

using models::HeadKind;
using recipe::OptionKind;

struct Inputs {
  models::ModelInput model;
  at::Tensor labels, output_gradient;  // undefined when absent
};

// Shapes, integer types and id ranges: everything that would fail inside an operator is refused here, by name.
void check_ids(const at::Tensor& tensor, const std::string& name, at::IntArrayRef shape, int64_t high) {
  if (high <= 0) throw InputDataError(fmt::format("input {}: this model takes none, leave it out", name));
  if (tensor.sizes() != shape || at::isFloatingType(tensor.scalar_type())) {
    throw InputDataError(fmt::format("input {}: {} [{}], wanted integers [{}]", name,
                                     precision::dtype_name(tensor.scalar_type()), fmt::join(tensor.sizes(), ","),
                                     fmt::join(shape, ",")));
  }
  if (tensor.numel() == 0) throw InputDataError(fmt::format("input {}: no elements, wanted at least one", name));
  const at::Tensor wide = precision::integers(tensor, at::kLong);
  const int64_t low = wide.min().item<int64_t>(), top = wide.max().item<int64_t>();
  if (low >= 0 && top < high) return;
  throw InputDataError(fmt::format("input {}: values from {} to {}, wanted {}", name, low, top, ids_below(high)));
}

Inputs read_inputs(const std::filesystem::path& path, const models::Architecture& a) {
  Inputs inputs;
  std::vector<std::string> names;
  auto take = [&](const std::string& name, at::Tensor tensor) {
    auto as_long = [&] { return integer_input(path, name, tensor); };
    if (name == "input_ids")
      inputs.model.ids = tensor.scalar_type() == at::kLong ? tensor : as_long();
    else if (name == "attention_mask")
      inputs.model.attention_mask = tensor;
    else if (name == "document_ids")
      inputs.model.document_ids = tensor;
    else if (name == "position_ids")
      inputs.model.position_ids = as_long();
    else if (name == "token_type_ids")
      inputs.model.token_type_ids = as_long();
    else if (name == "labels")
      inputs.labels = as_long();
    else if (name == "output_gradient")
      inputs.output_gradient = tensor;
    else
      throw InputDataError(
          fmt::format("{}: tensor {} is not known: wanted input_ids, attention_mask, document_ids, "
                      "position_ids, token_type_ids, labels or output_gradient",
                      path.string(), name));
  };
  for (auto& [name, tensor] : io::read_safetensors(path)) take(name, tensor);
  const at::Tensor& ids = inputs.model.ids;
  if (!ids.defined() || ids.dim() != 2) {
    throw InputDataError(fmt::format("{}: wanted a tensor input_ids of two dimensions [batch, length]", path.string()));
  }
  check_ids(ids, "input_ids", ids.sizes(), a.vocabulary);
  constexpr int64_t kAny = int64_t{1} << 31;
  if (inputs.model.attention_mask) check_ids(*inputs.model.attention_mask, "attention_mask", ids.sizes(), kAny);
  if (inputs.model.document_ids) check_ids(*inputs.model.document_ids, "document_ids", ids.sizes(), kAny);
  const int64_t positions = a.learned_positions > 0 ? a.learned_positions : kAny;
  if (inputs.model.position_ids) check_ids(*inputs.model.position_ids, "position_ids", ids.sizes(), positions);
  if (inputs.model.token_type_ids)
    check_ids(*inputs.model.token_type_ids, "token_type_ids", ids.sizes(), a.token_types);
  if (inputs.labels.defined()) {
    const bool a_token = a.head == HeadKind::kLanguageModel;
    const at::Tensor counted = inputs.labels.masked_fill(inputs.labels.eq(models::kIgnoredLabel), 0);
    check_ids(counted, "labels", a_token ? ids.sizes() : at::IntArrayRef(ids.sizes().data(), 1),
              a_token ? a.vocabulary : a.labels);
  }
  return inputs;
}

Inputs placed(Inputs inputs, c10::Device device) {
  auto place = [&](at::Tensor& tensor) {
    if (tensor.defined()) tensor = precision::move(tensor, device);
  };
  place(inputs.model.ids), place(inputs.labels), place(inputs.output_gradient);
  for (auto* tensor : {&inputs.model.attention_mask, &inputs.model.document_ids, &inputs.model.position_ids,
                       &inputs.model.token_type_ids}) {
    if (*tensor) place(**tensor);
  }
  return inputs;
}

struct Outputs {
  io::NamedTensors tensors;
  at::Tensor main, loss;  // what gradients start from
};

void add_losses(const models::Transformer& model, const Inputs& inputs, Outputs& outputs) {
  if (!inputs.labels.defined()) return;
  const std::string place = model.path() + ".loss (logits)";
  at::Tensor tokens, count;
  if (model.architecture().masked_language_model()) {
    tokens = models::same_token_loss(outputs.main, inputs.labels, place);
    count = inputs.labels.ne(models::kIgnoredLabel).sum();
  } else if (model.architecture().head == HeadKind::kLanguageModel) {
    tokens = models::next_token_loss(outputs.main, inputs.labels, place);
    count = models::predicted_tokens(inputs.labels);
  } else if (model.has_head()) {
    tokens = models::class_loss(outputs.main, inputs.labels, place);
    count = inputs.labels.ne(models::kIgnoredLabel).sum();
  } else {
    throw InputDataError("input labels: this checkpoint is a bare encoder and has no loss: leave them out");
  }
  outputs.tensors.emplace_back("token_loss", tokens.detach());
  // All labels ignored: a loss of 0 with zero gradients, not 0/0.
  outputs.loss = tokens.sum() / count.clamp_min(1);
}

Outputs compute(const models::Transformer& model, const Inputs& inputs, bool hidden, bool pool) {
  Outputs outputs;
  const models::Encoded encoded = model.encode(inputs.model, hidden);
  outputs.main = model.has_head() ? model.head(encoded.last) : encoded.last;
  outputs.tensors.emplace_back(model.has_head() ? "logits" : "last_hidden_state", outputs.main.detach());
  for (size_t i = 0; i < encoded.hidden.size(); ++i) {
    outputs.tensors.emplace_back(fmt::format("hidden.{}", i), encoded.hidden[i].detach());
  }
  if (pool) {
    outputs.tensors.emplace_back("pooled", models::mean_pool(encoded.last, inputs.model.attention_mask).detach());
  }
  add_losses(model, inputs, outputs);
  return outputs;
}

void run_backward(const Inputs& inputs, Outputs& outputs) {
  if (inputs.output_gradient.defined()) {
    if (inputs.output_gradient.sizes() != outputs.main.sizes()) {
      throw InputDataError(fmt::format("input output_gradient: [{}], wanted the output's [{}]",
                                       fmt::join(inputs.output_gradient.sizes(), ","),
                                       fmt::join(outputs.main.sizes(), ",")));
    }
    outputs.main.backward(precision::cast(inputs.output_gradient, inputs.output_gradient.scalar_type(),
                                          outputs.main.scalar_type(), "forward (output_gradient)"));
  } else if (outputs.loss.defined()) {
    outputs.loss.backward();
  } else {
    throw UsageError("limbeck forward --gradients: the input has neither labels nor output_gradient to start from");
  }
}

void add_gradients(const models::BuiltModel& built, Outputs& outputs) {
  for (const models::WeightBinding& binding : built.report.bindings) {
    if (binding.is_packed()) continue;  // frozen
    const at::Tensor& gradient = binding.parameter.grad();
    if (gradient.defined()) {
      outputs.tensors.emplace_back("grad." + binding.name, binding.part_of(gradient).contiguous());
    }
  }
}

void add_gradients(const adapters::LoadedAdapter& adapter, Outputs& outputs) {
  for (const adapters::AdapterWeight& weight : adapter.weights) {
    const at::Tensor& gradient = weight.parameter.grad();
    if (gradient.defined()) outputs.tensors.emplace_back("grad." + weight.name, gradient.contiguous());
  }
}

void check_finite(const Outputs& outputs) {
  for (const auto& [name, tensor] : outputs.tensors) {
    if (!at::isFloatingType(tensor.scalar_type()) || tensor.isfinite().all().item<bool>()) continue;
    throw NumericError(
        fmt::format("output {} {} [{}] holds NaN or infinity: damaged weights, or values beyond this dtype: choose a "
                    "wider --dtype; --allow-nonfinite writes it all the same",
                    name, precision::dtype_name(tensor.scalar_type()), fmt::join(tensor.sizes(), ",")));
  }
}

void run_forward(Invocation& call) {
  const auto& settings = call.settings;
  const bool gradients = settings.enabled("gradients"), hidden = settings.enabled("hidden");
  const bool pool = settings.text("pooling") == "mean";
  const auto input = settings.required_path("input"), output = settings.required_path("output");
  models::ModelRequest request = single_model(settings);
  request.trainable = gradients && !settings.given("adapter");  // beside an adapter the model is frozen
  models::BuiltModel built = models::load_model(request);
  report_load(built, call.console);
  const auto adapter = load_named_adapter(settings, built, {.trainable = gradients}, call.console);
  const Inputs inputs = placed(read_inputs(input, built.config.architecture), request.device);

  const auto begin = std::chrono::steady_clock::now();
  Outputs outputs;
  {
    const at::AutoGradMode mode(gradients);
    outputs = compute(*built.model, inputs, hidden, pool);
    if (gradients) {
      run_backward(inputs, outputs);
      adapter ? add_gradients(*adapter, outputs) : add_gradients(built, outputs);
    }
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  if (!request.allow_nonfinite) check_finite(outputs);
  io::write_safetensors(output, outputs.tensors);
  call.result["family"] = built.config.architecture.family;
  call.result["dtype"] = precision::dtype_name(built.policy->stream_dtype());
  call.result["seconds"] = seconds;
  if (outputs.loss.defined()) call.result["loss"] = outputs.loss.item<double>();
  call.result["output"] = output.string();
  call.console.note(fmt::format("{} {} [{}] in {:.3f} s -> {} ({} tensors)", built.config.architecture.family,
                                precision::dtype_name(built.policy->stream_dtype()),
                                fmt::join(outputs.main.sizes(), ","), seconds, output.string(),
                                outputs.tensors.size()));
}

void declare_forward(recipe::OptionTable& table) {
  declare_single_model(table);
  table.group("Input and output");
  table.add({.name = "input",
             .kind = OptionKind::kPath,
             .help =
                 "safetensors: input_ids [B,T]; optional attention_mask, position_ids, token_type_ids, document_ids, "
                 "labels, output_gradient.",
             .value_name = "FILE",
             .flag_only = true});
  table.add({.name = "output",
             .kind = OptionKind::kPath,
             .help = "safetensors: logits or last_hidden_state; token_loss when labels came.",
             .value_name = "FILE",
             .writes = recipe::Writes::kFile,
             .flag_only = true});
  table.add({.name = "hidden",
             .kind = OptionKind::kSwitch,
             .help = "Also hidden.0 (embeddings) to hidden.L (after the final norm).",
             .flag_only = true});
  table.add({.name = "gradients",
             .kind = OptionKind::kSwitch,
             .help = "Also grad.NAME of every parameter, with --adapter of the adapter's: of the mean token loss, or "
                     "of sum(output * output_gradient).",
             .flag_only = true});
  table.add({.name = "pooling",
             .kind = OptionKind::kChoice,
             .fallback = "none",
             .help = "mean: also pooled, the mean of each row's tokens.",
             .words = {"none", "mean"},
             .flag_only = true});
}

}  // namespace

Command forward_command() {
  return {.name = "forward",
          .summary = "Logits, hidden states, losses and gradients of a Hugging Face folder.",
          .example = "limbeck forward --model models/small --input ids.safetensors --output logits.safetensors",
          .computes = true,
          .declare = declare_forward,
          .run = run_forward};
}

}  // namespace limbeck::cli
