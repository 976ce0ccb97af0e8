"""What a stranger's file, a mistyped path or a small machine can do to the program: one line, the right exit code, and
nothing lost that was there before."""

import hashlib
import json
import os
import resource
import stat
import subprocess
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_command_line import LIMBECK, limbeck, plugins, refused  # noqa: F401
from test_bad_input_matrix import KEYS
from training_work import VOCABULARY, Work, checkpoints, llama, saved

from limbeck_runner import Limbeck

IDS = {"input_ids": torch.arange(6).reshape(1, 6)}
SECONDS = 20  # what anything of a stranger's may take at most


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Work:
    return Work(tmp_path_factory.mktemp("hostile"), Limbeck())


@pytest.fixture
def folder(work, tmp_path):
    """A model, ids for it, and a LoRA adapter folder without weights."""
    saved(work.student, tmp_path / "model")
    save_file(IDS, tmp_path / "in.safetensors")
    return tmp_path


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def forward(folder, output, *more):
    return ("forward", "--model", folder / "model", "--input", folder / "in.safetensors", "--output", output, *more)


# Outputs


@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_an_output_never_replaces_what_is_no_regular_file(folder, kind):
    node = folder / "node"
    if kind == "fifo":
        os.mkfifo(node)
    else:
        try:
            os.mknod(node, 0o666 | stat.S_IFCHR, os.makedev(1, 7))
        except PermissionError:
            pytest.skip("making a device node needs root")
    before = node.stat()
    name = "a FIFO" if kind == "fifo" else "a device"
    for target in (node, folder / "link"):
        if target != node:
            target.symlink_to(node)
        assert refused(*forward(folder, target), code=6) == (
            f"--output={target}: is {name}, wanted the name of a file, new or to be replaced")
        generate = ("generate", "--model", folder / "model", "--prompt-ids=1,2", "--output", target)
        assert f"is {name}" in refused(*generate, code=6)
        assert "it is no regular file" in refused("list", "--json", target, code=6)
    after = node.stat()
    assert (after.st_mode, after.st_rdev, after.st_ino) == (before.st_mode, before.st_rdev, before.st_ino)


@pytest.mark.parametrize("how", ["itself", "symlink", "hard link", "dots", "folder link"])
def test_an_output_is_never_an_input(folder, how):
    for read in (folder / "in.safetensors", folder / "model" / "model.safetensors", folder / "model" / "config.json"):
        before, target = digest(read), folder / f"other-{read.name}"
        if how == "itself":
            target = read
        elif how == "symlink":
            target.symlink_to(read)
        elif how == "hard link":
            os.link(read, target)
        elif how == "dots":
            target = f"{read.parent}/../{read.parent.name}/{read.name}"
        else:
            (folder / f"to-{read.name}").symlink_to(read.parent)
            target = folder / f"to-{read.name}" / read.name
        source = f"--input={read}" if read.name == "in.safetensors" else f"--model={read.parent}"
        what = "is the same file as" if read.name == "in.safetensors" else "is a file of"
        assert refused(*forward(folder, target)) == (
            f"--output={os.path.normpath(target)}: {what} {source}, which is read: name another place")
        assert "which is read" in refused(*forward(folder, folder / "new"), "--json", target)
        assert digest(read) == before and not (folder / "new").exists()


def test_json_never_replaces_what_a_recipe_or_its_models_are_read_from(work):
    recipe = work.recipe("json")
    for read in (recipe, work.folder / "teacher" / "config.json"):
        before = digest(read)
        for more in ([], ["--no-such-option=1"]):  # a failure is written there, too
            if more and read != recipe:
                continue
            done = limbeck("check", recipe, *more, "--json", read)
            assert done.returncode == 2 and "which is read" in done.stderr, done.stderr
            assert digest(read) == before
    result = work.folder / "result.json"
    for _ in range(2):  # a result of ours may be replaced
        assert limbeck("list", "--json", result).returncode == 0


