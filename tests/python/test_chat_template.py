"""Chats are written as transformers writes them: the engine against Jinja2 with transformers' settings, expression by
expression, family by family and on mutated templates; then folders, from files to ids, against AutoTokenizer."""

import json
import random
import subprocess

import chat_template_expressions
import chat_template_zoo as zoo
import pytest
import tokenizer_zoo
import transformers
from limbeck_runner import LimbeckError
from transformers.utils.chat_template_utils import _compile_jinja_template

# What Limbeck refuses by name and Jinja2 renders, and why: no chat template has it, and exactness would cost much.
REFUSED_BY_NAME = {
    "{{ 1.5.real }}": "the attribute real",  # attributes of numbers
    "{{ 5 .real }}": "the attribute real",
    "{{ n is sameas n.real }}": "the attribute real",
    "{{ é }}": "a name with the letter",  # Python's identifiers follow Unicode tables of their own
    "{{ none[1:] }}": "cannot be sliced",  # Jinja2 folds constants first and forgets the TypeError
}
MUTANTS = 300


def render_by_jinja(template: str, variables: dict) -> dict:
    try:
        return {"text": _compile_jinja_template(template).render(**variables)}
    except Exception as refusal:  # noqa: BLE001: Python's own errors are how Jinja2 refuses
        return {"refused": f"{type(refusal).__name__}: {refusal}"}


@pytest.fixture(scope="module")
def render(limbeck):
    """Renders (template, variables) pairs, all in one process; a crash or a hang fails the test."""
    driver = limbeck._program.parent / "test_driver"
    assert driver.is_file(), f"no program at {driver}: cmake --build build/release --target test_driver"

    def call(pairs):
        lines = "".join(json.dumps({"template": template, "variables": variables}) + "\n" for template, variables in pairs)
        done = subprocess.run([str(driver), "templates"], input=lines.encode(), stdout=subprocess.PIPE, timeout=100, check=True)
        answers = [json.loads(line) for line in done.stdout.decode().split("\n")[:-1]]
        assert len(answers) == len(pairs)
        return answers

    return call


def differences(render, cases):
    """`cases` are (name, template, variables); where one side gives a text, the other must give the same."""
    answers = render([case[1:] for case in cases])
    wanted = [render_by_jinja(*case[1:]) for case in cases]
    refused = sum("refused" in answer for answer in wanted)
    print(f"{len(cases)} renderings, {refused} of them refused by Jinja2")
    pairs = zip(cases, answers, wanted, strict=True)
    return [(case[0], got, want) for case, got, want in pairs if got.get("text") != want.get("text")], refused


def variables_of(chat: dict, add_generation_prompt: bool) -> dict:
    out = {**zoo.SPECIAL_TOKENS, "tools": None, "documents": None, "add_generation_prompt": add_generation_prompt}
    out |= {key: value for key, value in chat.items() if key != "chat_template_kwargs"}
    return out | chat.get("chat_template_kwargs", {})


def has_address(text: str) -> bool:
    return " object at 0x" in text or " at 0x" in text


def test_expressions_equal_jinja(render):
    sources = ["{{ " + expression + " }}" for expression in chat_template_expressions.EXPRESSIONS]
    sources += chat_template_expressions.STATEMENTS
    found, refused = differences(render, [(source, source, chat_template_expressions.VARIABLES) for source in sources])
    assert len(sources) > 850 and 100 < refused < len(sources) / 3
    # What Python prints by its address no template can want: refused.
    found = [entry for entry in found if not ("refused" in entry[1] and has_address(entry[2].get("text", "")))]
    assert {source: got.get("refused", "") for source, got, _ in found}.keys() == REFUSED_BY_NAME.keys(), found
    for source, got, _ in found:
        assert REFUSED_BY_NAME[source] in got["refused"]


# What Limbeck refuses of what Jinja2 renders, in any composition: its refusal, and why there is one.
COMPOSED_REFUSALS = (
    "is not supported by Limbeck",
    "cannot be sliced",  # of constants, which Jinja2 folds: there its TypeError is forgotten and the value undefined
    "unsupported operand types for -: 'dict_keys'",  # Python's views subtract as sets do
    "has no text of its own",  # Python shows an address
)


def test_composed_expressions_equal_jinja(render):
    rng = random.Random(11)
    sources = ["{{ " + chat_template_expressions.composed(rng) + " }}" for _ in range(2000)]
    found, refused = differences(render, [(source, source, chat_template_expressions.VARIABLES) for source in sources])
    left = []
    for source, got, want in found:
        if any(kind in got.get("refused", "") for kind in COMPOSED_REFUSALS):
            continue
        # Jinja2 writes a folded infinity into its code as a name, and then does not know it.
        if want.get("refused", "") in ("NameError: name 'inf' is not defined", "NameError: name 'nan' is not defined"):
            continue
        left.append((source, got, want))
    assert left == []
    assert len(found) < 60 and refused < 1600


