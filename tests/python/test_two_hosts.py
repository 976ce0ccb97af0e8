"""Two hosts, as the network sees them: two network namespaces with a cable between them, torchrun and two ranks in each.
A rank of the second host is killed; torchrun starts all of them again, and the run ends with the bits of one process."""

import contextlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import pytest
import training_work
from rank_processes import LAUNCHER_VARIABLES, Ranks
from test_rank_failures import checkpoints, losses, train_lines

TORCHRUN = pathlib.Path(sys.executable).parent / "torchrun"
ADDRESSES = ("10.111.0.1", "10.111.0.2")  # nobody else is in these namespaces
PORT = 29400
STEPS = 60


def ip(*words, check=True):
    return subprocess.run(["ip", *words], check=check, capture_output=True, text=True)


def may_make_namespaces():
    if shutil.which("ip") is None or os.geteuid() != 0:
        return False
    name = f"limbeck-probe-{os.getpid()}"
    made = ip("netns", "add", name, check=False).returncode == 0
    ip("netns", "del", name, check=False)
    return made


pytestmark = pytest.mark.skipif(not may_make_namespaces(), reason="needs root and ip netns, for two network namespaces")


@pytest.fixture
def hosts():
    names = [f"limbeck-{os.getpid()}-{letter}" for letter in "ab"]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        for name, address in zip(names, ADDRESSES):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable")
            for device in ("lo", "cable"):
                ip("-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in names:
            ip("netns", "del", name, check=False)


def ranks_of(torchrun):
    """Processes of limbeck that a torchrun has started, by rank."""
    found = {}
    for pid in pathlib.Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split():
        with contextlib.suppress(OSError):
            variables = pathlib.Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            rank = [int(one.removeprefix(b"RANK=")) for one in variables if one.startswith(b"RANK=")]
            if rank and pathlib.Path(f"/proc/{pid}/exe").resolve().name == "limbeck":
                found[rank[0]] = int(pid)
    return found


class Torchruns:
    """One torchrun on each host, and what they and their ranks print."""

    def __init__(self, hosts, program, logs, *words):
        base = {key: value for key, value in os.environ.items() if key not in LAUNCHER_VARIABLES}
        self.logs = [logs / f"{host}.log" for host in hosts]
        self.processes = []
        for number, host in enumerate(hosts):
            command = ["ip", "netns", "exec", host, str(TORCHRUN), "--nnodes=2", "--nproc-per-node=2", "--rdzv-backend=c10d",
                       f"--rdzv-endpoint={ADDRESSES[0]}:{PORT}", f"--rdzv-conf=is_host={1 - number}", "--rdzv-id=limbeck", f"--node-rank={number}",
                       f"--local-addr={ADDRESSES[number]}", "--max-restarts=2", "--no-python", "--", str(program), *words]  # fmt: skip
            with self.logs[number].open("w") as log:
                self.processes.append(subprocess.Popen(command, env=base | {"TMPDIR": str(logs), "OMP_NUM_THREADS": "1"}, stdout=log, stderr=log))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            with contextlib.suppress(OSError):
                for pid in ranks_of(process).values():
                    os.kill(pid, 9)
            process.kill()
            process.wait()

    def text(self):
        return "\n".join(log.read_text(errors="replace") for log in self.logs)

    def wait_for(self, condition, timeout, what):
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, f"{what}\n{self.text()}"
            assert all(process.poll() in (None, 0) for process in self.processes), f"a torchrun failed\n{self.text()}"
            time.sleep(0.05)


def test_a_killed_rank_on_another_host_is_named_and_the_restart_has_the_bits_of_one_process(tmp_path, limbeck, hosts):
    work = training_work.Work(tmp_path, limbeck)
    recipe = work.recipe(
        data__batch_size=2, train__accumulate=4, train__steps=f"{STEPS} steps", parallel__reduce="tree", checkpoint__every=4
    )
    alone, run = tmp_path / "alone", tmp_path / "run"
    Ranks(1, recipe, f"--run={alone}", "--quiet").end().well()

    begin = time.monotonic()
    words = ["train", str(recipe), f"--run={run}", "--threads=1", "--resume=auto"]
    with Torchruns(hosts, limbeck._program, tmp_path, *words) as torchruns:
        torchruns.wait_for(lambda: len(checkpoints(run)) > 0 and train_lines(run)[-1]["step"] >= 10, 100, "no step was made")
        killed, pid = sorted(ranks_of(torchruns.processes[1]).items())[-1]
        at = train_lines(run)[-1]["step"]
        kill = time.monotonic()
        os.kill(pid, 9)
        named = rf"limbeck: rank {killed} \(host \S+, process {pid}\) is gone.*"
        torchruns.wait_for(lambda: re.search(named, torchruns.text()), 10, "nobody named the dead rank in 10 s")
        seconds_named = time.monotonic() - kill
        torchruns.wait_for(lambda: "resumed from" in torchruns.text(), 100, "nobody went on")
        seconds_resumed = time.monotonic() - kill
        torchruns.wait_for(lambda: all(one.poll() == 0 for one in torchruns.processes), 200, "the run did not end")
        text = torchruns.text()
    print(re.search(named, text)[0])
    print(re.search(r".*resumed from .*", text)[0])
    print(f"killed rank {killed} at step {at}; {seconds_named:.1f} s until it was named, {seconds_resumed:.1f} s until the run "
          f"went on, {time.monotonic() - begin:.1f} s in all")  # fmt: skip
    assert at < STEPS - 4, "it was killed too late to prove anything"
    assert (run / "final/model.safetensors").read_bytes() == (alone / "final/model.safetensors").read_bytes()
    assert losses(run) == losses(alone) and len(losses(run)) == STEPS
