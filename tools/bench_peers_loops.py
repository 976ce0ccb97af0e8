"""One contender of bench_peers.py in a process of its own: bench_peers_loops.py KIND JOB.json RESULT.json.

The loops are written as a user of PyTorch and transformers would write them, without autocast; `gemm` runs nothing but
the matrix products of a step, the bound that no implementation beats.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open

CHUNK = 128  # tokens whose logits exist at one time in the chunked loss
HEAD_TILE = 4000  # vocabulary columns a product of the bound: its output stays near the cores


class StepClock:
    """The end of every step, and its loss."""

    def __init__(self):
        self.ends = [time.perf_counter()]
        self.first_step_at = 0.0  # by the wall clock, to be held against the launch
        self.losses = []

    def step(self, loss: float) -> None:
        self.ends.append(time.perf_counter())
        self.first_step_at = self.first_step_at or time.time()
        self.losses.append(loss)

    def result(self) -> dict:
        seconds = [after - before for before, after in zip(self.ends, self.ends[1:])]
        return {"seconds": seconds, "losses": self.losses, "first_step_at": self.first_step_at}


def read_rows(folder: Path) -> torch.Tensor:
    """The documents of a prepared data set, all of one length, as rows."""
    rows = []
    manifest = json.loads((folder / "manifest.json").read_text())
    for shard in manifest["shards"]:
        with safe_open(folder / shard["file"], framework="pt") as file:
            ids, offsets = file.get_tensor("input_ids").long(), file.get_tensor("document_offsets").tolist()
        rows += [ids[begin:end] for begin, end in zip(offsets, offsets[1:])]
    return torch.stack(rows)


class Rows(torch.utils.data.Dataset):
    def __init__(self, rows: torch.Tensor, count: int):
        self.rows, self.count = rows, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        ids = self.rows[index % len(self.rows)]
        labels = ids.clone()
        labels[0] = -100  # the first token of a document is nobody's target
        return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}


def load_pair(job: dict):
    from transformers import AutoModelForCausalLM

    teacher = None
    if job["kd_weight"] > 0:
        teacher = AutoModelForCausalLM.from_pretrained(job["teacher"], dtype=getattr(torch, job["teacher_dtype"])).eval()
        teacher.requires_grad_(False)
    student = AutoModelForCausalLM.from_pretrained(job["student"], dtype=getattr(torch, job["student_dtype"])).train()
    if job["adapter_rank"]:
        import peft

        student = peft.get_peft_model(student, peft.LoraConfig(r=job["adapter_rank"], lora_alpha=2 * job["adapter_rank"], lora_dropout=job["adapter_dropout"],
                                                               target_modules="all-linear", task_type="CAUSAL_LM"))  # fmt: skip
    return teacher, student


def batches(job: dict):
    rows = Rows(read_rows(Path(job["data"])), job["steps"] * job["batch"])
    return rows, torch.utils.data.DataLoader(rows, batch_size=job["batch"])


def kl(student_logits, teacher_logits, temperature):
    """Summed over tokens, with the factor T^2."""
    student = F.log_softmax(student_logits / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=-1)
    return F.kl_div(student, teacher, reduction="sum", log_target=True) * temperature**2


def plain_step(teacher, student, batch, job):
    """Whole logits of both models; the mean over targets of weight * KL + (1 - weight) * cross-entropy."""
    ids, labels = batch["input_ids"], batch["labels"]
    student_logits = student(input_ids=ids).logits
    targets, loss = (labels[:, 1:] != -100).sum(), 0.0
    if teacher is not None:
        with torch.no_grad():
            teacher_logits = teacher(input_ids=ids).logits
        loss = job["kd_weight"] * kl(student_logits[:, :-1], teacher_logits[:, :-1], job["temperature"]) / targets
    if job["kd_weight"] < 1:
        flat = student_logits[:, :-1].flatten(0, 1)
        loss = loss + (1 - job["kd_weight"]) * F.cross_entropy(flat, labels[:, 1:].flatten())
    loss.backward()
    return float(loss.detach())


def chunked_step(teacher, student, batch, job):
    """The same loss from the hidden states, the logits of CHUNK tokens at a time, forward and backward."""
    ids, labels = batch["input_ids"], batch["labels"][:, 1:].flatten()
    student = student.get_base_model() if job["adapter_rank"] else student
    if teacher is not None:
        with torch.no_grad():
            teacher_hidden = teacher.model(input_ids=ids).last_hidden_state[:, :-1].flatten(0, 1)
    hidden = student.model(input_ids=ids).last_hidden_state[:, :-1].flatten(0, 1)
    cut = hidden.detach().requires_grad_()
    targets, total = (labels != -100).sum(), 0.0
    for begin in range(0, len(cut), CHUNK):
        part = slice(begin, begin + CHUNK)
        student_logits, loss = student.lm_head(cut[part]), 0.0
        if teacher is not None:
            with torch.no_grad():
                teacher_logits = teacher.lm_head(teacher_hidden[part])
            loss = job["kd_weight"] * kl(student_logits, teacher_logits, job["temperature"])
        if job["kd_weight"] < 1:
            loss = loss + (1 - job["kd_weight"]) * F.cross_entropy(student_logits, labels[part], reduction="sum")
        (loss / targets).backward()
        total += float(loss.detach() / targets)
    hidden.backward(cut.grad)
    return total


def run_plain(job: dict, step) -> dict:
    clock = StepClock()
    teacher, student = load_pair(job)
    if job.get("compile"):
        teacher.forward, student.forward = torch.compile(teacher.forward), torch.compile(student.forward)
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=job["learning_rate"], weight_decay=job["weight_decay"])
    for batch in batches(job)[1]:
        loss = step(teacher, student, batch, job)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.step(loss)
    return clock.result()


def run_trl(job: dict) -> dict:
    """TRL's GKD trainer off-policy: forward KL at temperature 1, which is all its loss knows."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, TrainerCallback, default_data_collator
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    clock = StepClock()

    class Trainer(GKDTrainer):
        def compute_loss(self, *args, **kwargs):
            result = super().compute_loss(*args, **kwargs)
            self.seen_loss = float((result[0] if isinstance(result, tuple) else result).detach())
            return result

        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(self.train_dataset)  # the batches of the others

    class Ends(TrainerCallback):
        def on_step_end(self, *_, **__):
            clock.step(trainer.seen_loss)

    teacher, student = load_pair(job)
    rows = batches(job)[0]
    dataset = Dataset.from_list([{name: t.tolist() for name, t in rows[i].items()} for i in range(len(rows))])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<eos>": 0}, "<eos>")), eos_token="<eos>", pad_token="<eos>"
    )
    arguments = GKDConfig(
        output_dir=job["scratch"], max_steps=job["steps"], per_device_train_batch_size=job["batch"], use_cpu=True,
        bf16=False, fp16=False, gradient_checkpointing=False, learning_rate=job["learning_rate"],
        weight_decay=job["weight_decay"], lr_scheduler_type="constant", max_grad_norm=1.0, optim="adamw_torch",
        save_strategy="no", report_to=[], logging_steps=1, disable_tqdm=True, lmbda=0.0, beta=0.0, temperature=1.0,
    )  # fmt: skip
    trainer = Trainer(
        model=student, teacher_model=teacher, args=arguments, train_dataset=dataset,
        data_collator=default_data_collator, processing_class=tokenizer, callbacks=[Ends()],
    )  # fmt: skip
    trainer.train()
    return clock.result()


