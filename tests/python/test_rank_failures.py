"""What ranks do when one of them dies, stands still, disagrees, is given bad data, is slow or is told to stop: real
processes, real signals. Every survivor ends in time, with the right exit code and one line that names the rank."""

import json
import os
import re
import shutil
import signal
import subprocess
import time

import pytest
import training_work
from rank_processes import Ranks, free_port

OPERATION = r"(all_reduce|all_gather|reduce_scatter) of \S+ #\d+|control all_(reduce|gather) #\d+"
AT_ONCE = 10  # seconds that a survivor has after a kill
STARTED = 60  # seconds that a start may take on a busy machine


@pytest.fixture(scope="module")
def work(tmp_path_factory, limbeck):
    return training_work.Work(tmp_path_factory.mktemp("ranks"), limbeck)


def recipe(work, name="failures", **keys):
    """A run that lasts longer than any test, with small steps."""
    return work.recipe(name, **{"data__batch_size": 2, "train__accumulate": 2, "train__steps": "100000 steps",
                                "train__log_every": 1, **keys})  # fmt: skip


def start(work, run, size=2, *flags, keys=None, **more):
    return Ranks(size, recipe(work, run.name, **(keys or {})), f"--run={run}", "--quiet", *flags, **more)


def train_lines(run):
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    # The last line may be half written.
    lines = [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [line for line in lines if line["phase"] == "train"]


def wait_for(condition, ranks, timeout=STARTED):
    deadline = time.monotonic() + timeout
    while not condition():
        ended = [process for process in ranks.processes if process.poll() is not None]
        assert not ended, f"a rank ended: {ranks.texts()}"
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


def wait_for_step(run, ranks, step):
    wait_for(lambda: any(line["step"] >= step for line in train_lines(run)[-1:]), ranks)


def the_line(text):
    lines = text.splitlines()
    assert len(lines) == 1 and lines[0].startswith("limbeck: "), text
    print(lines[0])
    return lines[0]


needs_mounts = pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode != 0,
    reason="needs a mount namespace of its own for one rank (unshare -m), which this user may not make",
)


def with_own_copy(of, copy, rank):
    """One rank sees `copy` where all the others see `of`."""
    script = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
    words = ["unshare", "-m", "--propagation", "private", "sh", "-c", script, "sh", str(copy), str(of)]
    return lambda this: words if this == rank else []


@pytest.mark.parametrize("killed", [1, 0])
def test_a_killed_rank_is_named(work, tmp_path, killed):
    with start(work, tmp_path / "run") as ranks:
        wait_for_step(tmp_path / "run", ranks, 3)
        ranks.signal(killed, signal.SIGKILL)
        begin = time.monotonic()
        code, text = ranks.end_of(1 - killed, AT_ONCE)
        print(f"{time.monotonic() - begin:.1f} s after the kill")
        assert code == 7, text
        line = the_line(text)
        assert f"{ranks.name(killed)} is gone" in line and re.search(OPERATION, line), line


@pytest.mark.parametrize("dead", [[2], [0]])
def test_every_survivor_of_three_names_the_same_rank(work, tmp_path, dead):
    with start(work, tmp_path / "run", 3, keys={"train__accumulate": 3}) as ranks:
        wait_for_step(tmp_path / "run", ranks, 3)
        ranks.signal(dead[0], signal.SIGKILL)
        begin = time.monotonic()
        for rank in {0, 1, 2} - set(dead):
            code, text = ranks.end_of(rank, AT_ONCE - (time.monotonic() - begin))
            assert code == 7 and f"{ranks.name(dead[0])} is gone" in the_line(text), text


@pytest.mark.parametrize("stopped", [1, 0])
def test_a_rank_that_stands_still_is_named(work, tmp_path, stopped):
    timeout = 5
    with start(work, tmp_path / "run", 2, f"--parallel.timeout={timeout}") as ranks:
        wait_for_step(tmp_path / "run", ranks, 3)
        ranks.signal(stopped, signal.SIGSTOP)
        begin = time.monotonic()
        code, text = ranks.end_of(1 - stopped, timeout + 5)
        print(f"{time.monotonic() - begin:.1f} s after the stop")
        assert code == 7, text
        line = the_line(text)
        assert f"{ranks.name(stopped)} is gone or stands still" in line and re.search(OPERATION, line), line
        assert time.monotonic() - begin > timeout / 2, "that was no timeout"


