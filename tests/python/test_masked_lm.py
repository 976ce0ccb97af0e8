"""Masked language models end to end: what is hidden, what is learned from it, what is saved, and what is refused."""

import json
import sys

import pytest
import torch
import transformers
import warm_python
from limbeck_runner import REPOSITORY, Limbeck, LimbeckError
from rank_processes import Ranks
from safetensors.torch import load_file
from training_work import Outcome, newest_checkpoint


VOCABULARY = 512
DISTILBERT = {"objective.alpha": 0.625, "objective.ce_weight": 0.25, "objective.feature_weight": 0.125,
              "objective.temperature": 2, "objective.hidden_loss": "cosine", "objective.hidden_projector": "none"}  # fmt: skip
ALONE = {"objective.alpha": 0, "objective.ce_weight": 0.25}  # the same without its teacher's terms


def tool(name, *arguments):
    warm_python.completed([REPOSITORY / "tools" / name, *arguments], code=0)


def config(layers, **more):
    return transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=96, intermediate_size=192, num_hidden_layers=layers, num_attention_heads=4,
        max_position_embeddings=64, pad_token_id=0, initializer_range=0.05, **more,
    )  # fmt: skip


class Masked:
    """A folder with text as word pieces, a small model, and the runs made from them."""

    def __init__(self, folder):
        self.folder = folder
        tool("prepare_data.py", "--quiet", "--from-python-stdlib", "--train-vocabulary", VOCABULARY, "--train-kind",
             "wordpiece", "--special-tokens", "--no-append-eos", "--validation-fraction", 0.1, "--max-documents", 150,
             "--train-characters", 1_000_000, "--out", folder / "data")  # fmt: skip
        torch.manual_seed(3)
        transformers.BertForMaskedLM(config(4)).save_pretrained(folder / "start")

    def recipe(self, name, **keys):
        values = {"data.train": self.folder / "data/train", "data.validation": self.folder / "data/validation",
                  "data.packing": "padded", "data.long_documents": "split", "data.sequence_length": 48,
                  "data.batch_size": 4, "data.masking": "whole_word", "optim.weight_decay": 0.01,
                  "eval.batches": 6, **{key.replace("__", "."): value for key, value in keys.items()}}  # fmt: skip
        lines = []
        for section in dict.fromkeys(key.split(".")[0] for key in values):
            lines += [f"[{section}]", *(f"{k.split('.', 1)[1]} = {v}" for k, v in values.items() if k.split(".")[0] == section)]
        path = self.folder / f"{name}.ini"
        path.write_text("\n".join(lines) + "\n")
        return path

    def train(self, name, *flags, **keys):
        run = self.folder / f"run-{name}"
        Limbeck(timeout=300).run("train", str(self.recipe(name, **keys)), f"--run={run}", *flags)
        return run

    def short(self, **more):
        """A few updates, with everything that DistilBERT's recipe has."""
        return {"teacher.model": self.folder / "start", "student.model": self.folder / "half", **DISTILBERT,
                "optim.learning_rate": 1e-3, "train.steps": "6 steps", "eval.every": 3, "train.log_every": 1,
                "checkpoint.every": 3, "parallel.reduce": "tree", "train.accumulate": 2, **more}  # fmt: skip


@pytest.fixture(scope="module")
def work(tmp_path_factory, limbeck):
    made = Masked(tmp_path_factory.mktemp("masked"))
    tool("take_layers.py", made.folder / "start", made.folder / "half", "--layers", "0,2")
    return made


def perplexities(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["perplexity"] for line in lines if line["phase"] == "eval"]


