"""The reference loop itself, held against hand computation: a wrong reference would make every trajectory test void."""

import math

import pytest
import torch
import torch_distiller as distiller
from torch_distiller import Settings
from transformers import LlamaConfig, LlamaForCausalLM


class Bigram(torch.nn.Module):
    """The logits of a token are a row of one table: small enough to differentiate by hand."""

    def __init__(self, table):
        super().__init__()
        self.table = torch.nn.Parameter(torch.tensor(table, dtype=torch.float64))

    def forward(self, input_ids, use_cache=False):
        return type("Output", (), {"logits": self.table[input_ids]})()


STUDENT = [[0.0, 0.0, 0.0], [0.5, -0.5, 0.0], [1.0, 2.0, 3.0]]
TEACHER = [[1.0, 0.0, -1.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.0]]


def softmax(row):
    total = sum(math.exp(v) for v in row)
    return [math.exp(v) / total for v in row]


def kl_by_hand(teacher_row, student_row, temperature):
    p, q = softmax([v / temperature for v in teacher_row]), softmax([v / temperature for v in student_row])
    return temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q))


def tokens(ids, labels=None):
    ids = torch.tensor([ids])
    return {"input_ids": ids, "labels": ids.clone() if labels is None else torch.tensor([labels])}


def test_first_update_equals_hand_computation():
    # Tokens 0 1 2, of which position 0 predicts 1 and position 1 predicts 2; T = 2, weights 0.25 and 0.75.
    student, teacher = Bigram(STUDENT), Bigram(TEACHER)
    settings = Settings(learning_rate=0.1, total_steps=4, clip_norm=None, temperature=2.0, kd_weight=0.25,
                        ce_weight=0.75, weight_decay=0.5, epsilon=1e-12)  # fmt: skip
    seen = distiller.distil(student, teacher, [[tokens([0, 1, 2])]], settings)
    kd = (kl_by_hand(TEACHER[0], STUDENT[0], 2.0) + kl_by_hand(TEACHER[1], STUDENT[1], 2.0)) / 2
    ce = (-math.log(softmax(STUDENT[0])[1]) - math.log(softmax(STUDENT[1])[2])) / 2
    assert seen.kd[0] == pytest.approx(kd, rel=1e-12)
    assert seen.ce[0] == pytest.approx(ce, rel=1e-12)
    assert seen.loss[0] == pytest.approx(0.25 * kd + 0.75 * ce, rel=1e-12)
    # d(T^2 KL)/dz = T (q_T - p_T); d(CE)/dz = q - onehot; both halved, being means over two targets.
    norm = 0.0
    for row, label in ((0, 1), (1, 2)):
        q_t, p_t = softmax([v / 2 for v in STUDENT[row]]), softmax([v / 2 for v in TEACHER[row]])
        q = softmax(STUDENT[row])
        for column in range(3):
            gradient = (0.25 * 2 * (q_t[column] - p_t[column]) + 0.75 * (q[column] - (column == label))) / 2
            norm += gradient**2
            # AdamW's first update is lr * sign(gradient), after the decay by lr * 0.5.
            wanted = STUDENT[row][column] * (1 - 0.1 * 0.5) - 0.1 * math.copysign(1.0, gradient)
            assert float(student.table[row, column].detach()) == pytest.approx(wanted, abs=1e-9)
    assert seen.gradient_norm[0] == pytest.approx(math.sqrt(norm), rel=1e-12)
    assert float(student.table[2, 0].detach()) == pytest.approx(0.95)  # no gradient, decay alone
    assert seen.targets == [2]


def test_masked_labels_count_in_no_term():
    masked = tokens([0, 1, 2, 0], labels=[-100, -100, 2, -100])
    seen = distiller.distil(Bigram(STUDENT), Bigram(TEACHER), [[masked]], Settings(clip_norm=None))
    assert seen.targets == [1]
    assert seen.kd[0] == pytest.approx(kl_by_hand(TEACHER[1], STUDENT[1], 1.0), rel=1e-12)
    assert seen.ce[0] == pytest.approx(-math.log(softmax(STUDENT[1])[2]), rel=1e-12)