def test_ranks_that_disagree_list_what_differs(work, tmp_path):
    shutil.copytree(work.folder / "validation", tmp_path / "other")
    odd = {1: ["--seed=8"], 2: [f"--data.train={tmp_path / 'other'}"], 3: ["--optim.learning_rate=2e-3"]}
    run = tmp_path / "run"
    with start(work, run, 4, keys={"train__accumulate": 4}, per_rank=lambda rank: odd.get(rank, [])) as ranks:
        ended = ranks.end(STARTED)
    line = ended.said_once(7)
    assert "seed is 0 on rank 0 and 8 on rank 1" in line, line
    assert f"data.train is {work.folder / 'train'} on rank 0 and {tmp_path / 'other'} on rank 2" in line, line
    assert re.search(r"digest of data.train is \S+ on rank 0 and \S+ on rank 2", line), line
    assert "optim.learning_rate is 0.001 on rank 0 and 2e-3 on rank 3" in line, line
    assert not train_lines(run), "a step was made"


def shard_of(folder):
    return next(folder.glob("*.safetensors"))


def test_bad_data_of_one_rank_ends_all(work, tmp_path):
    shutil.copytree(work.folder / "train", tmp_path / "train")
    shard = shard_of(tmp_path / "train")
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    flags = lambda rank: [f"--data.train={tmp_path / 'train'}"] if rank == 1 else []  # noqa: E731
    with start(work, tmp_path / "run", per_rank=flags) as ranks:
        ended = ranks.end(STARTED)
    line = ended.said_once(3, speaker=1)
    assert "rank 1: " in line and str(shard) in line, line


@needs_mounts
def test_data_of_one_rank_that_goes_bad_during_the_run_ends_all(work, tmp_path):
    copy, run = tmp_path / "train", tmp_path / "run"
    shutil.copytree(work.folder / "train", copy)
    with start(work, run, before=with_own_copy(work.folder / "train", copy, rank=1)) as ranks:
        wait_for_step(run, ranks, 3)
        os.truncate(shard_of(copy), 100)
        ended = ranks.end(STARTED)
    line = ended.said_once(3, speaker=1)
    assert "rank 1: " in line and shard_of(copy).name in line, line


def rank_variables(rank, size, port):
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size),
            "MASTER_PORT": str(port)}  # fmt: skip


def test_two_processes_with_one_rank_end_all_that_wait(work, tmp_path):
    ports = free_port()
    names = [0, 1, 1]  # of three: rank 2 never comes, so all wait when the second rank 1 does
    given = lambda rank: rank_variables(names[rank], 3, ports)  # noqa: E731
    with start(work, tmp_path / "run", 3, keys={"train__accumulate": 3}, variables=given) as ranks:
        ended = ranks.end(STARTED)
    assert ended.codes == [7, 7, 7], ended.errors
    for text in ended.errors:
        assert "two processes say that they are rank 1: start each rank once" in the_line(text)


@pytest.mark.parametrize("twin", [1, 0])
def test_a_second_process_of_a_rank_that_trains_is_refused(work, tmp_path, twin):
    run = tmp_path / "run"
    with start(work, run) as ranks:
        wait_for_step(run, ranks, 3)
        given = lambda _: {**rank_variables(twin, 2, ranks.port), "MASTER_ADDR": "127.0.0.1"}  # noqa: E731
        with start(work, run, 1, variables=given) as late:
            code, text = late.end_of(0, STARTED)
        assert code == 7, text
        said = ["cannot be opened", "whether another process says that it is rank 0"]
        for part in said if twin == 0 else ["two processes say that they are rank 1"]:
            assert part in the_line(text)
        wait_for_step(run, ranks, train_lines(run)[-1]["step"] + 3)  # the others go on


def test_a_rank_at_another_port_is_missed(work, tmp_path):
    wrong = free_port()
    given = lambda rank: {"MASTER_PORT": str(wrong)} if rank == 1 else {}  # noqa: E731
    with start(work, tmp_path / "run", 2, "--parallel.first_timeout=3", variables=given) as ranks:
        ended = ranks.end(STARTED)
    assert ended.codes == [7, 7], ended.errors
    assert "rank 1 did not come within 3 s (parallel.first_timeout)" in the_line(ended.errors[0])
    line = the_line(ended.errors[1])
    assert f"the store at 127.0.0.1:{wrong} cannot be reached" in line and "port" in line


def test_a_slow_rank_is_singled_out_by_the_metrics(work, tmp_path):
    run = tmp_path / "run"
    # Large steps: a rank that is held up while it waits for the other one is none the slower for it.
    with start(work, run, keys={"data__batch_size": 64}) as ranks:
        wait_for_step(run, ranks, 3)
        before = len(train_lines(run))
        for _ in range(25):  # it computes for a fifth of the time
            ranks.signal(1, signal.SIGSTOP)
            time.sleep(0.12)
            ranks.signal(1, signal.SIGCONT)
            time.sleep(0.03)
        lines = train_lines(run)[before:]
    lost = [0.0, 0.0]
    for line in lines:
        lost[int(line["slowest_rank"])] += line["rank_seconds_slowest"] - line["rank_seconds_fastest"]
    worst = min(lines, key=lambda line: line["straggler_score"])
    print(f"{len(lines)} steps; seconds lost to rank 0: {lost[0]:.2f}, to rank 1: {lost[1]:.2f}; worst: {worst}")
    assert lost[1] > 4 * lost[0] and lost[1] > 0.5
    assert worst["slowest_rank"] == 1 and worst["straggler_score"] < 0.4


