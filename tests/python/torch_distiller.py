"""The plain PyTorch distillation loop that Limbeck's trajectories are held against: eager, one dtype, nothing fused.

Every number follows from the arguments: weights from the two modules, batches in the order given, no random draw.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F

MicroBatch = Mapping[str, torch.Tensor]  # input_ids, labels; attention_mask or document_ids: as in trainer/data/batch.h
IGNORED = -100


@dataclass(frozen=True)
class Settings:
    learning_rate: float = 1e-3
    total_steps: int = 50
    warmup_steps: int = 0
    schedule: str = "cosine"  # cosine | linear | constant
    final_fraction: float = 0.0  # of the learning rate, reached at total_steps
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = 0.0  # decoupled; not of norms and biases
    clip_norm: float | None = 1.0
    temperature: float = 1.0
    kd_weight: float = 0.5
    ce_weight: float = 0.5


@dataclass
class Trajectory:
    """One entry an update."""

    loss: list[float] = field(default_factory=list)
    kd: list[float] = field(default_factory=list)  # with its factor T^2, without its weight
    ce: list[float] = field(default_factory=list)
    gradient_norm: list[float] = field(default_factory=list)  # before clipping
    learning_rate: list[float] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)


def learning_rate(step: int, settings: Settings) -> float:
    """Of update `step`, counted from 0: a linear warm-up whose first update already moves, then the schedule."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return settings.learning_rate
    part = min(1.0, (step - settings.warmup_steps) / max(1, settings.total_steps - settings.warmup_steps))
    shape = {"cosine": 0.5 * (1.0 + math.cos(math.pi * part)), "linear": 1.0 - part}[settings.schedule]
    return settings.learning_rate * (settings.final_fraction + (1.0 - settings.final_fraction) * shape)


def packed_inputs(document_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Positions that begin anew with each document and a mask that keeps documents apart, as transformers takes them."""
    width = document_ids.shape[1]
    index = torch.arange(width)
    starts = torch.ones_like(document_ids, dtype=torch.bool)
    starts[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    begun = torch.where(starts, index, 0).cummax(dim=1).values
    same = document_ids[:, None, :, None] == document_ids[:, None, None, :]
    return {"position_ids": index - begun, "attention_mask": same & (index[:, None] >= index[None, :])}


def logits_of(model: torch.nn.Module, batch: MicroBatch) -> torch.Tensor:
    extra: dict[str, torch.Tensor] = {}
    if batch.get("document_ids") is not None:
        extra = packed_inputs(batch["document_ids"])
    elif batch.get("attention_mask") is not None:
        mask = batch["attention_mask"]
        extra = {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp_min(0)}
    return model(input_ids=batch["input_ids"], use_cache=False, **extra).logits


def target_count(batch: MicroBatch) -> int:
    return int((batch["labels"][:, 1:] != IGNORED).sum())


def summed_terms(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor | None, labels: torch.Tensor, temperature: float
) -> dict[str, torch.Tensor]:
    """Sums over the valid targets: kd = T^2 KL(teacher / T, student / T), ce = cross-entropy of the labels."""
    valid = labels[:, 1:] != IGNORED
    student = student_logits[:, :-1][valid]
    terms = {"ce": F.cross_entropy(student, labels[:, 1:][valid], reduction="sum"), "kd": student.new_zeros(())}
    if teacher_logits is not None:
        log_student = F.log_softmax(student / temperature, dim=-1)
        log_teacher = F.log_softmax(teacher_logits[:, :-1][valid] / temperature, dim=-1)
        terms["kd"] = temperature**2 * F.kl_div(log_student, log_teacher, reduction="sum", log_target=True)
    return terms


def make_optimizer(student: torch.nn.Module, settings: Settings) -> torch.optim.AdamW:
    trained = [p for p in student.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, eps=settings.epsilon)


def distil(
    student: torch.nn.Module,
    teacher: torch.nn.Module | None,
    updates: Iterable[Sequence[MicroBatch]],
    settings: Settings,
    dropout: bool = False,
) -> Trajectory:
    """Trains `student` in place, one update for each sequence of micro-batches, and returns what was seen.

    Losses are means over the valid targets of the whole update, so a different split into micro-batches is the same
    update. Without a teacher the cross-entropy alone trains. No model is put into training mode but, where
    `dropout` is asked for, the student.
    """
    student.train(dropout)
    if teacher is not None:
        teacher.eval()
    optimizer = make_optimizer(student, settings)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    seen = Trajectory()
    for step, micro_batches in enumerate(updates):
        rate = learning_rate(step, settings)
        for group in optimizer.param_groups:
            group["lr"] = rate
        targets = sum(target_count(batch) for batch in micro_batches)
        sums = {"kd": 0.0, "ce": 0.0}
        optimizer.zero_grad(set_to_none=True)
        for batch in micro_batches:
            with torch.no_grad():
                teacher_logits = logits_of(teacher, batch) if teacher is not None else None
            terms = summed_terms(logits_of(student, batch), teacher_logits, batch["labels"], settings.temperature)
            loss = (settings.kd_weight * terms["kd"] + settings.ce_weight * terms["ce"]) / max(targets, 1)
            loss.backward()
            sums = {name: sums[name] + float(value.detach()) for name, value in terms.items()}
        limit = math.inf if settings.clip_norm is None else settings.clip_norm
        seen.gradient_norm.append(float(torch.nn.utils.clip_grad_norm_(trained, limit)))
        optimizer.step()
        seen.kd.append(sums["kd"] / max(targets, 1))
        seen.ce.append(sums["ce"] / max(targets, 1))
        seen.loss.append(settings.kd_weight * seen.kd[-1] + settings.ce_weight * seen.ce[-1])
        seen.learning_rate.append(rate)
        seen.targets.append(targets)
    return seen


@torch.no_grad()
def mean_loss(model: torch.nn.Module, batches: Iterable[MicroBatch]) -> float:
    """Cross-entropy a target over all batches; its exponential is the perplexity."""
    model.eval()
    total, targets = 0.0, 0
    for batch in batches:
        total += float(summed_terms(logits_of(model, batch), None, batch["labels"], 1.0)["ce"])
        targets += target_count(batch)
    return total / max(targets, 1)
