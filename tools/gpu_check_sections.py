"""What a gpu_check looks at. Each section is a process of its own (python gpu_check_sections.py NAME [--dry-run]) that
prints its rows, so that one which crashes or hangs takes no other with it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = (ROOT / os.environ.get("LIMBECK_BUILD", "build/release")).resolve()
NAMES = ("machine", "correctness", "operators")
# Of a memory in GB/s: what an operator moves a second is shown as a share of it.
BANDWIDTH = {"A100": 2039, "H100": 3350, "H200": 4800, "B200": 8000}


def interpreter() -> str:
    own = ROOT / ".venv" / "bin" / "python"
    return str(own) if own.is_file() else sys.executable


def environment(dry_run: bool) -> dict[str, str]:
    """Libraries of ours, of torch and of its wheels by name: where a tree was carried to, no path of its build holds."""
    out = dict(os.environ, LIMBECK_BUILD=str(BUILD), LIMBECK_BIN=str(BUILD / "bin" / "limbeck"), LIMBECK_SOURCE=str(ROOT),
               PYTHONDONTWRITEBYTECODE="1", HF_HUB_OFFLINE="1")  # fmt: skip
    if dry_run:  # only what is a program of its own runs on the emulated device
        out.pop("LIMBECK_REQUIRE_GPU", None)
        return out
    out["LIMBECK_REQUIRE_GPU"] = "1"
    where = [BUILD / "lib"]
    asked = subprocess.run([interpreter(), "-c", "import importlib.util as u; print(u.find_spec('torch').origin)"],
                           capture_output=True, text=True)  # fmt: skip
    if asked.returncode == 0:
        torch = Path(asked.stdout.strip()).parent
        where += [torch / "lib", *sorted((torch.parent / "nvidia").glob("*/lib"))]
    out["LD_LIBRARY_PATH"] = ":".join([*map(str, where), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])])
    return out


def command(name: str, dry_run: bool) -> list[str]:
    return [interpreter(), str(Path(__file__).resolve()), name, *(["--dry-run"] if dry_run else [])]


def row(name: str, state: str, **figures) -> None:
    print(json.dumps(dict(name=name, state=state, **figures)), flush=True)


# ---- machine ----


def machine(dry_run: bool) -> None:
    import torch

    seen = dict(torch=torch.__version__, cuda=str(torch.version.cuda))
    if torch.cuda.is_available():
        of = torch.cuda.get_device_properties(0)
        row("card", "seen", card=of.name, count=torch.cuda.device_count(), memory_gb=of.total_memory / 2**30,
            compute=f"{of.major}.{of.minor}", multiprocessors=of.multi_processor_count, **seen)  # fmt: skip
        asked = subprocess.run(["nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.max.sm,power.limit", "--format=csv,noheader"],
                               capture_output=True, text=True)  # fmt: skip
        row("driver, clock, highest clock, power", "seen" if asked.returncode == 0 else "skipped", told=asked.stdout.strip().split("\n")[0])
    else:
        row("card", "dry" if dry_run else "failed", told="no GPU that torch can use", **seen)
    asked = subprocess.run([str(BUILD / "bin" / "limbeck"), "--version"], capture_output=True, text=True)
    row("limbeck starts", "passed" if asked.returncode == 0 else "failed", told=(asked.stdout + asked.stderr).strip()[-200:])


# ---- correctness ----


def gtest_rows(dry_run: bool) -> None:
    """Every case of kernels_test that needs a GPU."""
    environment = dict(os.environ)
    if dry_run:
        environment["LD_LIBRARY_PATH"] = str(BUILD / "fake_cuda")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cases.json"
        done = subprocess.run([str(BUILD / "bin" / "kernels_test"), "--gtest_filter=*Cuda*:*Gpu*", f"--gtest_output=json:{file}"],
                              capture_output=True, text=True, env=environment)  # fmt: skip
        if not file.is_file():
            return row("kernels_test", "failed", exit=done.returncode, said=(done.stdout + done.stderr)[-600:])
        for suite in json.loads(file.read_text())["testsuites"]:
            for case in suite["testsuite"]:
                failures = " / ".join(f["failure"].strip() for f in case.get("failures", []))
                state = "failed" if failures else "skipped" if case["result"] == "SKIPPED" else "passed"
                if not dry_run and state == "skipped":
                    state = "failed"
                row(f"{suite['name']}.{case['name']}", state, **({"said": failures[-400:]} if failures else {}))


def pytest_rows(dry_run: bool) -> None:
    """Whole commands on the device against the CPU; bits of a second run and of a resumed one."""
    environment = dict(os.environ, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    if not dry_run:
        environment["LIMBECK_REAL_GPU"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cases.xml"
        done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={file}",
                               str(ROOT / "tests" / "python" / "test_fake_cuda.py")],
                              capture_output=True, text=True, env=environment)  # fmt: skip
        if not file.is_file():
            return row("test_fake_cuda.py", "failed", exit=done.returncode, said=(done.stdout + done.stderr)[-600:])
        cases = list(ElementTree.parse(file).getroot().iter("testcase"))
        for case in cases:
            bad = [case.find(kind) for kind in ("failure", "error") if case.find(kind) is not None]
            state = "failed" if bad else "skipped" if case.find("skipped") is not None else "passed"
            said = {"said": (bad[0].get("message") or "")[-400:]} if bad else {}
            row(case.get("name"), state, seconds=float(case.get("time")), **said)
        if not cases:
            row("test_fake_cuda.py", "failed", exit=done.returncode, said=done.stdout[-600:])


def correctness(dry_run: bool) -> None:
    gtest_rows(dry_run)
    pytest_rows(dry_run)


# ---- operators ----


class Clock:
    """Milliseconds of a call: the median of single calls between events of the device."""

    def __init__(self, torch, device: str, rounds: int):
        self.torch, self.device, self.rounds = torch, device, rounds

    def ms(self, call) -> float:
        for _ in range(min(3, self.rounds)):
            call()
        times = []
        for _ in range(self.rounds):
            if self.device == "cuda":
                begin, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                call()
                end.record()
                end.synchronize()
                times.append(begin.elapsed_time(end))
            else:
                began = time.perf_counter()
                call()
                times.append(1e3 * (time.perf_counter() - began))
        return sorted(times)[len(times) // 2]


def operator_cases(torch, device: str, tiny: bool):
    """(name, ours, torch's, bytes that must be moved); inputs as a 0.6B student has them."""
    ops, F = torch.ops.limbeck, torch.nn.functional
    tokens, hidden, heads, keys, depth, inner, words = (32, 64, 4, 2, 16, 96, 199) if tiny else (8192, 1024, 16, 8, 128, 3072, 151936)
    rows = 2 if tiny else 4
    half = dict(dtype=torch.bfloat16, device=device)
    x, weight = torch.randn(tokens, hidden, **half), torch.randn(hidden, **half)
    yield "rms_norm of the hidden width", lambda: ops.rms_norm(x, weight, 1e-6), lambda: F.rms_norm(x, (hidden,), weight, 1e-6), 4 * x.numel()
    q, narrow = torch.randn(rows, tokens // rows, heads, depth, **half), torch.randn(depth, **half)
    yield "rms_norm of a head's width", lambda: ops.rms_norm(q, narrow, 1e-6), lambda: F.rms_norm(q, (depth,), narrow, 1e-6), 4 * q.numel()
    bias = torch.randn(hidden, **half)
    yield "layer_norm", lambda: ops.layer_norm(x, weight, bias, 1e-6), lambda: F.layer_norm(x, (hidden,), weight, bias, 1e-6), 4 * x.numel()
    gate, up = torch.randn(tokens, inner, **half), torch.randn(tokens, inner, **half)
    yield "swiglu", lambda: ops.swiglu(gate, up), lambda: F.silu(gate) * up, 6 * gate.numel()
    angle = torch.randn(1, tokens // rows, depth // 2, dtype=torch.float32, device=device)
    cos, sin = angle.cos(), angle.sin()

    def rotated():
        first, second = q.chunk(2, -1)
        c, s = cos.unsqueeze(2), sin.unsqueeze(2)
        return torch.cat([first * c - second * s, second * c + first * s], -1).to(q.dtype)

    yield "rotary_embedding", lambda: ops.rotary_embedding(q, cos, sin), rotated, 4 * q.numel()

    k, v = (torch.randn(rows, tokens // rows, keys, depth, **half) for _ in range(2))
    scale, dout = depth**-0.5, torch.randn_like(q)
    leaves = [t.detach().requires_grad_() for t in (q, k, v)]

    def sdpa(a, b, c):
        return F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (a, b, c)), is_causal=True, scale=scale, enable_gqa=True).transpose(1, 2)

    moved = 2 * (2 * q.numel() + k.numel() + v.numel())
    yield "attention, causal", lambda: ops.attention(q, k, v, None, None, scale), lambda: sdpa(q, k, v), moved
    yield ("attention, causal, with gradients", lambda: torch.autograd.grad(ops.attention(*leaves, None, None, scale), leaves, dout),
           lambda: torch.autograd.grad(sdpa(*leaves), leaves, dout), 3 * moved)  # fmt: skip

    parameters = [torch.randn(hidden, hidden, **half) for _ in range(3 if tiny else 100)]
    gradients = [torch.randn_like(p) for p in parameters]
    masters, means, squares = ([torch.zeros_like(p, dtype=torch.float32) for p in parameters] for _ in range(3))
    single = [p.float().requires_grad_() for p in parameters]
    for p, g in zip(single, gradients):
        p.grad = g.float()
    adamw = torch.optim.AdamW(single, lr=1e-4, fused=True)
    count = sum(p.numel() for p in parameters)
    yield ("AdamW (torch: of float32 alone)", lambda: ops.adamw_step_(parameters, gradients, masters, means, squares, 1, 1e-4),
           adamw.step, 30 * count)  # fmt: skip

    table = torch.randn(words, hidden, **half).mul_(0.05).requires_grad_()
    teacher_table, teacher_states = torch.randn(words, 2 * hidden, **half).mul_(0.05), torch.randn(tokens, 2 * hidden, **half)
    states = x.detach().requires_grad_()
    ones, zeros = (torch.full((tokens,), value / tokens, dtype=torch.float32, device=device) for value in (1.0, 0.0))

    def fused():
        loss = ops.head_loss(states, table, teacher_states, teacher_table, None, ones, zeros, "forward_kl")[0]
        return torch.autograd.grad(loss, [states, table])

    def plain():  # whole logits; in runs, as float32 of all tokens does not fit
        grads = None
        for part in range(0, tokens, 1024):
            piece = slice(part, part + 1024)
            student = F.log_softmax((states[piece] @ table.t()).float(), -1)
            teacher = F.log_softmax((teacher_states[piece] @ teacher_table.t()).float(), -1)
            loss = F.kl_div(student, teacher, log_target=True, reduction="sum") / tokens
            new = torch.autograd.grad(loss, [states, table])
            grads = new if grads is None else [a + b for a, b in zip(grads, new)]
        return grads

    yield "fused head with forward KL and its gradients", fused, plain, 46 * tokens * words


APART = 0.04  # of a tensor's largest number: bfloat16 on both sides, and torch rounds between its passes


def apart_by(torch, ours, theirs) -> float:
    """The largest difference of two results, as a share of the largest number; 0 where a call returns nothing."""
    if ours is None or theirs is None:
        return 0.0
    if isinstance(ours, torch.Tensor):
        ours, theirs = [ours], [theirs]
    pairs = [(a.detach().double(), b.detach().double()) for a, b in zip(ours, theirs, strict=True)]
    return max(((a - b).abs().max() / b.abs().max().clamp_min(1e-30)).item() for a, b in pairs)


def operators(dry_run: bool) -> None:
    import torch

    for library in ("liblimbeck_kernels.so", *(() if dry_run else ("liblimbeck_cuda.so",))):
        torch.ops.load_library(str(BUILD / "lib" / library))
    device = "cpu" if dry_run else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        return row("operators", "failed", said="no GPU that torch can use")
    card = "" if dry_run else torch.cuda.get_device_name(0)
    bandwidth = next((value for name, value in BANDWIDTH.items() if name in card), None)
    clock = Clock(torch, device, rounds=1 if dry_run else 20)
    for library in ("liger_kernel", "cut_cross_entropy"):
        row(f"peer {library}", "skipped", told="not compared yet" if importlib.util.find_spec(library) else "not installed")
    for name, ours, theirs, moved in operator_cases(torch, device, tiny=dry_run):
        apart = apart_by(torch, ours(), theirs())
        if apart > APART:
            row(name, "failed", apart=apart, wanted_at_most=APART, said="not the result of torch's: its time says nothing")
            continue
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        mine, other = clock.ms(ours), None
        peak = (torch.cuda.max_memory_allocated() - before) / 2**20 if device == "cuda" else None
        other = clock.ms(theirs)
        if dry_run:  # tiny, on the CPU: these are no measurements
            row(name, "dry", apart=apart)
            continue
        share = {"share_of_bandwidth": moved / (mine * 1e6 * bandwidth)} if bandwidth else {}
        row(name, "measured", ms=mine, torch_ms=other, times_faster=other / mine, peak_mib=peak, apart=apart, **share)


if __name__ == "__main__":
    {"machine": machine, "correctness": correctness, "operators": operators}[sys.argv[1]]("--dry-run" in sys.argv[2:])
