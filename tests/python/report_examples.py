"""Made-up results of `limbeck sweep`, `profile` and `quantize --budgets`, in the form that the commands write."""

from __future__ import annotations

LEAVES = {"self_attn.q_proj": "attention", "self_attn.k_proj": "attention", "self_attn.v_proj": "attention", "self_attn.o_proj": "attention",
          "mlp.up_proj": "mlp", "mlp.down_proj": "mlp", "post_attention_layernorm": "norm"}  # fmt: skip
NO_METER = "no meter: /sys/class/powercap is not there, and this processor has no energy events"
OVERFLOW = "3 of 6144 values are infinite in layers.1.mlp.down_proj"


def rows(first, count, of=4202):
    """On which rows something was measured."""
    return {"data": "1-720-8f4e363a", "packing": "padded", "sequence_length": 128, "masking": "none", "of": of, "first": first, "rows": count}


def candidate(module, role, format_name, drop, **more):
    return {"module": module, "role": role, "format": format_name, "status": "measured", "reason": "", "quality": 0.61 - drop / 100,
            "drop": drop, "low": drop - 0.4, "high": drop + 0.5, "p": 0.25, "kl": 1e-4 + abs(drop) / 50, "kl_low": 5e-5, "kl_high": 2e-2,
            "logit_error": 1.5e-3, "seconds": 8e-4, "seconds_before": 1.1e-3, "bytes": 74496, "bytes_before": 147456, "score": 0.3,
            "pareto": False, "selected": False, **more}  # fmt: skip


def unmeasured(module, format_name, status, reason):
    nothing = dict.fromkeys(("quality", "drop", "low", "high", "p", "kl", "kl_low", "kl_high", "logit_error", "seconds", "score"))
    return candidate(module, "mlp", format_name, 0.0) | nothing | {"status": status, "reason": reason}


def whole(format_name, drop, **more):
    made = {"format": format_name, "quality": 0.61 - drop / 100, "drop": drop, "low": drop - 0.3, "high": drop + 0.3, "kl": 1e-3, "kl_low": 5e-4,
            "kl_high": 2e-3, "seconds": 31.5, "bytes": 45500000, "status": "measured", "reason": ""}  # fmt: skip
    return made | more


def sweep(layers=3):
    candidates = [candidate(f"layers.{i}.{leaf}", role, format_name, round(0.1 * i + 0.05 * k * (1 + f) - 0.1, 3), selected=i == 0 and f == 0, pareto=k == 0)
                  for f, format_name in enumerate(("float16", "int8")) for i in range(layers) for k, (leaf, role) in enumerate(LEAVES.items())]  # fmt: skip
    candidates += [unmeasured("layers.1.mlp.down_proj.planted", "float16", "overflowed", OVERFLOW),
                   unmeasured("layers.2.mlp.torn", "int8", "failed", "the product was refused: <b>no</b> & more")]  # fmt: skip
    nothing = dict.fromkeys(("quality", "drop", "low", "high", "kl", "kl_low", "kl_high", "seconds"))
    return {"kind": "classifier", "quality": "accuracy", "rows": 2101, "targets": 2101, "measured_on": rows(2101, 2101),
            "choosing": {"rows": 2101, "targets": 2101, "others": True, "quality": 0.6, "seconds": 32.0}, "baseline": {"quality": 0.61, "seconds": 32.5, "bytes": 90871344},
            "whole_models": [whole("float32", 0.0, bytes=90871344, seconds=32.5), whole("bfloat16", 0.19),
                             whole("float16", 0.0) | nothing | {"status": "overflowed", "reason": OVERFLOW}],
            "candidates": candidates,
            "combined": {"modules": [{"module": one["module"], "format": one["format"]} for one in candidates if one["selected"]],
                         **whole("", 0.33, bytes=88000000), "p": 0.0625, "test": "mcnemar", "safe": False, "predicted_drop": 0.62,
                         "predicted_low": -0.7, "predicted_high": 2.1, "on_choosing_rows": {"drop": 0.21, "low": -0.1, "high": 0.5}, "rules": ["student.layers.0.self_attn.q_proj float16"]},
            "seconds": {"sweep": 301.5, "full_evaluation": 32.5, "share_of_full_evaluations": 0.44, "share_of_full_evaluations_of_all_rows": 0.22}}  # fmt: skip


