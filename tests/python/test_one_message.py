"""What all ranks would say is said once, by the first; what one rank alone has to say, by it, with its number. All of them
end with the same code, and none waits for one that is gone."""

import json
import os
import shutil
import subprocess
import sys

import google_crc32c
import pytest
from limbeck_runner import Limbeck
from rank_processes import LAUNCHER_VARIABLES, Ranks, free_port
from training_work import LENGTH, VOCABULARY, Work

import token_rows

TOGETHER = 60  # seconds that a start may take on a busy machine; a rank that waited for another would take 1800


@pytest.fixture(scope="module")
def work(tmp_path_factory, limbeck) -> Work:
    return Work(tmp_path_factory.mktemp("one-message"), limbeck)


def recipe(work, name, **keys):
    return work.recipe(name, **{"data__batch_size": 2, "train__accumulate": 6, "train__steps": "2 steps", "optim__warmup": "0 steps", **keys})


def ended(work, tmp_path, size, path, *flags, **more):
    with Ranks(size, path, f"--run={tmp_path / 'run'}", *flags, **more) as ranks:
        end = ranks.end(TOGETHER)
    for rank, text in enumerate(end.errors):
        print(rank, end.codes[rank], repr(text))
    return end


def test_a_bad_key_of_the_recipe_is_named_once(work, tmp_path):
    path = recipe(work, "bad-key", student__dtipe="float32")
    line = ended(work, tmp_path, 3, path, "--quiet").said_once(2)
    assert line.startswith("limbeck: ") and "student.dtipe" in line and "rank" not in line


def test_a_bad_flag_of_one_rank_is_named_by_it(work, tmp_path):
    path = recipe(work, "bad-flag")
    flags = lambda rank: ["--student.dtipe=float32"] if rank == 1 else []  # noqa: E731
    end = ended(work, tmp_path, 3, path, "--quiet", per_rank=flags)
    line = end.said_once(2, speaker=1)
    assert line.startswith("limbeck: rank 1: ") and "student.dtipe" in line
    assert end.seconds < TOGETHER / 2


def test_two_ranks_with_one_fault_name_themselves_once(work, tmp_path):
    path = recipe(work, "bad-flags")
    flags = lambda rank: ["--student.dtipe=float32"] if rank > 0 else []  # noqa: E731
    line = ended(work, tmp_path, 3, path, "--quiet", per_rank=flags).said_once(2, speaker=1)
    assert line.startswith("limbeck: ranks 1, 2: ")


def test_a_rank_that_nobody_joins_speaks_for_itself(work, tmp_path):
    """The others died, or are not started yet: some seconds, no half an hour."""
    path = recipe(work, "alone", student__dtipe="float32")
    base = {key: value for key, value in os.environ.items() if key not in LAUNCHER_VARIABLES}
    base |= dict(RANK="1", WORLD_SIZE="2", LOCAL_RANK="1", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    done = subprocess.run([Limbeck()._program, "train", path], env=base, capture_output=True, text=True, timeout=TOGETHER)
    assert done.returncode == 2 and done.stderr.startswith("limbeck: rank 1: ") and "student.dtipe" in done.stderr, done.stderr


def test_a_missing_model_is_named_once(work, tmp_path):
    path = recipe(work, "no-model", student__model=tmp_path / "nowhere")
    line = ended(work, tmp_path, 2, path, "--quiet").said_once(4)
    assert str(tmp_path / "nowhere") in line and "rank" not in line


def with_a_stranger(folder, told):
    """A data set with an id beyond the models' vocabulary; `told`: its manifest says so."""
    documents = token_rows.random_documents(40, 6, LENGTH, VOCABULARY, seed=5)
    documents[7][2] = VOCABULARY + 40
    token_rows.write(folder, documents, VOCABULARY)
    if not told:
        manifest = json.loads((folder / "manifest.json").read_text())
        del manifest["crc32c"]
        manifest["shards"][0]["maximum_id"] = VOCABULARY - 1
        text = json.dumps(manifest, indent=2)[: -len("\n}")] + ",\n"
        (folder / "manifest.json").write_text(text + f'  "crc32c": "{google_crc32c.value(text.encode()):08x}"\n}}\n')
    return folder


@pytest.mark.parametrize("told", [True, False], ids=["by the manifest", "by a shard"])
def test_a_strange_id_in_the_data_of_one_rank_is_named_by_it(work, tmp_path, told):
    strange = with_a_stranger(tmp_path / "strange", told)
    flags = lambda rank: [f"--data.train={strange}"] if rank == 1 else []  # noqa: E731
    line = ended(work, tmp_path, 2, recipe(work, "strange"), "--quiet", per_rank=flags).said_once(3, speaker=1)
    assert line.startswith("limbeck: rank 1: ") and str(VOCABULARY + 40) in line, line
    assert str(VOCABULARY) in line or str(VOCABULARY - 1) in line, line


def test_ranks_that_disagree_say_so_once(work, tmp_path):
    flags = lambda rank: ["--seed=8"] if rank == 1 else []  # noqa: E731
    line = ended(work, tmp_path, 2, recipe(work, "seeds"), "--quiet", per_rank=flags).said_once(7)
    assert "seed is 0 on rank 0 and 8 on rank 1" in line


def test_notes_and_warnings_of_a_good_run_are_those_of_one_process(work, tmp_path):
    path = recipe(work, "good", student__quantize="nf4", data__sequence_length=16)
    end = ended(work, tmp_path, 3, path).well()
    assert end.errors[1:] == ["", ""]
    said = end.errors[0]
    assert said.count("warning: ") == 1 and "quantized weights are frozen" in said
    assert said.count("are truncated") == 2  # of data.train and of data.validation
    assert said.count("check passed") == 1


def test_torchrun_shows_one_line(work, tmp_path):
    """The launcher's own words come after it."""
    path = recipe(work, "torchrun", student__dtipe="float32")
    torchrun = shutil.which("torchrun", path=os.path.dirname(sys.executable))
    base = {key: value for key, value in os.environ.items() if key not in LAUNCHER_VARIABLES}
    done = subprocess.run([torchrun, "--no-python", "--nproc-per-node=2", f"--master-port={free_port()}", "--", str(Limbeck()._program),
                           "train", str(path), f"--run={tmp_path / 'run'}"], env=base, capture_output=True, text=True, timeout=120)  # fmt: skip
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("limbeck: ")]
    print(lines)
    assert len(lines) == 1 and "student.dtipe" in lines[0]
    assert done.returncode != 0
