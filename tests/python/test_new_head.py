"""A classifier begun from an encoder that never had one: its config by tools/as_classifier.py, its head drawn by
student.init = new_head, its training equal to a plain PyTorch loop, its accuracy and macro F1 to their formulas."""

import json

import pytest
import token_rows
import torch
import torch.nn.functional as F
import torch_distiller
import transformers
import warm_python
from limbeck_runner import REPOSITORY, Limbeck, LimbeckError, run_program
from safetensors.torch import load_file

VOCABULARY, LENGTH, ROWS, STEPS = 120, 20, 4, 20
NAMES = ["red", "green", "blue", "none of them", "größer"]
SIZES = {
    "bert": {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 3},
    "distilbert": {"vocab_size": VOCABULARY, "dim": 32, "hidden_dim": 48, "n_heads": 4, "n_layers": 3},
}
DRAWN = {"bert": {"classifier.weight", "classifier.bias"},
         "distilbert": {"pre_classifier.weight", "pre_classifier.bias", "classifier.weight", "classifier.bias"}}  # fmt: skip
EACH = pytest.mark.parametrize("kind", SIZES)
NEARLY_NOTHING = 1e-30  # a learning rate that changes no weight, and the zeros of a bias by less than any logit shows


def tool(*arguments):
    return warm_python.completed([REPOSITORY / "tools" / "as_classifier.py", *arguments], timeout=60)


def class_of(document):
    """Three of the five classes, as the first word has it: the fourth and the fifth are never gold."""
    return document[0] * 3 // VOCABULARY


class Start:
    """An encoder, the classifier's folder made of it, data, and a recipe over them."""

    def __init__(self, kind, folder):
        self.folder = folder
        torch.manual_seed(7)
        config = transformers.CONFIG_MAPPING[kind](**SIZES[kind])
        self.encoder = transformers.AutoModel.from_config(config)
        with torch.no_grad():
            for parameter in self.encoder.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        self.encoder.save_pretrained(folder / "encoder")
        done = tool(folder / "encoder", folder / "start", "--labels", ",".join(NAMES))
        assert done.returncode == 0, done.stderr
        self.documents = token_rows.random_documents(ROWS * STEPS, 6, LENGTH, VOCABULARY, seed=3)
        self.held_out = token_rows.random_documents(50, 6, LENGTH, VOCABULARY, seed=4)
        for name, documents in (("train", self.documents), ("validation", self.held_out)):
            token_rows.write(folder / name, documents, VOCABULARY, [class_of(document) for document in documents])
        self.recipe = folder / "recipe.ini"
        self.recipe.write_text(f"""seed = 11
[student]
model = start
init = new_head
[data]
train = train
validation = validation
batch_size = {ROWS}
sequence_length = {LENGTH}
packing = padded
shuffle = no
[objective]
alpha = 0
[optim]
learning_rate = 2e-3
schedule = constant
weight_decay = 0.01
[train]
steps = {STEPS} steps
""")

    def train(self, name, *flags):
        Limbeck().run("train", str(self.recipe), f"--run={self.folder / name}", *flags)
        lines = [json.loads(line) for line in (self.folder / name / "metrics.jsonl").read_text().splitlines()]
        return self.folder / name / "final", lines


@pytest.fixture(scope="module")
def starts(tmp_path_factory):
    return {kind: Start(kind, tmp_path_factory.mktemp(kind)) for kind in SIZES}


@pytest.fixture(scope="module")
def begun(starts):
    """Each as it begins, saved: after an update that changes nothing."""
    return {kind: start.train("begun", f"--optim.learning_rate={NEARLY_NOTHING}", "--optim.weight_decay=0", "--train.steps=1 steps")[0]
            for kind, start in starts.items()}  # fmt: skip


def classifier(folder):
    return transformers.AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()


@EACH
def test_the_encoder_is_as_it_was_and_the_head_is_drawn(starts, begun, kind):
    model, encoder = classifier(begun[kind]), starts[kind].encoder.state_dict()
    assert [model.config.id2label[i] for i in range(5)] == NAMES
    theirs = {name.removeprefix(model.base_model_prefix + "."): value for name, value in model.state_dict().items()}
    for name, value in encoder.items():
        if "position_ids" not in name:
            torch.testing.assert_close(theirs[name], value, rtol=0, atol=1e-29)
    assert {name for name in theirs if name not in encoder} == DRAWN[kind]
    for name in DRAWN[kind]:
        if name.endswith("bias"):
            assert float(theirs[name].abs().max()) < 1e-29
        else:
            # 160 to 1024 numbers of deviation 0.02: their own deviation strays by less than a fifth of it
            assert theirs[name].std() == pytest.approx(0.02, rel=0.2) and abs(float(theirs[name].mean())) < 0.006