def test_a_fully_masked_update_is_zero_and_moves_nothing():
    student = Bigram(STUDENT)
    empty = tokens([0, 1, 2], labels=[-100] * 3)
    seen = distiller.distil(student, Bigram(TEACHER), [[empty]], Settings())
    assert seen.loss == [0.0] and seen.gradient_norm == [0.0]
    assert torch.equal(student.table.detach(), torch.tensor(STUDENT, dtype=torch.float64))


def test_schedule_by_hand():
    settings = Settings(learning_rate=1.0, total_steps=10, warmup_steps=4, final_fraction=0.1)
    rates = [distiller.learning_rate(step, settings) for step in range(11)]
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates[7] == pytest.approx(0.1 + 0.9 * 0.5)  # half-way through the cosine
    assert rates[10] == pytest.approx(0.1)
    linear = Settings(learning_rate=1.0, total_steps=8, schedule="linear")
    assert [distiller.learning_rate(step, linear) for step in (0, 2, 8)] == pytest.approx([1.0, 0.75, 0.0])


def tiny_llama(seed):
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=61, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                         num_attention_heads=2, num_key_value_heads=1, initializer_range=0.3)  # fmt: skip
    return LlamaForCausalLM(config).double()


def random_batch(rows, width, seed):
    ids = torch.randint(0, 61, (rows, width), generator=torch.Generator().manual_seed(seed))
    labels = ids.clone()
    labels[0, : width // 2] = -100
    return {"input_ids": ids, "labels": labels}


def test_accumulation_is_the_undivided_update():
    whole = [random_batch(4, 9, seed) for seed in range(3)]
    split = [[{name: t[row : row + 1] for name, t in batch.items()} for row in range(4)] for batch in whole]
    settings = Settings(learning_rate=1e-2, total_steps=3, temperature=1.5, clip_norm=0.5)
    once = distiller.distil(tiny_llama(1), tiny_llama(2), [[batch] for batch in whole], settings)
    parts = distiller.distil(tiny_llama(1), tiny_llama(2), split, settings)
    assert parts.loss == pytest.approx(once.loss, rel=1e-10)
    assert parts.gradient_norm == pytest.approx(once.gradient_norm, rel=1e-8)


def test_packed_documents_train_as_each_alone():
    first, second = random_batch(1, 5, 3)["input_ids"], random_batch(1, 7, 4)["input_ids"]
    packed_ids = torch.cat([first, second], dim=1)
    labels = packed_ids.clone()
    labels[0, 0] = labels[0, 5] = -100
    document_ids = torch.tensor([[1] * 5 + [2] * 7])
    packed = {"input_ids": packed_ids, "labels": labels, "document_ids": document_ids}
    alone = [{"input_ids": ids, "labels": ids} for ids in (first, second)]
    settings = Settings(learning_rate=1e-2, total_steps=2)
    together = distiller.distil(tiny_llama(5), tiny_llama(6), [[packed]] * 2, settings)
    apart = distiller.distil(tiny_llama(5), tiny_llama(6), [alone] * 2, settings)
    assert together.targets == [10, 10]
    assert together.loss == pytest.approx(apart.loss, rel=1e-10)


def test_padding_changes_nothing():
    ids = random_batch(1, 6, 7)["input_ids"]
    padded = {
        "input_ids": torch.nn.functional.pad(ids, (0, 3)),
        "labels": torch.nn.functional.pad(ids, (0, 3), value=-100),
        "attention_mask": torch.nn.functional.pad(torch.ones_like(ids), (0, 3)),
    }
    settings = Settings(learning_rate=1e-2, total_steps=2)
    with_padding = distiller.distil(tiny_llama(8), tiny_llama(9), [[padded]] * 2, settings)
    without = distiller.distil(tiny_llama(8), tiny_llama(9), [[{"input_ids": ids, "labels": ids}]] * 2, settings)
    assert with_padding.loss == pytest.approx(without.loss, rel=1e-10)


def test_distillation_approaches_the_teacher():
    batches = [[random_batch(4, 12, seed % 4)] for seed in range(60)]
    student, teacher = tiny_llama(10), tiny_llama(11)
    settings = Settings(learning_rate=2e-2, total_steps=60, warmup_steps=2, kd_weight=1.0, ce_weight=0.0)
    seen = distiller.distil(student, teacher, batches, settings)
    assert seen.kd[-1] < 0.25 * seen.kd[0]
    assert distiller.mean_loss(student, batches[0]) > 0