@pytest.mark.parametrize("command", ["merge", "unmerge", "consolidate"])
def test_an_output_folder_never_lies_in_the_model(folder, command):
    link = folder / "link"
    link.symlink_to(folder / "model")
    (folder / "adapter").mkdir()
    before = sorted(path.name for path in (folder / "model").iterdir())
    for target in (folder / "model", folder / "model" / "new", folder / "model" / "a" / "b", link, link / "new"):
        message = refused(command, "--model", folder / "model", "--adapter", folder / "adapter", "--output", target)
        assert message.startswith(f"--output={target}: ") and message.endswith(
            f"--model={folder / 'model'}, which is read: name another place"), message
    assert sorted(path.name for path in (folder / "model").iterdir()) == before


def test_a_run_never_lies_in_what_it_reads(work):
    for target, source in (("student", "student.model"), ("train/run", "data.train")):
        message = refused("train", work.recipe("inside"), f"--run={work.folder / target}")
        assert f"--{source}=" in message and "which is read" in message
    assert not (work.folder / "student" / ".lock").exists()
    run = work.folder / "own"
    saved(work.student, run / "final")
    message = refused("train", work.recipe("own", student__model=run / "final", **KEYS), f"--run={run}")
    assert message.startswith(f"--run={run / 'final'}: is the same folder as --student.model=")


def test_lock_follows_no_link(work, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(victim)
    message = refused("train", work.recipe("lock", **KEYS), f"--run={tmp_path / 'run'}", "--quiet", code=6)
    assert ".lock: is a symbolic link" in message
    assert victim.read_text() == "precious"


# Patterns


def adapter_folder(path, **config):
    path.mkdir()
    (path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4} | config))
    save_file({f"base_model.model.model.layers.0.self_attn.q_proj.lora_{ab}.weight": torch.ones(*shape)
               for ab, shape in (("A", (2, 32)), ("B", (32, 2)))}, path / "adapter_model.safetensors")
    return path


SLOW = ["(.|.)*Z", "(.+)+Z", "(a?){20}(a|a)*!", "((.*)*)*Z", "(.*.*.*.*.*.*.*.*.*)Z"]


@pytest.mark.parametrize("pattern", SLOW)
def test_patterns_take_linear_time(folder, work, pattern):
    adapter = adapter_folder(folder / "adapter", rank_pattern={pattern: 4})
    begin = time.monotonic()
    done = limbeck(*forward(folder, folder / "out"), "--adapter", adapter)
    assert done.returncode == 0, done.stderr  # names no module
    recipe = work.recipe("pattern", adapter__kind="lora", adapter__target=pattern)
    message = refused("check", recipe, "--quiet")
    assert pattern in message and "names no linear module" in message
    assert time.monotonic() - begin < SECONDS


@pytest.mark.parametrize("pattern, why", [("(?!q)._proj", "linear time"), ("(q)_\\1", "linear time"), ("(q", "linear time"),
                                          ("q{,3}_proj", "{, is not supported"), ("q" * 1001, "1001 characters"),
                                          ("((a{100}){100}){100}", "linear time")])  # fmt: skip
def test_what_has_no_linear_time_is_refused(folder, work, pattern, why):
    adapter = adapter_folder(folder / "adapter", rank_pattern={pattern: 4})
    message = refused(*forward(folder, folder / "out"), "--adapter", adapter, "--quiet", code=4)
    assert "rank_pattern" in message and why in message
    assert why in refused("check", work.recipe("pattern", adapter__kind="lora", adapter__target=pattern), "--quiet")


def test_many_patterns_end_too(folder):
    patterns = {f"(.*.*.*.*.*.*.*.*){n}Z": 4 for n in range(400)}
    begin = time.monotonic()
    limbeck(*forward(folder, folder / "out"), "--adapter", adapter_folder(folder / "many", rank_pattern=patterns))
    large = {f"(.{{900}}|.){{5}}{n}Z": 4 for n in range(400)}
    message = refused(*forward(folder, folder / "out"), "--quiet", "--adapter",
                      adapter_folder(folder / "large", rank_pattern=large), code=4)  # fmt: skip
    assert "rank_pattern" in message
    assert time.monotonic() - begin < SECONDS


@pytest.mark.parametrize("pattern", ["*" * 3000, "student." + "*a" * 1500, "**." * 1000 + "x", "*.*" * 1000])
def test_rules_take_linear_time(work, pattern):
    begin = time.monotonic()
    done = limbeck("check", work.recipe("rule", precision__rule=f"{pattern} float16"), "--quiet")
    assert done.returncode in (0, 2), done.stderr
    assert time.monotonic() - begin < SECONDS