@EACH
def test_logits_equal_transformers(starts, begun, kind):
    batch = token_rows.padded_batches(starts[kind].held_out, 10, LENGTH)[0]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    got = Limbeck().forward(begun[kind], inputs)["logits"]
    with torch.no_grad():
        torch.testing.assert_close(got, classifier(begun[kind])(**inputs).logits, rtol=0, atol=1e-5)


@EACH
def test_training_equals_a_plain_torch_loop(starts, begun, kind):
    start, model = starts[kind], classifier(begun[kind])
    _, lines = start.train("trained")
    settings = torch_distiller.Settings(learning_rate=2e-3, schedule="constant", weight_decay=0.01)
    optimizer = torch_distiller.make_optimizer(model, settings)
    wanted, norms = [], []
    for number, batch in enumerate(token_rows.padded_batches(start.documents, ROWS, LENGTH)):
        gold = torch.tensor([class_of(document) for document in start.documents[number * ROWS : (number + 1) * ROWS]])
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits, gold)
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        optimizer.step()
        wanted.append(float(loss.detach()))
    trained = [line for line in lines if line["phase"] == "train"]
    assert len(wanted) == STEPS == len(trained)
    assert [line["loss"] for line in trained] == pytest.approx(wanted, rel=1e-4)
    assert [line["grad_norm"] for line in trained] == pytest.approx(norms, rel=1e-3)
    assert sum(wanted[-5:]) < 0.9 * sum(wanted[:5])  # it learns


@EACH
def test_accuracy_and_macro_f1_are_their_formulas(starts, kind):
    """As scikit-learn's f1_score(average="macro") and accuracy_score, with classes that are never gold among the five."""
    start = starts[kind]
    if not (start.folder / "trained" / "final").is_dir():
        start.train("trained")
    out = start.folder / "eval.json"
    Limbeck().run("eval", str(start.recipe), f"--run={start.folder / 'trained'}", f"--checkpoint={start.folder / 'trained' / 'final'}",
                  f"--json={out}")  # fmt: skip
    result = json.loads(out.read_text())["result"]
    model, predicted = classifier(start.folder / "trained" / "final"), []
    for document in start.held_out:
        with torch.no_grad():
            predicted.append(int(model(input_ids=torch.tensor([document])).logits.argmax()))
    gold = [class_of(document) for document in start.held_out]
    scores = []
    for one in sorted(set(gold) | set(predicted)):
        right = sum(g == p == one for g, p in zip(gold, predicted))
        precision = right / max(1, predicted.count(one))
        recall = right / max(1, gold.count(one))
        scores.append(2 * precision * recall / (precision + recall) if right else 0.0)
    assert result["accuracy"] == pytest.approx(sum(g == p for g, p in zip(gold, predicted)) / len(gold), abs=1e-12)
    assert result["macro_f1"] == pytest.approx(sum(scores) / len(scores), abs=1e-12)
    assert 3 <= len(scores) <= 5 and result["targets"] == len(gold)


@EACH
def test_a_run_says_what_it_drew(starts, kind):
    start = starts[kind]
    done = run_program("train", str(start.recipe), f"--run={start.folder / 'said'}", "--train.steps=1 steps")
    assert done.returncode == 0, done.stderr
    [line] = [line for line in (done.stdout + done.stderr).splitlines() if "drawn" in line]
    before, _, names = line.partition("drawn from seed 11, not read: ")
    assert "student.init = new_head" in before and "recipe.ini:4" in before
    assert set(names.split(", ")) == DRAWN[kind]


