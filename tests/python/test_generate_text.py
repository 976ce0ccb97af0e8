"""generate from text and from chats: what is printed is transformers' greedy answer, decoded."""

import json
import subprocess

import chat_template_zoo
import model_zoo
import pytest
import tokenizer_zoo
import torch
import transformers

MARGIN = 1e-3  # see test_generation.py: a wider gap between the two best logits leaves one greedy path
FRESH = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Llama with a tokenizer of its own and a chat template."""
    path = tmp_path_factory.mktemp("talker")
    tokenizer = tokenizer_zoo.llama3(tokenizer_zoo.real_lines(1000))
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    model_zoo.write_model(model_zoo.BY_NAME["llama3"], path, vocab_size=tokenizer.get_vocab_size())
    tokenizer.save(str(path / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": chat_template_zoo.CHATML, "eos_token": "<|im_end|>"}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


@pytest.fixture(scope="module")
def reference(folder):
    model = model_zoo.load(model_zoo.BY_NAME["llama3"], folder, torch.float32)
    model.generation_config.eos_token_id = None
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def greedy(model, ids: list[int]) -> list[int]:
    """transformers' new tokens; none when a near tie leaves two greedy paths."""
    prompt = torch.tensor([ids])  # the first token may be the padding token: without a mask it would count as padding
    options = dict(max_new_tokens=FRESH, do_sample=False, return_dict_in_generate=True, output_logits=True)
    out = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
    best = torch.stack(out.logits).topk(2, dim=-1).values
    return out.sequences[0, len(ids) :].tolist() if float((best[..., 0] - best[..., 1]).min()) > MARGIN else []


def answers_of(limbeck, folder, tmp_path, *flags) -> dict:
    limbeck.run("generate", f"--model={folder}", f"--max-new-tokens={FRESH}", f"--json={tmp_path / 'out.json'}", "--dtype=float32", *flags)
    return json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["result"]


# No control characters: a flag may hold none.
TEXTS = ["Once upon a time", "Größe: 你好 🤗", "def f(x):", "The quick brown fox", "import os; import", "Licence", "a b c d"]


def test_text_of_a_prompt_equals_transformers(limbeck, folder, reference, tmp_path):
    model, tokenizer = reference
    held = 0
    for text in TEXTS:
        wanted = greedy(model, tokenizer(text)["input_ids"])
        if not wanted:
            continue
        held += 1
        result = answers_of(limbeck, folder, tmp_path, f"--prompt={text}", "--ignore-eos")
        assert result["tokens"] == [wanted]
        assert result["texts"] == [tokenizer.decode(wanted, skip_special_tokens=True)]
        if held == 3:
            return
    raise AssertionError("a near tie in nearly every text")


def test_a_file_of_prompts_gives_each_its_own_answer_and_stdout_is_the_text(limbeck, folder, tmp_path):
    source = tmp_path / "prompts.jsonl"
    source.write_text("".join(json.dumps(text) + "\n" for text in TEXTS[:3]), encoding="utf-8")
    together = answers_of(limbeck, folder, tmp_path, f"--prompts={source}", "--ignore-eos")
    # one prompt alone is streamed, piece by piece
    command = [limbeck._program, "generate", f"--model={folder}", f"--max-new-tokens={FRESH}", "--dtype=float32", "--ignore-eos", "--threads=1"]
    for at, text in enumerate(TEXTS[:3]):
        done = subprocess.run([*map(str, command), f"--prompt={text}"], capture_output=True, timeout=60, check=True)
        assert done.stdout.decode() == together["texts"][at] + "\n"


def test_an_answer_ends_before_the_end_of_sequence(limbeck, folder, reference, tmp_path):
    model, tokenizer = reference
    text = next(text for text in TEXTS if greedy(model, tokenizer(text)["input_ids"]))
    wanted = greedy(model, tokenizer(text)["input_ids"])
    end = wanted[8]
    stop = wanted.index(end)
    settings = folder / "generation_config.json"
    before = settings.read_text()
    settings.write_text(json.dumps({**json.loads(before), "eos_token_id": end}))
    try:
        result = answers_of(limbeck, folder, tmp_path, f"--prompt={text}")
    finally:
        settings.write_text(before)
    assert result["tokens"][0][: stop + 1] == wanted[: stop + 1]
    assert result["texts"] == [tokenizer.decode(wanted[:stop], skip_special_tokens=True)]


def test_a_chat_equals_transformers_answer_to_its_template(limbeck, folder, reference, tmp_path):
    model, tokenizer = reference
    held = 0
    for text in TEXTS:
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        wanted = greedy(model, ids)
        if not wanted:
            continue
        held += 1
        (tmp_path / "chat.json").write_text(json.dumps(messages))
        for flags in ([f"--chat={text}", "--system=Be brief."], [f"--chats={tmp_path / 'chat.json'}"]):
            result = answers_of(limbeck, folder, tmp_path, "--ignore-eos", *flags)
            assert result["tokens"] == [wanted]
            assert result["texts"] == [tokenizer.decode(wanted, skip_special_tokens=True)]
        if held == 2:
            return
    raise AssertionError("a near tie in nearly every chat")