# Models


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe"])
def test_defaults_pass_the_same_checks_as_given_values(folder, name):
    path = folder / "model" / "config.json"
    config = json.loads(path.read_text())
    if name == "mixtral":
        config |= {"architectures": ["MixtralForCausalLM"], "num_local_experts": 1}
    else:
        config |= {"architectures": ["Qwen3MoeForCausalLM"], "num_experts": 4}
    path.write_text(json.dumps(config))
    message = refused(*forward(folder, folder / "out"), "--quiet", code=4)
    assert 'key "num_experts_per_tok" is missing and would be' in message and "wanted an integer in [1, " in message


def overflowing(folder):
    path = folder / "model" / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"].fill_(3e38)
    tensors["model.norm.weight"].fill_(1e3)
    save_file(tensors, path, metadata={"format": "pt"})


def test_logits_that_are_not_finite_are_an_error(folder):
    overflowing(folder)
    message = refused(*forward(folder, folder / "out"), "--quiet", code=5)
    assert message.startswith("output logits float32 [1,6,211] holds NaN or infinity") and "--allow-nonfinite" in message
    assert not (folder / "out").exists()
    assert limbeck(*forward(folder, folder / "out"), "--allow-nonfinite").returncode == 0
    assert not load_file(folder / "out")["logits"].isfinite().all()
    for more in ([], ["--temperature=0.5"]):
        generate = ("generate", "--model", folder / "model", "--prompt-ids=1,2", "--max-new-tokens=3", "--quiet", *more)
        message = refused(*generate, code=5)
        assert "logits of row 0 at new token 1 are NaN or infinite" in message and "--allow-nonfinite" in message
        assert limbeck(*generate, "--allow-nonfinite").returncode == 0


def test_a_temperature_near_zero_chooses_the_greatest(folder):
    generate = ("generate", "--model", folder / "model", "--prompt-ids=5,6,7", "--max-new-tokens=12", "--quiet")
    greedy = limbeck(*generate).stdout
    for temperature in ("1e-320", "1e-300", "1e-30"):
        assert limbeck(*generate, f"--temperature={temperature}", "--seed=3").stdout == greedy


def test_ids_that_are_no_integers_are_named(folder):
    for name in ("input_ids", "position_ids", "token_type_ids", "labels"):
        save_file(IDS | {name: torch.ones(1, 6)}, folder / "in.safetensors")
        assert refused(*forward(folder, folder / "out"), "--quiet", code=3) == (
            f"{folder / 'in.safetensors'}: tensor {name} is float32, wanted integers such as int64")
    for name in ("input_ids", "attention_mask"):
        save_file(IDS | {name: torch.ones(1, 6)}, folder / "in.safetensors")
        assert f"tensor {name} is float32, wanted integers" in refused(
            "generate", "--model", folder / "model", "--prompts", folder / "in.safetensors", "--quiet", code=3)


def test_a_layer_is_paired_once(work):
    for pairs, layer in (("1:1 1:1", 1), ("1:1 1:2", 1)):
        keys = {"objective__layer_weight": 1, "objective__layer_map": pairs}
        message = refused("check", work.recipe("layers", **keys), "--quiet")
        assert f"objective.layer_map = {pairs}" in message and f"student's state {layer}" in message


# Plug-ins


