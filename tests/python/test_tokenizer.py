"""Text to ids and back equals Hugging Face's tokenizers, for 10,000 lines of real text, 2,000 odd ones and six tokenizers."""

import json
import time

import pytest
import tokenizer_zoo
from limbeck_runner import run_program


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return tokenizer_zoo.real_lines()


@pytest.fixture(scope="module", params=tokenizer_zoo.FAMILIES, ids=str)
def trained(request, lines, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = tokenizer_zoo.FAMILIES[request.param](lines[::4])
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer, folder


def tokenize(limbeck, folder, texts, *flags) -> dict:
    source, output = folder / "lines.jsonl", folder / "out.json"
    source.write_text("".join(json.dumps(text) + "\n" for text in texts), encoding="utf-8")
    limbeck.run("tokenize", "--model", str(folder), "--input", str(source), "--json", str(output), *flags)
    return json.loads(output.read_text(encoding="utf-8"))["result"]


def first_difference(lines, got, wanted):
    return next(((line, g, w) for line, g, w in zip(lines, got, wanted, strict=True) if g != w), None)


@pytest.mark.parametrize("special", [True, False], ids=["special", "plain"])
def test_ids_and_streamed_text_equal_hugging_face(limbeck, lines, trained, special):
    tokenizer, folder = trained
    result = tokenize(limbeck, folder, lines, *([] if special else ["--no-special-tokens", "--skip-special-tokens"]))
    begin = time.perf_counter()
    wanted = [tokenizer.encode(line, add_special_tokens=special).ids for line in lines]
    print(f"{folder.name}: limbeck {result['seconds']:.3f} s, tokenizers {time.perf_counter() - begin:.3f} s")
    assert len(lines) == 12_000 and sum(map(len, wanted)) > 100_000
    assert first_difference(lines, result["ids"], wanted) is None
    text = ["".join(pieces) for pieces in result["pieces"]]
    assert first_difference(lines, text, [tokenizer.decode(ids, skip_special_tokens=not special) for ids in wanted]) is None


def test_every_code_point_alone_and_between_letters(limbeck, trained):
    tokenizer, folder = trained
    points = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000 and (c < 0x32000 or c % 97 == 0)]
    texts = ["".join(f"a{c}b {c}" for c in points[i : i + 64]) for i in range(0, len(points), 64)]
    got = tokenize(limbeck, folder, texts)["ids"]
    assert first_difference(texts, got, [tokenizer.encode(text).ids for text in texts]) is None


def test_a_long_line_takes_no_quadratic_time(limbeck, trained):
    tokenizer, folder = trained
    texts = ["ab" * 100_000, " " * 200_000, "a\u0301\u0323" * 50_000, "\u0301\u0323" * 50_000]
    got = tokenize(limbeck, folder, texts)
    assert got["seconds"] < 20
    assert first_difference(texts, got["ids"], [tokenizer.encode(text).ids for text in texts]) is None


def test_text_that_is_not_utf8_is_refused_with_its_place(limbeck, trained):
    _, folder = trained
    source = folder / "bad.txt"
    source.write_bytes(b"fine\nab\xff\n")
    done = run_program("tokenize", "--model", folder, "--input", source)
    assert done.returncode == 3
    assert "bad.txt:2: byte 2 (0xFF) is not UTF-8" in done.stderr
