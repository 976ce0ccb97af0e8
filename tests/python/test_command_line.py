"""The program as a user runs it: arguments in, exit code, output and files out."""

import json
import os
import pathlib
import subprocess

import pytest
from limbeck_runner import run_program

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("LIMBECK_BUILD", "build/release"))
BUILD = BUILD if BUILD.is_absolute() else ROOT / BUILD
LIMBECK = BUILD / "bin" / "limbeck"


def limbeck(*arguments, cwd=None, env=None, stdout=subprocess.PIPE, timeout=120):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LIMBECK_")} | (env or {})
    if stdout is subprocess.PIPE:
        return run_program(*arguments, cwd=cwd, env=environment, timeout=timeout)
    return subprocess.run([str(LIMBECK), *map(str, arguments)], cwd=cwd, env=environment, text=True, stdout=stdout,
                          stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, timeout=timeout)


def refused(*arguments, code=2, **more):
    """The one line of an error, without the program's name."""
    done = limbeck(*arguments, **more)
    assert done.returncode == code, (done.returncode, done.stderr)
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("limbeck: "), done.stderr
    return done.stderr[len("limbeck: "):-1]


def commands():
    text = limbeck("--help").stdout
    lines = text.split("Commands:\n")[1].split("\n\n")[0].splitlines()
    return [line.split()[0] for line in lines]


@pytest.fixture(scope="session")
def plugins():
    found = {path.stem: path for path in BUILD.rglob("*_plugin.so")}
    assert {"example_plugin", "not_a_plugin"} <= found.keys(), "build the target trainer_test's plug-ins first"
    return found