# The matrix products of one step


def products_of(folder: str, tokens: int, backward: bool, rank: int = 0) -> dict[tuple[int, int, int], int]:
    """(M, N, K) of the layers of a Llama folder, and how often each runs; the head is not among them. With a rank, the
    weights are frozen and an adapter beside each trains."""
    config = json.loads((Path(folder) / "config.json").read_text())
    width, inner = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim") or width // config["num_attention_heads"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    shapes: dict[tuple[int, int, int], int] = {}
    linears = [(width, queries), (width, keys), (width, keys), (queries, width)]
    linears += [(width, inner), (width, inner), (inner, width)]
    for inputs, outputs in linears:
        wanted = [(tokens, outputs, inputs)]
        if backward:
            wanted.append((tokens, inputs, outputs))
        if backward and not rank:
            wanted.append((outputs, inputs, tokens))
        if backward and rank:
            for left, right in ((inputs, rank), (rank, outputs)):  # A, then B
                wanted += [(tokens, right, left), (tokens, left, right), (right, left, tokens)]
        for shape in wanted:
            shapes[shape] = shapes.get(shape, 0) + config["num_hidden_layers"]
    return shapes


def head_products(job: dict, tokens: int) -> list[tuple[str, tuple[int, int, int], int]]:
    read = lambda role: json.loads((Path(job[role]) / "config.json").read_text())  # noqa: E731
    teacher, student = read("teacher")["hidden_size"], read("student")["hidden_size"]
    vocabulary = read("student")["vocab_size"]
    tiles = max(1, round(vocabulary / HEAD_TILE))
    tile = vocabulary // tiles
    shapes = [(job["teacher_dtype"], (tokens, tile, teacher))] if job["kd_weight"] > 0 else []
    of_weight = [] if job["adapter_rank"] else [(tile, student, tokens)]
    for shape in ((tokens, tile, student), (tokens, student, tile), *of_weight):
        shapes.append((job["student_dtype"], shape))
    return [(dtype, shape, tiles) for dtype, shape in shapes]


