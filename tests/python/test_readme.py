"""README's "your own chats, in ten lines", typed as it stands, on two small models in the cache under the names it uses; and what
README and its pages in docs/ point at is there."""

import json
import os
import re
import subprocess
from pathlib import Path

import tokenizer_zoo
import torch
import transformers
from limbeck_runner import REPOSITORY

CHATML = (
    "{% for message in messages %}<|begin|>{{ message.role }}\n{{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|begin|>assistant\n{% endif %}"
)
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
ASKED = {"role": "user", "content": "What is a limbeck?"}
ANSWERED = {"role": "assistant", "content": "A vessel in which spirit is distilled."}


def lines_under(heading: str) -> list[str]:
    """The fenced blocks of one section."""
    section = (REPOSITORY / "README.md").read_text().split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"^```\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def cached_models(hub: Path, names: list[str]) -> None:
    lines = [f"{message['role']}\n{message['content']}" for message in (ASKED, ANSWERED)] * 20
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer_zoo.qwen(lines), eos_token="<|end|>", chat_template=CHATML
    )
    for layers, name in zip((3, 1), names, strict=True):
        repository = hub / f"models--{name.replace('/', '--')}"
        snapshot = repository / "snapshots" / ("a" * 40)
        torch.manual_seed(layers)
        config = transformers.Qwen2Config(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=layers,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
            eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
        )  # fmt: skip
        transformers.Qwen2ForCausalLM(config).save_pretrained(snapshot)
        tokenizer.save_pretrained(snapshot)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("a" * 40)


def test_your_own_chats_in_ten_lines(limbeck, tmp_path):
    block, *_ = lines_under("Your own chats, in ten lines")
    assert len(block.splitlines()) <= 10
    names = sorted(set(re.findall(r"Qwen/[\w.-]+", block)), reverse=True)
    cached_models(tmp_path / "hub", names)
    place = tmp_path / "place"
    place.mkdir()
    for name in (".venv", "tools", "build"):
        (place / name).symlink_to(REPOSITORY / name)
    asked = [ASKED | {"content": f"{number}. {ASKED['content']}"} for number in range(1000)]
    chats = [json.dumps({"messages": [question, ANSWERED]}) for question in asked]
    (place / "chats.jsonl").write_text("\n".join(chats) + "\n")

    program = Path(os.environ.get("LIMBECK_BIN", limbeck._program)).resolve().parent
    typed = block.replace("$PWD/build/release/bin", str(program))  # where this test's build is
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", typed], cwd=place, capture_output=True, text=True, timeout=300,
                          env=os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"})  # fmt: skip
    print(done.stdout[-3000:], done.stderr[-3000:])
    assert done.returncode == 0
    assert (place / "runs/mine/report.html").stat().st_size > 10_000
    events = [json.loads(line) for line in (place / "runs/mine/metrics.jsonl").read_text().splitlines()]
    assert {"train", "eval"} <= {event["phase"] for event in events} and all("step" in event for event in events)
    transformers.AutoModelForCausalLM.from_pretrained(place / "runs/mine/best")
    assert done.stdout.rstrip().splitlines()[-1].strip()  # an answer


def anchors(page: Path) -> list[str]:
    """What GitHub makes of headings; of two that are alike the second is NAME-1."""
    prose = re.sub(r"^```\n.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    names: list[str] = []
    for heading in re.findall(r"^#+ (.+)$", prose, re.MULTILINE):
        name = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        before = sum(re.fullmatch(rf"{re.escape(name)}(-\d+)?", other) is not None for other in names)
        names.append(f"{name}-{before}" if before else name)
    return names


def test_every_link_leads_somewhere():
    links = [(page, target) for page in PAGES for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text())]
    assert len(links) > 40
    for page, target in links:
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        place = (page.parent / file).resolve() if file else page
        assert place.is_file(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(place), f"{page.name}: {target}"
    led_to = {(page.parent / target.partition("#")[0]).resolve() for page, target in links}
    assert [page.name for page in PAGES[1:] if page not in led_to] == []


def test_every_proof_is_there():
    """`tests/python/test_a.py`, `test_b.py`: the second lies beside one that is named with its folder."""
    named = {name for page in PAGES for name in re.findall(r"`((?:tests|tools|recipes)/[\w./*-]+)[` ]", page.read_text())}
    assert len(named) > 100
    assert [name for name in sorted(named) if not list(REPOSITORY.glob(name.rstrip("/")))] == []
    beside = {name for page in PAGES for name in re.findall(r"`(\w+_test\.cpp|test_\w+\.py)`", page.read_text())}
    assert len(beside) > 30
    assert [name for name in sorted(beside) if not list((REPOSITORY / "tests").glob(f"*/{name}"))] == []