def test_a_head_that_is_evaluated_as_drawn_is_said_to_be(starts):
    """Whoever names a trained folder and leaves new_head in the recipe would measure chance."""
    start = starts["bert"]
    if not (start.folder / "trained" / "final").is_dir():
        start.train("trained")
    final = f"--student.model={start.folder / 'trained' / 'final'}"
    drawn = run_program("eval", str(start.recipe), final)
    assert drawn.returncode == 0 and "the head is as it was drawn, untrained (student.init = new_head" in drawn.stderr, drawn.stderr
    assert "recipe.ini:4" in drawn.stderr and "--student.init=weights" in drawn.stderr
    trained = run_program("eval", str(start.recipe), final, "--student.init=weights")
    assert trained.returncode == 0 and "untrained" not in trained.stderr
    quick = {"sweep": (f"--run={start.folder / 'swept'}", "--eval.batches=1"),
             "profile": ("--precisions=float32", "--work=forward", "--devices=cpu", "--profile.warmup=0", "--profile.measured=1",
                         "--profile.trials=1", "--profile.energy=off")}  # fmt: skip
    for command, flags in quick.items():
        drawn = run_program(command, str(start.recipe), final, "--student.dtype=float32", *flags)
        assert drawn.returncode == 0 and "the head is as it was drawn, untrained (student.init = new_head" in drawn.stderr, drawn.stderr
        assert "recipe.ini:4" in drawn.stderr


def test_what_the_head_must_not_be(starts):
    start, encoder = starts["bert"], starts["bert"].folder / "encoder"
    for flags, said in (
        ([f"--student.model={encoder}"], "is of no classifier, wanted \"architectures\" that end in ForSequenceClassification"),
        (["--adapter.kind=lora"], "draws a head that must be trained, and an adapter"),
        (["--teacher.init=new_head"], "teacher.init"),
    ):
        for command in ("check", "train"):
            with pytest.raises(LimbeckError, match="exit 2") as failure:
                Limbeck().run(command, str(start.recipe), *flags, *([f"--run={start.folder / 'refused'}"] if command == "train" else []))
            assert said in str(failure.value)
    with pytest.raises(LimbeckError, match="exit 4") as failure:
        Limbeck().run("train", str(start.recipe), "--student.init=weights", f"--run={start.folder / 'refused'}")
    assert "student.init = new_head draws a new head over the encoder" in str(failure.value)
    many = token_rows.write(start.folder / "many", start.held_out[:9], VOCABULARY, list(range(9)))
    with pytest.raises(LimbeckError, match="exit 2") as failure:
        Limbeck().run("train", str(start.recipe), f"--data.train={many}", f"--run={start.folder / 'refused'}")
    assert "has documents of 9 classes" in str(failure.value) and "tells 5 apart" in str(failure.value)
    assert not list((start.folder / "refused").glob("metrics*"))


def test_the_tool_keeps_weights_and_config(starts, tmp_path):
    start = starts["distilbert"]
    before, after = (json.loads((start.folder / name / "config.json").read_text()) for name in ("encoder", "start"))
    assert after["architectures"] == ["DistilBertForSequenceClassification"]
    assert after["label2id"] == {name: i for i, name in enumerate(NAMES)} and after["id2label"]["3"] == "none of them"
    changed = {"architectures", "label2id", "id2label", "_name_or_path"}
    assert {k: v for k, v in before.items() if k not in changed} == {k: v for k, v in after.items() if k not in changed}
    one, two = (load_file(start.folder / name / "model.safetensors") for name in ("encoder", "start"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "config.json").write_text(json.dumps(before))
    done = tool(tmp_path / "alone", tmp_path / "made", "--labels=a,b")
    assert done.returncode == 0 and "--student.init=random" in done.stdout


@pytest.mark.parametrize(
    "change, labels, code, said",
    [
        ({"model_type": "llama"}, "a,b", 4, "model_type 'llama', wanted an encoder: bert, distilbert"),
        ({"model_type": ["bert"]}, "a,b", 4, "model_type ['bert'], wanted an encoder"),
        ({}, "a", 2, "--labels a: wanted two names or more, each once, such as no,yes"),
        ({}, "a,b,a", 2, "--labels a,b,a: wanted two names or more, each once"),
        ({}, "a,", 2, "--labels a,: wanted two names or more"),
    ],
)
def test_the_tool_refuses_in_one_line(tmp_path, change, labels, code, said):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "bert"} | change))
    done = tool(tmp_path / "model", tmp_path / "out", f"--labels={labels}")
    assert done.returncode == code and said in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "out").exists()