def test_a_saved_student_is_transformers_own_model(work, limbeck):
    run = work.train("saved", **work.short())
    own = transformers.BertForMaskedLM.from_pretrained(run / "final", output_loading_info=True)
    model, info = own
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    names = set(load_file(work.folder / "half" / "model.safetensors"))
    assert set(load_file(run / "final" / "model.safetensors")) == names and "cls.predictions.decoder.weight" not in names
    ids = torch.randint(5, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = model.eval()(ids).logits
    torch.testing.assert_close(limbeck.forward(run / "final", {"input_ids": ids})["logits"], wanted, atol=1e-5, rtol=1e-5)


def test_resumed_and_on_two_ranks_the_bits_are_the_same(work):
    whole = work.train("whole", **work.short())
    parts = work.folder / "run-parts"
    recipe = work.recipe("parts", **work.short())
    with Ranks(2, recipe, f"--run={parts}", "--parallel.zero=3", "--quiet") as ranks:
        ranks.end(120).well()
    assert Outcome.of(whole).differences(Outcome.of(parts)) == []
    resumed = work.folder / "run-resumed"
    first = sorted((whole / "checkpoints").glob("step-*"))[0]
    assert first != newest_checkpoint(whole)
    Limbeck().run("train", str(work.recipe("resumed", **work.short())), f"--run={resumed}", f"--resume={first}")
    a, b = load_file(whole / "final" / "model.safetensors"), load_file(resumed / "final" / "model.safetensors")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_evaluation_hides_the_same_words_whatever_seed_and_batch(work, limbeck, tmp_path):
    found = []
    for number, flags in enumerate((["--seed=1"], ["--seed=2", "--data.batch_size=32"])):
        out = tmp_path / f"{number}.json"
        recipe = work.recipe("eval", **(work.short() | {"eval.batches": 0, "data.batch_size": 24}))
        limbeck.run("eval", str(recipe), *flags, f"--json={out}")
        found.append(json.loads(out.read_text())["result"])
    one, two = found
    assert one["targets"] == two["targets"] > 1000
    assert one["perplexity"] == pytest.approx(two["perplexity"], rel=1e-5)
    assert one["accuracy"] == two["accuracy"] and "teacher_accuracy" in one
    assert 0.5 * VOCABULARY < one["perplexity"] < 2 * VOCABULARY  # random weights


def test_lora_on_the_head_trains_and_computes_the_same_in_peft(work, limbeck):
    import peft

    keys = work.short() | {"adapter.kind": "lora", "adapter.target": "dense", "parallel.reduce": "fast"}
    run = work.train("lora", **keys)
    base = transformers.BertForMaskedLM.from_pretrained(work.folder / "half")
    model = peft.PeftModel.from_pretrained(base, run / "final").eval()
    ids = torch.randint(5, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = model(input_ids=ids).logits
    got = limbeck.forward(work.folder / "half", {"input_ids": ids}, adapter=run / "final")["logits"]
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
    assert "cls.predictions.transform.dense" in " ".join(load_file(run / "final" / "adapter_model.safetensors"))


@pytest.mark.parametrize(
    "command, flags, said",
    [
        ("check", ["--data.masking=none"], "set data.masking = whole_word"),
        ("train", ["--data.masking=none"], "set data.masking = whole_word"),
        ("check", ["--student.model={folder}/llama"], "predicts the next token"),
        ("check", ["--data.mask_replaced=0.95"], "a sum of at most 1"),
    ],
)
def test_refusals_come_before_anything_runs(work, command, flags, said):
    if not (work.folder / "llama").exists():
        transformers.LlamaForCausalLM(transformers.LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        )).save_pretrained(work.folder / "llama")  # fmt: skip
    recipe = work.recipe("refused", **work.short())
    run = [f"--run={work.folder / 'refused'}"] if command == "train" else []
    with pytest.raises(LimbeckError, match="exit 2") as failure:
        Limbeck().run(command, str(recipe), *run, *(flag.format(folder=work.folder) for flag in flags))
    assert said in str(failure.value)


def test_generate_says_what_the_model_is(work):
    with pytest.raises(LimbeckError, match="exit 2") as failure:
        Limbeck().run("generate", f"--model={work.folder / 'half'}", "--prompt-ids=5,6")
    assert "writes no text from left to right" in str(failure.value)


def words_of(tokenizer, folder):
    """A manifest's tokenizer entry, as ids that go on with a word; None where it does not say."""
    sys.path.insert(0, str(REPOSITORY / "tools"))
    from token_shards.tokenizer_file import TokenizerFile

    tokenizer.save(str(folder / "tokenizer.json"))
    return TokenizerFile(folder / "tokenizer.json").continuing_ids()


def test_a_tokenizer_says_which_tokens_go_on_with_a_word_or_nothing_is_written(tmp_path):
    import tokenizers

    models, before = tokenizers.models, tokenizers.pre_tokenizers
    pieces = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "play": 1, "##ing": 2, "##s": 3}, unk_token="[UNK]"))
    assert words_of(pieces, tmp_path) == [2, 3]
    names = {"a": 0, "b": 1, "\u0120a": 2, "\u010a": 3, "\u0120": 4}
    byte_level = tokenizers.Tokenizer(models.BPE(names, [("\u0120", "a")]))
    byte_level.pre_tokenizer = before.Sequence([before.Digits(), before.ByteLevel(add_prefix_space=False)])
    assert words_of(byte_level, tmp_path) == [0, 1]
    sentence_piece = tokenizers.Tokenizer(models.Unigram([("<unk>", 0.0), ("\u2581a", -1.0), ("b", -1.0)], unk_id=0))
    sentence_piece.pre_tokenizer = before.Metaspace()
    sentence_piece.add_special_tokens(["<unk>"])
    assert words_of(sentence_piece, tmp_path) == [2]
    assert words_of(tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1}, [])), tmp_path) is None


def test_two_layers_distilled_from_four_fill_in_better_than_trained_alone(work):
    """From every second layer of the teacher, at equal steps, seed, batches and hidden words; on real text."""
    teacher = work.train("teacher", **{
        "student.model": work.folder / "start", "student.init": "random", "objective.alpha": 0, "objective.ce_weight": 1,
        "data.batch_size": 32, "optim.learning_rate": 1e-3, "optim.warmup": "20 steps",
        "train.steps": "400 steps", "eval.every": 400,
    })  # fmt: skip
    tool("take_layers.py", teacher / "final", work.folder / "taken", "--layers", "0,2")
    keys = {"student.model": work.folder / "taken", "data.batch_size": 16, "optim.learning_rate": 5e-4,
            "optim.warmup": "10 steps", "train.steps": "40 steps", "eval.every": 10}  # fmt: skip
    distilled = perplexities(work.train("distilled", **keys, **DISTILBERT, **{"teacher.model": teacher / "final"}))
    alone = perplexities(work.train("alone", **keys, **ALONE))
    print(f"teacher {perplexities(teacher)}, distilled {distilled}, alone {alone}")
    assert distilled[-1] < distilled[0] and distilled[-1] < alone[-1]