def test_every_character_changes_its_case_as_in_python(render):
    points = [c for c in range(0x20000) if not 0xD800 <= c < 0xE000]
    words = ["".join(f"{chr(c)}a{chr(c)} A{chr(c)}Σ" for c in points[i : i + 2048]) for i in range(0, len(points), 2048)]
    template = "{{ w.upper() }}|{{ w.lower() }}|{{ w.title() }}|{{ w | title }}|{{ w | capitalize }}|{{ w.split() | length }}"
    answers = render([(template, {"w": word}) for word in words])
    for word, answer in zip(words, answers, strict=True):
        assert answer == render_by_jinja(template, {"w": word})


@pytest.mark.parametrize("family", zoo.TEMPLATES)
def test_family_equals_transformers(render, family):
    cases = [
        (f"{name}, {prompt}", zoo.TEMPLATES[family], variables_of(chat, prompt))
        for name, chat in zoo.CHATS.items()
        for prompt in (True, False)
    ]
    found, refused = differences(render, cases)
    assert found == []
    assert refused < len(cases) * 0.6, "most chats must be rendered, not refused"


def test_mutated_templates_give_the_same_text_or_are_refused_by_both(render):
    cases = []
    for seed in range(MUTANTS):
        chat = zoo.CHATS[random.Random(seed).choice(list(zoo.CHATS))]
        cases.append((seed, zoo.mutated(seed), variables_of(chat, True)))
    found, refused = differences(render, cases)
    # No kind of difference is allowed here; one that Limbeck refuses by name (see REFUSED_BY_NAME) would be listed.
    assert [entry for entry in found if "is not supported by Limbeck" not in entry[1].get("refused", "")] == []
    assert len(found) < MUTANTS / 50 and MUTANTS / 5 < refused < MUTANTS * 0.9


def test_dates_are_of_now(render):
    template = "{{ strftime_now('%Y-%m-%d %j %A %B %%') }}"
    before = render_by_jinja(template, {})
    assert render([(template, {})])[0] in (before, render_by_jinja(template, {}))  # midnight may pass


@pytest.mark.parametrize(
    "template,variables,message",
    [
        ("a\nb {{ x.y }}", {}, "template:2: 'x' is undefined"),
        ("\n\n{{ raise_exception('only user') }}", {}, "template:3: the template refuses these messages: \"only user\""),
        ("{{ x | batch(2) }}", {}, "template:1: the filter batch is not supported by Limbeck"),
        ("{% for x in y recursive %}{% endfor %}", {}, "template:1: a recursive for is not supported by Limbeck"),
        ("{% block x %}{% endblock %}", {}, "template:1: {% block %} is not supported by Limbeck"),
        ("{{ x + 1 }}", {"x": "a"}, "template:1: unsupported operand types for +: 'str' and 'int'"),
        ("{{ 2 ** 64 }}", {}, "template:1: an integer beyond 64 bits is not supported by Limbeck"),
        ("{{ cycler('a') }}", {}, "template:1: `cycler` is not supported by Limbeck"),
        ("{% if x %}\n", {}, "unexpected end of the template, wanted {% endif %}"),
    ],
)
def test_refusals_name_the_line_and_what_is_wrong(render, template, variables, message):
    assert message in render([(template, variables)])[0]["refused"]


# --- from a folder to ids


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    tokenizer = tokenizer_zoo.qwen(tokenizer_zoo.real_lines(1000))
    tokenizer.add_special_tokens(["<s>", "</s>", "<|im_start|>", "<|im_end|>"])
    path = tmp_path_factory.mktemp("trained") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def make_folder(folder, trained, settings, files=()):
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(trained.read_text(encoding="utf-8"), encoding="utf-8")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    for name, text in dict(files).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


