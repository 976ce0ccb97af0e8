"""A distillation step as a user of transformers writes it, timed: gpu_check_peer_loop.py JOB.json RESULT.json.

Weights of the job's dtype, scaled-dot-product attention, fused AdamW without masters, no autocast. With `run` the logits of so
many tokens at a time, each run's backward at once; with `liger` its rotary, norms and gated activation.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F


def read_rows(folder: Path) -> torch.Tensor:
    from safetensors import safe_open

    rows = []
    for shard in json.loads((folder / "manifest.json").read_text())["shards"]:
        with safe_open(folder / shard["file"], framework="pt") as file:
            ids, offsets = file.get_tensor("input_ids").long(), file.get_tensor("document_offsets").tolist()
        rows += [ids[begin:end] for begin, end in zip(offsets, offsets[1:])]
    return torch.stack(rows)


def load(job: dict):
    from transformers import AutoModelForCausalLM

    if job["liger"]:
        from liger_kernel.transformers import apply_liger_kernel_to_qwen3

        apply_liger_kernel_to_qwen3(rope=True, rms_norm=True, swiglu=True, cross_entropy=False, fused_linear_cross_entropy=False)
    kind = getattr(torch, job["dtype"])
    found = [AutoModelForCausalLM.from_pretrained(job[role], dtype=kind, attn_implementation="sdpa").to(job["device"])
             for role in ("teacher", "student")]  # fmt: skip
    return found[0].eval().requires_grad_(False), found[1].train()


def divergence(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    student, teacher = (F.log_softmax(logits.float(), -1) for logits in (student_logits, teacher_logits))
    return F.kl_div(student, teacher, reduction="sum", log_target=True)


def backward(teacher, student, ids: torch.Tensor, run: int) -> torch.Tensor:
    """The mean over all tokens but the first of each row; gradients are in the student."""
    targets = ids[:, 1:].numel()
    with torch.no_grad():
        teacher_hidden = teacher.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
    hidden = student.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
    cut, total = hidden.detach().requires_grad_(), torch.zeros((), device=ids.device)
    for begin in range(0, targets, run or targets):
        part = slice(begin, begin + (run or targets))
        with torch.no_grad():
            wanted = teacher.lm_head(teacher_hidden[part])
        loss = divergence(student.lm_head(cut[part]), wanted) / targets
        loss.backward()
        total += loss.detach()
    hidden.backward(cut.grad)
    return total


def main(job_file: str, result_file: str) -> int:
    job = json.loads(Path(job_file).read_text())
    torch.set_num_threads(job["threads"])
    teacher, student = load(job)
    rows = read_rows(Path(job["data"]))
    optimizer = torch.optim.AdamW(student.parameters(), lr=job["learning_rate"], weight_decay=job["weight_decay"], fused=True)
    seconds, losses = [], []
    for step in range(job["steps"]):
        began = time.perf_counter()
        begin = step * job["batch"] % len(rows)
        ids = rows[begin : begin + job["batch"]].to(job["device"])
        loss = backward(teacher, student, ids, job["run"])
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
        if job["device"] == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() if job["device"] == "cuda" else None
    Path(result_file).write_text(json.dumps({"seconds": seconds, "losses": losses, "peak_bytes": peak}))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