def profile_row(precision, ms, size, accuracy, work="forward", device="cpu", joules=None, reason=NO_METER):
    modules = [{"module": f"layers.{i}.{leaf}", "role": role, "calls": 1, "ms": ms / 30, "share": 1 / 30, "flops": 4.8e9, "bytes": 3.1e6, "gflops": 160.5,
                "roofline_share": 0.76, "bound": "compute" if k % 2 else "memory", "joules": None if joules is None else joules / 30,
                "reason": "" if joules is not None else reason} for i in range(3) for k, (leaf, role) in enumerate(LEAVES.items())]  # fmt: skip
    quality = {"name": "accuracy", "value": accuracy, "f1": accuracy - 0.01, "measured_on": rows(2101, 2101)} if work == "forward" else None
    return {"precision": precision, "device": device, "work": work, "refused": None,
            "latency_ms": {"mean": ms, "p50": ms * 0.98, "p95": ms * 1.2, "std": ms * 0.06}, "rows_per_second": 16000 / ms,
            "tokens_per_second": 2048000 / ms, "passes": 412, "passes_asked": 2500, "cut": True,
            "read": {"from": "data.validation", "reason": None, "rows": 16, "length": 128, "tokens": 1890}, "bytes_on_disk": size if work == "forward" else None, "bytes_of_weights": size, "peak_bytes": size * 2,
            "peak_rss_bytes": size * 4, "quality": quality,
            "energy": {"joules": joules, "reason": None if joules is not None else reason, "idle_watts": None if joules is None else 12.5,
                       "by_device": {} if joules is None else {"package-0": joules * 0.8, "dram": joules * 0.2}}, "modules": modules}  # fmt: skip


def refused(precision, work, why, device="cpu"):
    return {**dict.fromkeys(("latency_ms", "rows_per_second", "tokens_per_second", "bytes_on_disk", "bytes_of_weights", "peak_bytes", "peak_rss_bytes",
                             "quality", "energy")), "precision": precision, "device": device, "work": work, "refused": why, "modules": []}  # fmt: skip


def profile(joules=False):
    rows = [profile_row("float32", 290.0, 90871344, 0.61, joules=21.5 if joules else None),
            profile_row("bfloat16", 95.0, 45500000, 0.608, joules=8.25 if joules else None),
            profile_row("int8", 180.0, 31000000, 0.6, joules=12.0 if joules else None),
            profile_row("float32", 900.0, 90871344, None, work="training", joules=64.0 if joules else None),
            refused("int8", "training", "int8 weights are frozen: train an adapter (adapter.kind), or float32")]  # fmt: skip
    heat = {"temperature_c": 51.0} if joules else {"temperature_c": None, "temperature_reason": "no sensor that can be read"}
    meters = [{"name": "RAPL package-0", "device": "cpu", "available": joules, "reason": None if joules else NO_METER},
              {"name": "NVML", "device": "cuda", "available": False, "reason": "libnvidia-ml.so.1 is not there"}]  # fmt: skip
    return {"machine": {"processor": "A processor @ 2.0 GHz", "vector": "avx512", "threads": 2,
                        "ceilings": {"gflops": {"float32": 210.5, "bfloat16": 980.0}, "gb_per_second": 14.5}, **heat},
            "batch": 16, "length": 128, "warmup": 50, "measured": 500, "trials": 5, "meters": meters, "rows": rows}  # fmt: skip


def curve(encoder=False):
    points = []
    for bits in (3, 4, 6):
        measured = {"rows": 64, "targets": 1472}
        measure = "turned" if encoder else "kl"
        measured |= {measure: 0.1 / bits, f"{measure}_low": 0.08 / bits, f"{measure}_high": 0.13 / bits}
        measured |= {} if encoder else {"perplexity": 20 + 3 / bits, "float_perplexity": 20.0}
        points.append({"asked": f"{bits} bits", "bytes": 1_000_000 * bits, "predicted_loss": 0.11 / bits, "estimate": {"compression_ratio": 32 / bits},
                       "measured": measured, "modules": {"layers.0.mlp.up_proj": {"format": f"int{min(8, bits)}"}}})  # fmt: skip
    return {"curve": points, "measured_on": rows(64, 64), "too_small": ["2 bits: is less than the 2.6 bits of the smallest mix"]}
