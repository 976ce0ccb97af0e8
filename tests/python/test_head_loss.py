"""torch.ops.limbeck.head_loss as a Python user meets it: the fused head and divergence against torch in float64."""

import os
import pathlib

import pytest
import torch

BUILD = pathlib.Path(os.environ.get("LIMBECK_BUILD", pathlib.Path(__file__).parents[2] / "build" / "release"))
torch.ops.load_library(str(BUILD / "lib" / "liblimbeck_kernels.so"))
head_loss = torch.ops.limbeck.head_loss

TOKENS, VOCABULARY, STUDENT, TEACHER = 37, 450, 24, 40


def kl(log_p, log_q):
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def mixture(log_p, log_q, share):
    return (share * log_p.exp() + (1 - share) * log_q.exp()).log()


DIVERGENCES = {
    "forward_kl": lambda s, t, mix: kl(t, s),
    "reverse_kl": lambda s, t, mix: kl(s, t),
    "jensen_shannon": lambda s, t, mix: mix * kl(t, mixture(t, s, mix)) + (1 - mix) * kl(s, mixture(t, s, mix)),
    "skew_forward_kl": lambda s, t, mix: kl(t, mixture(t, s, mix)),
    "skew_reverse_kl": lambda s, t, mix: kl(s, mixture(s, t, mix)),
    "total_variation": lambda s, t, mix: (t.exp() - s.exp()).abs().sum(-1) / 2,
}


def heads(student, teacher):
    generator = torch.Generator().manual_seed(11)

    def make(*shape, scale=1.0):
        return torch.randn(shape, generator=generator, dtype=torch.float64) * scale

    labels = torch.randint(0, VOCABULARY, (TOKENS,), generator=generator)
    labels[2] = -100
    divergence_weight, ce_weight = make(TOKENS).abs().float(), make(TOKENS).abs().float()
    divergence_weight[5] = ce_weight[5] = 0
    return {
        "student_hidden": make(TOKENS, STUDENT).to(student).requires_grad_(),
        "student_weight": make(VOCABULARY + 2, STUDENT, scale=0.3).to(student).requires_grad_(),
        "teacher_hidden": make(TOKENS, TEACHER).to(teacher),
        "teacher_weight": make(VOCABULARY + 14, TEACHER, scale=0.3).to(teacher),
        "labels": labels,
        "divergence_weight": divergence_weight,
        "ce_weight": ce_weight,
    }


def reference(given, name, mix, temperature, smoothing):
    hidden = given["student_hidden"].detach().double().requires_grad_()
    weight = given["student_weight"].detach().double().requires_grad_()
    student = hidden @ weight[:VOCABULARY].T
    teacher = given["teacher_hidden"].double() @ given["teacher_weight"][:VOCABULARY].double().T
    divergence = DIVERGENCES[name](
        (student / temperature).log_softmax(-1), (teacher / temperature).log_softmax(-1), mix
    )
    ce = torch.nn.functional.cross_entropy(
        student, given["labels"], reduction="none", label_smoothing=smoothing, ignore_index=-100
    )
    loss = (given["divergence_weight"] * divergence * temperature**2 + given["ce_weight"] * ce).sum()
    return loss.detach(), *torch.autograd.grad(loss, (hidden, weight))


def distance(a, b):
    return ((a.double() - b).norm() / b.norm()).item()


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("student", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("teacher", [torch.float32, torch.float16])
def test_values_and_gradients_are_those_of_float64(name, student, teacher):
    given = heads(student, teacher)
    loss, _, _ = head_loss(
        **given, divergence=name, mix=0.4, temperature=1.5, label_smoothing=0.1, vocabulary=VOCABULARY
    )
    got = torch.autograd.grad(loss, (given["student_hidden"], given["student_weight"]))
    want_loss, *want = reference(given, name, 0.4, 1.5, 0.1)
    assert loss.dtype == torch.float32
    assert distance(loss.detach(), want_loss) < 1e-6
    # One rounding of dz and one of the gradient, 2^-9 and 2^-12 each; sums of float32 otherwise.
    limit = {torch.float32: 3e-6, torch.bfloat16: 5e-3, torch.float16: 1e-3}[student]
    for ours, theirs in zip(got, want, strict=True):
        assert ours.dtype == student
        assert distance(ours, theirs) < limit


def test_evaluation_has_the_bits_of_training():
    given = heads(torch.bfloat16, torch.float16)
    training = head_loss(**given, divergence="jensen_shannon", vocabulary=VOCABULARY)
    with torch.no_grad():
        evaluation = head_loss(**given, divergence="jensen_shannon", vocabulary=VOCABULARY)
    with torch.inference_mode():
        inference = head_loss(**given, divergence="jensen_shannon", vocabulary=VOCABULARY)
    assert training[0].requires_grad and not evaluation[0].requires_grad
    for a, b, c in zip(training, evaluation, inference, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


def test_float64_passes_gradcheck():
    given = heads(torch.float64, torch.float64)
    few = {k: v[:5].detach() if k not in ("student_weight", "teacher_weight") else v[:30].detach() for k, v in given.items()}
    few["labels"] = few["labels"].clamp(-100, 29)
    few["divergence_weight"], few["ce_weight"] = few["divergence_weight"].double(), few["ce_weight"].double()

    def loss(hidden, weight):
        return head_loss(**{**few, "student_hidden": hidden, "student_weight": weight}, divergence="reverse_kl")[0]

    assert torch.autograd.gradcheck(
        loss, (few["student_hidden"].requires_grad_(), few["student_weight"].requires_grad_())
    )


def test_an_accumulated_gradient_is_handed_out_once():
    given = heads(torch.float32, torch.float32)
    loss, _, _ = head_loss(**given, vocabulary=VOCABULARY)
    loss.backward()
    first = given["student_weight"].grad.clone()
    head_loss(**given, vocabulary=VOCABULARY)[0].backward()
    torch.testing.assert_close(given["student_weight"].grad, 2 * first)
    with pytest.raises(RuntimeError, match="retain_graph=True"):
        loss.backward()


def test_a_second_derivative_is_refused():
    given = heads(torch.float32, torch.float32)
    loss, _, _ = head_loss(**given, vocabulary=VOCABULARY)
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(loss, given["student_hidden"], create_graph=True)


def test_meta_has_the_shapes_of_the_real_one():
    given = {k: v.detach().to("meta").requires_grad_(v.requires_grad) for k, v in heads(torch.bfloat16, torch.float16).items()}
    loss, divergence, ce = head_loss(**given, vocabulary=VOCABULARY)
    assert loss.shape == () and divergence.shape == ce.shape == (TOKENS,)
    hidden, weight = torch.autograd.grad(loss, (given["student_hidden"], given["student_weight"]))
    assert hidden.shape == (TOKENS, STUDENT) and weight.shape == (VOCABULARY + 2, STUDENT)
    assert weight.dtype == torch.bfloat16


def test_an_unknown_divergence_is_refused_with_all_names():
    given = heads(torch.float32, torch.float32)
    with pytest.raises(RuntimeError, match=r'\[head_loss\] divergence is "kl", wanted one of none, forward_kl, .*logit_mse'):
        head_loss(**given, divergence="kl")