ADDED = {"__type": "AddedToken", "content": "</s>", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
FOLDERS = {
    "in the settings": ({"chat_template": zoo.LLAMA2, "bos_token": "<s>", "eos_token": ADDED}, {}),
    "a file of its own": ({"chat_template": "not this", "bos_token": None, "eos_token": "</s>"}, {"chat_template.jinja": zoo.CHATML + "\r\n{{ eos_token }}{{ bos_token }}"}),
    "by name": ({"chat_template": [{"name": "tool_use", "template": zoo.QWEN25}, {"name": "default", "template": zoo.QWEN3}]}, {}),
    "additional files": ({"chat_template": zoo.LLAMA2}, {"chat_template.jinja": zoo.PHI3, "additional_chat_templates/tool_use.jinja": zoo.QWEN25}),
    "an old map": ({"chat_template": "{{ bos_token }}{{ image_token }}" + zoo.GEMMA3, "bos_token": "<x>"},
                   {"special_tokens_map.json": json.dumps({"bos_token": {"content": "<s>"}, "image_token": "<|im_end|>"})}),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOLDERS)
def test_text_and_ids_of_a_folder_equal_auto_tokenizer(limbeck, trained, tmp_path, kind):
    folder = make_folder(tmp_path / "model", trained, *FOLDERS[kind])
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    names = ["hello", "system", "turns", "spaces", "unicode", "hostile", "thinks"] + (["tools", "tool call"] if "settings" not in kind else [])
    chats = [zoo.CHATS[name] for name in names if kind == "by name" or name != "tool call"]
    source, output = tmp_path / "chats.jsonl", tmp_path / "out.json"
    source.write_text("".join(json.dumps(chat) + "\n" for chat in chats), encoding="utf-8")
    for flags, prompt in (([], True), (["--no-generation-prompt"], False)):
        limbeck.run("tokenize", "--model", str(folder), "--chats", str(source), "--json", str(output), *flags)
        result = json.loads(output.read_text(encoding="utf-8"))["result"]
        for at, chat in enumerate(chats):
            wanted = {"tools": chat.get("tools"), "add_generation_prompt": prompt}
            text = reference.apply_chat_template(chat["messages"], tokenize=False, **wanted)
            assert result["texts"][at] == text
            assert result["ids"][at] == reference.apply_chat_template(chat["messages"], return_dict=False, **wanted)


def test_forms_of_chats_are_the_same_chat(limbeck, trained, tmp_path):
    folder = make_folder(tmp_path / "model", trained, {"chat_template": zoo.CHATML})
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "Größe?"}]
    forms = {
        "one.json": messages,
        "object.json": {"messages": messages},
        "many.json": [messages, messages],
        "objects.json": [{"messages": messages}],
    }
    texts = set()
    for name, value in forms.items():
        (tmp_path / name).write_text(json.dumps(value), encoding="utf-8")
        limbeck.run("tokenize", f"--model={folder}", f"--chats={tmp_path / name}", f"--json={tmp_path / 'out.json'}")
        found = json.loads((tmp_path / "out.json").read_text())["result"]["texts"]
        assert len(found) == (2 if name == "many.json" else 1)
        texts.update(found)
    limbeck.run("tokenize", f"--model={folder}", "--chat=Größe?", "--system=S", f"--json={tmp_path / 'out.json'}")
    texts.update(json.loads((tmp_path / "out.json").read_text())["result"]["texts"])
    assert texts == {"<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nGröße?<|im_end|>\n<|im_start|>assistant\n"}


REFUSED_COMMANDS = {
    "two sources": (["--chat=a", "--chats=c.json"], "wanted one of"),
    "system alone": (["--prompt=a", "--system=b"], "--system: is the system message of a chat, wanted with --chat"),
    "special tokens": (["--chat=a", "--no-special-tokens"], "leave this switch out"),
    "system twice": (["--chats=system.json", "--system=b"], "begins with a message of the role system, wanted none, because --system gives it"),
    "no messages": (["--chats=none.json"], "none.json: has no messages, wanted at least one"),
    "no role": (["--chats=role.jsonl"], "role.jsonl:2: message 1: has no \"role\" that is a string"),
    "unknown key": (["--chats=key.json"], "has the key \"tool\", wanted messages, tools, documents"),
    "big integer": (["--chats=big.json"], "the integer \"100000000000000000000\" is beyond 64 bits"),
    "other ending": (["--chats=c.txt"], "c.txt: is neither a .json nor a .jsonl file"),
    "refused by the template": (["--chats=two.json"], "chat_template\":6: the template refuses these messages: \"Conversation roles must"),
}  # fmt: skip
FILES = {
    "c.json": "[]", "c.txt": "hi", "none.json": "[]", "role.jsonl": '[{"role":"user","content":""}]\n[{"content":"a"}]\n',
    "system.json": '[{"role":"system","content":"x"}]', "key.json": '{"messages":[{"role":"user","content":""}],"tool":[]}',
    "big.json": '[{"role":"user","content":100000000000000000000}]',
    "two.json": '[{"role":"user","content":"a"},{"role":"user","content":"b"}]',
}  # fmt: skip


def test_what_makes_no_sense_is_refused_before_the_model_is_read(limbeck, trained, tmp_path):
    template = "\n\n" + zoo.GEMMA.replace("{{ bos_token }}", "\n{{ bos_token }}")
    folder = make_folder(tmp_path / "model", trained, {"chat_template": template})  # without weights
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    for name, (flags, message) in REFUSED_COMMANDS.items():
        flags = [flag.replace("--chats=", f"--chats={tmp_path}/") for flag in flags]
        with pytest.raises(LimbeckError) as refusal:
            limbeck.run("generate", f"--model={folder}", *flags)
        assert message in str(refusal.value), name


def test_a_folder_without_a_template_says_so_and_names_prompt(limbeck, trained, tmp_path):
    folder = make_folder(tmp_path / "model", trained, {})
    with pytest.raises(LimbeckError, match=r"exit 4: .*\n.*has no chat template, wanted chat_template.jinja or .*--prompt=TEXT"):
        limbeck.run("generate", f"--model={folder}", "--chat=hi")