def test_version():
    done = limbeck("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("limbeck ") and "LibTorch 2." in done.stdout


def test_help_lists_every_command_with_one_line_each():
    done = limbeck("--help")
    assert done.returncode == 0 and done.stderr == ""
    assert "list" in commands()
    assert limbeck("-h").stdout == limbeck("help").stdout == done.stdout


def test_help_of_every_command():
    for command in commands():
        done = limbeck(command, "--help")
        assert done.returncode == 0 and done.stderr == "", command
        assert done.stdout.startswith(f"usage: limbeck {command}"), done.stdout
        for option in ("--help", "--json FILE", "--plugin LIB.so", "--device", "--threads", "--quiet"):
            assert option in done.stdout, (command, option)
        assert max(map(len, done.stdout.splitlines())) <= 120
        assert limbeck("help", command).stdout == done.stdout


def test_no_arguments_is_a_usage_error_that_shows_the_help():
    done = limbeck()
    assert done.returncode == 2 and done.stdout == "" and "Commands:" in done.stderr


def test_unknown_command_names_the_nearest():
    assert refused("lst") == "\"lst\" is no command, did you mean list?; 'limbeck --help' lists them"
    assert refused("qqqqqqqqqqqqq").startswith('"qqqqqqqqqqqqq" is no command, wanted ')
    assert refused("--quiet", "list") == "--quiet: options come after the command: limbeck COMMAND --quiet"


def test_unknown_and_faulty_options():
    tail = "; 'limbeck list --help' lists every option"
    assert refused("list", "--thread=3") == "--thread: no such option, did you mean threads?" + tail
    assert refused("list", "--threads") == "--threads: the value is missing, wanted --threads=INTEGER" + tail
    assert refused("list", "--threads=x") == "--threads=x: wanted a whole number from 0 to 4096"
    assert refused("list", "--threads", "-1") == "--threads=-1: wanted a whole number from 0 to 4096"
    assert refused("list", "--threads=1", "--threads=2") == (
        "--threads=2: given already as --threads=1; keep one of the two")
    assert refused("list", "--quiet=maybe") == "--quiet=maybe: wanted true or false"
    assert refused("list", "--device=gpu") == "--device=gpu: wanted cpu, cuda, cuda:0 (or another number) or meta"


def test_operands_are_checked():
    kinds = "models, objectives, adapters, quantizers, optimizers or aliases"
    assert refused("list", "modls") == f'limbeck list: WHAT "modls" is unknown, wanted {kinds}'
    assert refused("list", "models", "adapters").startswith('limbeck list: "adapters" is one operand too many')


def test_list_of_models_and_of_what_is_not_built_yet():
    done = limbeck("list", "models")
    assert done.returncode == 0 and "llama" in done.stdout.split()
    everything = limbeck("list").stdout
    for kind in ("models:", "objectives:", "adapters:", "quantizers:", "optimizers:"):
        assert kind in everything.splitlines()


def test_list_of_other_trainers_spellings():
    rows = dict(line.split(maxsplit=1) for line in limbeck("list", "aliases", "--quiet").stdout.splitlines()[2:])
    assert rows["lora_r"] == "adapter.rank" and rows["lora_dropout"] == "adapter.dropout" and rows["bf16"] == "student.dtype = bfloat16"
    assert rows["num_train_epochs"] == "train.steps = N epochs"


def test_list_takes_a_switch_before_its_operand():
    assert limbeck("list", "--quiet", "models").stdout == limbeck("list", "models").stdout


def test_json_result(tmp_path):
    done = limbeck("list", "models", "--threads=1", "--json", "out.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"], "no temporary is left"
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["command"] == "list" and result["exit_code"] == 0
    assert {"name": "llama", "summary": ""} in result["result"]["models"]
    assert result["settings"]["threads"] == {"value": "1", "from": "command line"}
    assert result["settings"]["device"] == {"value": "cpu", "from": "default"}


def test_json_on_standard_output_is_alone_there():
    done = limbeck("list", "--json=-")
    assert list(json.loads(done.stdout)["result"]) == ["models", "objectives", "adapters", "quantizers", "optimizers", "aliases"]


def test_json_holds_the_error_of_a_run_that_failed(tmp_path):
    message = refused("list", "modls", "--json", "out.json", cwd=tmp_path)
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["exit_code"] == 2 and result["error"] == message and result["command"] == "list"


def test_json_target_is_tried_before_the_work(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    targets = ((tmp_path / "no" / "out.json", "cannot be created: No such file or directory"), (tmp_path, "it is a folder"),
               (fifo, "it is no regular file (standard output is --json=-)"))
    for target, reason in targets:
        for arguments in (("list", "models"), ("list", "modls"), ("lst",)):  # also when the run fails for another reason
            done = limbeck(*arguments, "--json", target)
            assert done.returncode == (2 if arguments == ("lst",) else 6)
            assert done.stdout == ""
            assert fifo.is_fifo() and list(tmp_path.iterdir()) == [fifo], "nothing was put in its place, nothing left over"
        assert refused("list", "models", "--json", target, code=6) == (
            f"--json={target}: cannot write the result: {reason}; name a file in a folder you can write to")


def test_full_standard_output_is_an_error():
    with open("/dev/full", "w") as full:
        done = limbeck("list", stdout=full)
    assert done.returncode == 6 and "standard output: cannot write the result" in done.stderr


def test_plugin_registers_an_objective(plugins):
    assert "adamw" in limbeck("list", "optimizers").stdout.split()
    adapters = limbeck("list", "adapters").stdout.splitlines()
    assert [line.split()[0] for line in adapters[2:]] == ["lora", "dora", "ia3", "npt"] and "W + s B A" in adapters[2]
    formats = limbeck("list", "quantizers").stdout.splitlines()
    assert [line.split()[0] for line in formats[2:]] == [
        "int8", "int8-g128", "int8-g64", "int8-g32", "int8-dynamic", "int4", "int4-g64", "int4-g32", "int4-sym", "int4-sym-g64",
        "int4-sym-g32", "int4-sym-dynamic", "int4-sym-g32-dynamic", "int3", "int3-g64", "int3-g32", "int3-sym", "int3-sym-g64",
        "int3-sym-g32", "int2", "int2-g64", "int2-g32", "int2-sym", "int2-sym-g64", "int2-sym-g32", "nf4", "nf4-double"
    ]  # fmt: skip
    done = limbeck("list", "objectives", "--plugin", plugins["example_plugin"])
    assert done.returncode == 0, done.stderr
    assert "absolute_error" in done.stdout and "mean absolute difference" in done.stdout
    assert "forward_kl" in done.stdout and "dskd" in done.stdout


def test_plugin_by_bare_name_is_the_one_that_lies_here(plugins):
    folder = plugins["example_plugin"].parent
    assert "absolute_error" in limbeck("list", "objectives", "--plugin=example_plugin.so", cwd=folder).stdout


def test_faulty_plugins(plugins, tmp_path):
    path = plugins["not_a_plugin"]
    assert refused("list", "--plugin", path) == (
        f"--plugin={path}: is no limbeck plug-in: it lacks limbeck_register_plugin; write it with LIMBECK_PLUGIN "
        "(trainer/plugin/plugin.h)")
    assert refused("list", "--plugin=") == (
        "--plugin=: names no file, wanted a shared library built against trainer/plugin/plugin.h")
    assert refused("list", "--plugin=nothere.so") == (
        "--plugin=nothere.so: no such file, wanted a shared library built against trainer/plugin/plugin.h")
    text = tmp_path / "text.so"
    text.write_text("not a library")
    assert refused("list", "--plugin", text).startswith(f"--plugin={text}: cannot load it: ")
    twice = refused("list", "--plugin", plugins["example_plugin"], "--plugin", plugins["example_plugin"])
    assert twice == "objectives: absolute_error is registered twice; give one of them another name"


def test_only_the_cpu_library_is_loaded():
    maps = subprocess.run(["ldd", str(LIMBECK)], text=True, capture_output=True, check=True).stdout
    assert "libtorch_cpu.so" in maps and "libtorch_cuda" not in maps


@pytest.fixture
def recipe(tmp_path):
    """Runs `limbeck check` on a text and gives back the error, with the recipe's path as RECIPE."""
    if "check" not in commands():
        pytest.skip("this build has no `limbeck check`")
    path = tmp_path / "my.ini"

    def run(text, *flags):
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return refused("check", path, *flags).replace(str(path), "RECIPE")

    run.folder = tmp_path
    return run


TAIL = "; 'limbeck check --help' lists every key"


@pytest.mark.parametrize("text, message", [
    ("seed = 1\n[student]\ndtpe = x\n", "RECIPE:3: unknown key student.dtpe, did you mean student.dtype?" + TAIL),
    ("[student]\nseed = 1\n", "RECIPE:2: unknown key student.seed, seed stands before the first [section]" + TAIL),
    ("[studnet]\n", "RECIPE: sets no key; a recipe needs at least `model = FOLDER` under [teacher] or [student]"),
    ("[studnet]\ndtype = x\n", "RECIPE:1: unknown section [studnet], did you mean student?"),
    ("seed = 1\nseed = 2\n", "RECIPE:2: seed is set already on line 1; keep one of the two"),
    ("seed = 1.5\n", "RECIPE:1: seed = 1.5: wanted a whole number, 0 or more"),
    ("[projector]\ninit_std = 2\n", "RECIPE:2: projector.init_std = 2: wanted a number from 0 to 1"),
    ("[student]\ndtype = bf16\n",
     "RECIPE:2: student.dtype = bf16: wanted auto, float32, bfloat16 or float16; write bfloat16"),
    ("quiet = true\n", "RECIPE:1: quiet is a flag and no recipe key; remove the line and pass --quiet"),
    ("seed 1\n", "RECIPE:1: `seed 1` is neither [section] nor key = value; a comment starts with #"),
    (b"seed = \x00\n", "RECIPE:1: control character \\x00, wanted plain text"),
    (b"\xef\xbb\xbfseed = x\r\n", "RECIPE:1: seed = x: wanted a whole number, 0 or more"),
    ("", "RECIPE: sets no key; a recipe needs at least `model = FOLDER` under [teacher] or [student]"),
    ("#" * 2**20 + "\n", "RECIPE: 1048577 bytes, wanted a recipe of at most 1048576; is this the right file?"),
])
def test_recipe_errors(recipe, text, message):
    assert recipe(text) == message


@pytest.mark.parametrize("pattern", ["sudent.layers.**", "lm_head", "model.layers.*.mlp.*"])
def test_a_rule_that_begins_with_no_model_is_refused(pattern):
    """Nobody would ever ask for it: without a word it would be as if it had not been written."""
    message = refused("check", ROOT / "recipes/check_small.ini", f"--precision.rule={pattern} float16")
    first = pattern.split(".")[0]
    assert f'begins with "{first}", where no module is: wanted student or teacher as its first part' in message, message


def test_a_rule_that_resembles_nothing_suggests_nothing():
    message = refused("check", ROOT / "recipes/check_small.ini", f"--precision.rule=student.{'q' * 300} float16")
    assert message.endswith("matches no module of student: 'limbeck check RECIPE' lists its modules"), message


def test_a_run_that_is_refused_leaves_no_folder(tmp_path):
    recipe = ROOT / "recipes/check_small.ini"  # of models without weights
    assert "no model.safetensors" in refused("train", recipe, "--run", tmp_path / "a/b", "--quiet", code=4)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    refused("train", recipe, "--run", tmp_path / "mine/run", "--quiet", code=4)
    assert list(tmp_path.rglob("*")) == [tmp_path / "mine"]


def test_recipe_files_that_are_none(recipe):
    folder = recipe.folder
    (folder / "good.ini").write_text("seed = 1\n")
    assert refused("check").startswith("limbeck check: RECIPE is missing: type limbeck check recipes/")
    assert refused("check", folder / "god.ini") == (
        f"{folder}/god.ini: no such recipe; did you mean {folder}/good.ini?")
    assert refused("check", folder) == f"{folder}: is a folder, wanted a recipe file; name an .ini file in it"


def test_a_flag_wins_over_the_recipe(recipe):
    assert recipe("seed = 1\n", "--seed=x") == "--seed=x: wanted a whole number, 0 or more"