@pytest.fixture(scope="module")
def large_student(work):
    """Its file has a middle that is not part of the digest by which ranks agree, and one bit there is another."""
    folder = training_work.saved(training_work.llama(128, 6, seed=2), work.folder / "large")
    copy = work.folder / "large-odd"
    shutil.copytree(folder, copy)
    file = copy / "model.safetensors"
    data = bytearray(file.read_bytes())
    begin = 8 + int.from_bytes(data[:8], "little")
    middle = begin + (len(data) // 2 - begin) // 4 * 4  # the lowest byte of a weight
    assert 1 << 20 < middle < len(data) - (1 << 20)
    data[middle] ^= 1
    file.write_bytes(data)
    return folder, copy


@needs_mounts
@pytest.mark.parametrize("size,odd", [(3, 1), (2, 1)])
def test_weights_of_one_rank_that_differ_are_found(work, tmp_path, large_student, size, odd):
    folder, copy = large_student
    keys = {"student__model": folder, "train__accumulate": size, "data__batch_size": 1}
    with start(work, tmp_path / "run", size, "--parallel.check_replicas=1", keys=keys,
               before=with_own_copy(folder, copy, odd)) as ranks:  # fmt: skip
        ended = ranks.end(STARTED)
    line = ended.said_once(7)
    assert re.search(r"after step 1 the ranks hold different student\.\S+: ", line), line
    assert ("rank 1 differs from the others" if size == 3 else "rank 0 and rank 1 differ, and no majority") in line


def checkpoints(run):
    return sorted((run / "checkpoints").glob("step-*"))


def losses(run):
    return {line["step"]: (line["loss"], line["grad_norm"]) for line in train_lines(run)}


def test_signals_save_the_same_step_everywhere_and_the_rerun_has_the_same_bits(work, tmp_path):
    keys = {"train__steps": "160 steps", "parallel__reduce": "tree", "optim__warmup": "20 steps"}
    straight, run = tmp_path / "straight", tmp_path / "run"
    Ranks(1, recipe(work, "run", **keys), f"--run={straight}", "--quiet").end().well()
    step = 0
    for rank, number in [(1, signal.SIGTERM), (0, signal.SIGUSR1), (1, signal.SIGINT)]:
        with start(work, run, keys=keys) as ranks:
            wait_for_step(run, ranks, step + 3)
            ranks.signal(rank, number)
            ended = ranks.end(STARTED)
        after = int(re.search(r"stopped by a signal after step (\d+),", ended.said_once(75))[1])
        assert after > step
        step = after
        assert checkpoints(run)[-1].name == f"step-{step:08}"
    assert step < 160, "the last signal came too late"
    start(work, run, keys=keys).end().well()
    assert (run / "final/model.safetensors").read_bytes() == (straight / "final/model.safetensors").read_bytes()
    assert losses(run) == losses(straight) and len(losses(run)) == 160


def catches(pid, number):
    status = dict(line.split(":\t", 1) for line in open(f"/proc/{pid}/status", encoding="ascii") if ":\t" in line)
    return int(status["SigCgt"], 16) >> (number - 1) & 1


def test_a_second_interrupt_ends_at_once_and_leaves_the_checkpoint_whole(work, tmp_path):
    run = tmp_path / "run"
    with start(work, run, keys={"checkpoint__every": 5}) as ranks:
        wait_for(lambda: checkpoints(run), ranks)
        ranks.signal(1, signal.SIGSTOP)  # so that rank 0 cannot come to the save that the first signal asks for
        assert catches(ranks.processes[0].pid, signal.SIGINT)
        ranks.signal(0, signal.SIGINT)
        wait_for(lambda: not catches(ranks.processes[0].pid, signal.SIGINT), ranks)
        ranks.signal(0, signal.SIGINT)
        code, _ = ranks.end_of(0, 2)
        assert code == -signal.SIGINT
        ranks.signal(1, signal.SIGCONT)
        code, text = ranks.end_of(1, AT_ONCE)
        assert code == 7 and "rank 0 " in the_line(text), text
    # Every byte of the newest checkpoint is held against its checksums, and no older one would do.
    with start(work, run, 2, "--resume.strict", keys={"checkpoint__every": 5}) as ranks:
        wait_for(lambda: all(catches(one.pid, signal.SIGTERM) for one in ranks.processes), ranks)
        ranks.signal(0, signal.SIGTERM)
        assert ranks.end(STARTED).codes == [75, 75]