@pytest.fixture(scope="module")
def thrower(tmp_path_factory):
    """Compiles a library that throws where asked, with the two symbols a plug-in has."""
    folder = tmp_path_factory.mktemp("throwers")
    source = folder / "thrower.cpp"
    source.write_text(
        '#include <stdexcept>\nnamespace limbeck { struct PluginHost; }\n'
        'extern "C" const int limbeck_plugin_interface;\nextern "C" const int limbeck_plugin_interface = INTERFACE;\n'
        'static int boom() { throw std::runtime_error("boom"); }\n'
        '#ifdef AT_START\nstatic const int started = boom();\n#endif\n'
        'extern "C" void limbeck_register_plugin(limbeck::PluginHost&);\n'
        'void limbeck_register_plugin(limbeck::PluginHost&) {\n#ifdef NO_EXCEPTION\n  throw 7;\n#endif\n  boom();\n}\n')

    def build(name, *flags, interface=None):
        command = ["g++", "-shared", "-fPIC", f"-DINTERFACE={wanted if interface is None else interface}", *flags]
        subprocess.run([*command, "-o", folder / name, source], check=True, timeout=60)
        return folder / name

    path = build("older.so", interface=1)
    said = refused("list", "--plugin", path)
    assert said.startswith(f"--plugin={path}: built for plug-in interface 1, this limbeck has ") and said.endswith("; rebuild it")
    wanted = int(said.removesuffix("; rebuild it").split()[-1])
    return build


def test_a_plugin_that_throws_is_named(thrower):
    path = thrower("registers.so")
    assert refused("list", "--plugin", path) == f"--plugin={path}: its LIMBECK_PLUGIN failed: boom"
    path = thrower("number.so", "-DNO_EXCEPTION")
    assert refused("list", "--plugin", path) == f"--plugin={path}: its LIMBECK_PLUGIN threw what is no std::exception"
    path = thrower("starts.so", "-DAT_START")
    assert refused("list", "--plugin", path) == f"--plugin={path}: cannot load it: its initialisers threw boom"


def test_help_promises_of_plugins_what_works():
    assert "registers more model families, objectives and adapters" in " ".join(limbeck("list", "--help").stdout.split())


# Limits


def limited(kind, most):
    return lambda: resource.setrlimit(kind, (most, most))


def test_a_limit_of_file_size_is_an_error_and_the_run_goes_on_later(work, tmp_path):
    recipe, run = work.recipe("limit", **KEYS), tmp_path / "run"
    command = [str(LIMBECK), "train", str(recipe), f"--run={run}", "--resume=auto", "--quiet"]
    for most in (2048, 20_000, 100_000):
        done = subprocess.run(command, preexec_fn=limited(resource.RLIMIT_FSIZE, most), capture_output=True, text=True,
                              timeout=120)
        assert done.returncode == 6 and "File too large" in done.stderr, (most, done)
        assert not [path for path in run.rglob(".tmp-*") if path.is_file()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and checkpoints(run), done
    output = tmp_path / "out"
    save_file(IDS, tmp_path / "in.safetensors")
    done = subprocess.run([str(LIMBECK), "forward", "--model", str(work.folder / "student"), "--quiet",
                           "--input", str(tmp_path / "in.safetensors"), "--output", str(output)], timeout=120,
                          preexec_fn=limited(resource.RLIMIT_FSIZE, 1000), capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 6 and "File too large" in done.stderr and not output.exists(), done


def test_a_limit_of_memory_ends_in_words(work, tmp_path):
    """Below some 330 MB the loader cannot map LibTorch, below 430 its initialisers lack memory, below 540 threads."""
    save_file(IDS, tmp_path / "in.safetensors")
    forward_ids = ("forward", "--model", work.folder / "student", "--input", tmp_path / "in.safetensors",
                   "--output", tmp_path / "out", "--threads=2")  # fmt: skip
    recipe, codes = work.recipe("memory", **KEYS), set()
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}  # a user's
    for megabytes in [*range(310, 560, 20), 2000]:
        train = ("train", recipe, f"--run={tmp_path / str(megabytes)}", "--threads=2")
        for arguments in (("list", "models"), forward_ids, train):
            done = subprocess.run([str(LIMBECK), *map(str, arguments), "--quiet"], capture_output=True, text=True,
                                  preexec_fn=limited(resource.RLIMIT_AS, megabytes << 20), timeout=60, env=environment)  # fmt: skip
            codes.add(done.returncode)
            assert done.returncode in (0, 5, 127), (megabytes, done)
            if done.returncode == 5:
                assert done.stderr.startswith("limbeck: ") and done.stderr.count("\n") == 1, done.stderr
                assert "out of memory" in done.stderr or "cannot be started" in done.stderr
            if done.returncode == 127:
                assert "error while loading shared libraries" in done.stderr
    assert 5 in codes and done.returncode == 0, codes