def run_gemm(job: dict) -> dict:
    tokens = job["batch"] * job["length"]
    wanted, rank = [], job["adapter_rank"]
    if job["kd_weight"] > 0:
        wanted += [(job["teacher_dtype"], s, n) for s, n in products_of(job["teacher"], tokens, False).items()]
    wanted += [(job["student_dtype"], s, n) for s, n in products_of(job["student"], tokens, True, rank).items()]
    wanted += head_products(job, tokens)
    clock, seconds = StepClock(), [0.0] * job["steps"]
    for dtype, (m, n, k), count in wanted:
        # float16 products are slow on CPUs without their instructions: widened is the better bound there.
        kind = torch.float32 if dtype == "float16" else getattr(torch, dtype)
        left, right = torch.randn(m, k).to(kind), torch.randn(n, k).to(kind).t()
        out = torch.empty(m, n, dtype=kind)
        for step in range(job["steps"]):
            begin = time.perf_counter()
            for _ in range(count):
                torch.mm(left, right, out=out)
            seconds[step] += time.perf_counter() - begin
    clock.first_step_at = time.time()
    return {**clock.result(), "seconds": seconds}


def make_models(job: dict) -> dict:
    """Two random Llamas of the job's sizes, saved as a user's folders are."""
    from transformers import LlamaConfig, LlamaForCausalLM

    for seed, role in enumerate(("teacher", "student")):
        width, layers = job[f"{role}_size"]
        torch.manual_seed(seed)
        heads = max(1, width // 64)
        config = LlamaConfig(
            vocab_size=job["vocabulary"], hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=max(1, heads // 2), tie_word_embeddings=False,
            max_position_embeddings=max(2048, job["length"]), bos_token_id=None, eos_token_id=0, pad_token_id=None,
        )  # fmt: skip
        LlamaForCausalLM(config).to(getattr(torch, job[f"{role}_dtype"])).save_pretrained(job[role])
    return {}


KINDS = {
    "models": make_models,
    "plain": lambda job: run_plain(job, plain_step),
    "chunked": lambda job: run_plain(job, chunked_step),
    "trl": run_trl,
    "gemm": run_gemm,
}


def main(kind: str, job_file: str, result_file: str) -> int:
    job = json.loads(Path(job_file).read_text())
    torch.set_num_threads(job["threads"])
    Path(result_file).write_text(json.dumps(KINDS[kind](job)))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
