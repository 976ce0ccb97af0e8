"""tools/launch/: what starts many ranks. The scripts really run, with a stand-in for limbeck that says what it was given;
the flags they pass are held against the programs that read them."""

import functools
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "tools" / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
JOBS = sorted(LAUNCH.glob("*.yaml"))
BUILD = pathlib.Path(os.environ.get("LIMBECK_BUILD", "build/release"))
LIMBECK = (BUILD if BUILD.is_absolute() else ROOT / BUILD) / "bin" / "limbeck"
TORCHRUN = pathlib.Path(sys.executable).parent / "torchrun"
SCRATCH = tempfile.TemporaryDirectory(prefix="limbeck-test-")  # torchrun leaves folders in TMPDIR


def resolves(host):
    try:
        return bool(socket.getaddrinfo(host, None))
    except socket.gaierror:
        return False


needs_localhost = pytest.mark.skipif(
    not resolves("localhost"), reason="localhost has no address here (no /etc/hosts): torchrun meets there"
)


def named(path):
    return path.name


def environment(**more):
    kept = {k: v for k, v in os.environ.items() if not re.match(r"SLURM_|PET_|TORCHELASTIC_|LIMBECK|MASTER_", k)}
    return kept | {"TMPDIR": SCRATCH.name, "TORCHRUN": str(TORCHRUN), "OMP_NUM_THREADS": "1"} | more


def run(*command, **more):
    return subprocess.run([str(word) for word in command], env=environment(**more), text=True, capture_output=True,
                          stdin=subprocess.DEVNULL, timeout=100)


def program(path, body):
    path.write_text("#!/usr/bin/env bash\nset -euo pipefail\n" + body)
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def said_by_ranks(tmp_path):
    """A program for LIMBECK= that writes what it was given, one file a rank, and a reader of them by rank."""
    stub = program(tmp_path / "limbeck_stub", f"""
printf '%s\\n' "$LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $MASTER_PORT" "$@" >"{tmp_path}/rank$RANK"
""")

    def read():
        files = sorted(tmp_path.glob("rank*"))
        return {file.name: file.read_text().splitlines() for file in files}

    return stub, read


def words_of(path):
    """What starts limbeck in a launch file, and the arguments of `limbeck train` there."""
    if path in JOBS:
        yaml = pytest.importorskip("yaml", reason="PyYAML reads the Kubernetes files")
        commands = []

        def walk(node):
            if isinstance(node, dict):
                commands.extend([node["command"]] if "command" in node else [])
                node = list(node.values())
            for child in node if isinstance(node, list) else []:
                walk(child)

        for document in yaml.safe_load_all(path.read_text()):
            walk(document)
        (words,) = {tuple(words) for words in commands}
    else:
        code = "\n".join(line for line in path.read_text().splitlines() if not line.lstrip().startswith("#"))
        (line,) = re.findall(r"^(?:exec|srun) .* train .*$", code.replace("\\\n", " "), re.MULTILINE)
        words = line.split(" || ")[0].split()
    at = list(words).index("train")
    return [*words[:at]], [*words[at + 1:]]


def flags_in(words):
    return {word.split("=")[0] for word in words if word.startswith("--") and word != "--"}


def test_nothing_is_left_out():
    assert [p.name for p in SCRIPTS + JOBS] == ["slurm.sbatch", "torchrun.sh", "torchrun_multi_node.sh",
                                                "kubernetes-pytorchjob.yaml", "kubernetes-trainjob.yaml"]
    for path in SCRIPTS + JOBS:
        lines = path.read_text().splitlines()
        assert lines["#!" in lines[0]].startswith("# "), f"{path.name} opens with what it does"


@pytest.mark.parametrize("path", SCRIPTS, ids=named)
def test_scripts_parse_and_stop_at_the_first_error(path):
    done = run("bash", "-n", path)
    assert done.returncode == 0, done.stderr
    assert "\nset -euo pipefail\n" in path.read_text() and os.access(path, os.X_OK)


@functools.cache
def flags_known_to(*command):
    return {flag.rstrip(".") for flag in re.findall(r"--[\w.-]+", run(*command, "--help").stdout)}


@pytest.mark.parametrize("path", SCRIPTS + JOBS, ids=named)
def test_every_flag_exists(path):
    starter, arguments = words_of(path)
    assert "--resume=auto" in arguments
    known = flags_known_to(LIMBECK, "train")
    assert "--device" in known
    missing = flags_in(arguments) - known
    assert not missing, f"limbeck train knows no {missing}"
    if "srun" not in starter:
        assert flags_in(starter) <= flags_known_to(TORCHRUN)
        assert "--no-python" in starter
        assert starter[-2] == "--", "torchrun takes --run=DIR for an option of its own that is cut short"
        assert "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1" in starter


@pytest.mark.parametrize("path", JOBS, ids=named)
def test_pods_outlive_torchrun_and_share_the_run(path):
    yaml = pytest.importorskip("yaml", reason="PyYAML reads the Kubernetes files")
    documents = {document["kind"]: document["spec"] for document in yaml.safe_load_all(path.read_text())}
    if "PyTorchJob" in documents:
        replicas = documents["PyTorchJob"]["pytorchReplicaSpecs"]
        pods = [(replica["template"]["spec"], replica["restartPolicy"]) for replica in replicas.values()]
        assert replicas.keys() == {"Master", "Worker"}
        assert pods[0][0]["containers"][0]["name"] == "pytorch"
        gpus, processes = pods[0][0]["containers"][0]["resources"], documents["PyTorchJob"]["nprocPerNode"]
    else:
        assert documents.keys() == {"TrainingRuntime", "TrainJob"}
        assert documents["TrainJob"]["runtimeRef"]["kind"] == "TrainingRuntime"
        (job,) = documents["TrainingRuntime"]["template"]["spec"]["replicatedJobs"]
        pod = job["template"]["spec"]["template"]["spec"]
        pods = [(pod, pod["restartPolicy"])]
        assert pod["containers"][0]["name"] == job["name"] == "node"
        trainer = documents["TrainJob"]["trainer"]
        gpus, processes = trainer["resourcesPerNode"], trainer["numProcPerNode"]
    assert gpus["limits"]["nvidia.com/gpu"] == int(processes)
    for pod, restart in pods:
        assert restart == "OnFailure"
        assert pod["terminationGracePeriodSeconds"] > 30  # torchrun kills its ranks 30 s after the signal
        (container,) = pod["containers"]
        mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes[mounted["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
        assert volumes[mounted["/work"]]["persistentVolumeClaim"]["claimName"]


@needs_localhost
def test_torchrun_script_starts_two_ranks(said_by_ranks):
    stub, read = said_by_ranks
    done = run(LAUNCH / "torchrun.sh", 2, "my.ini", "--train.steps=3 steps", "--run=here", LIMBECK=stub)
    assert done.returncode == 0, done.stderr
    said = read()
    assert said.keys() == {"rank0", "rank1"}
    for rank, name in enumerate(["rank0", "rank1"]):
        assert said[name][0].split()[:3] == [str(rank), "2", "2"]
        assert said[name][1:] == ["train", "my.ini", "--resume=auto", "--train.steps=3 steps", "--run=here"]


@needs_localhost
def test_multi_node_script_meets_at_the_endpoint(said_by_ranks):
    stub, read = said_by_ranks
    command = [str(LAUNCH / "torchrun_multi_node.sh"), "2", "1", "my.ini"]
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    more = environment(LIMBECK=stub, RDZV_ENDPOINT=f"localhost:{port}", RUN_ID="test")
    nodes = [subprocess.Popen(command, env=more, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        for node in nodes:
            _, errors = node.communicate(timeout=100)
            assert node.returncode == 0, errors
    finally:
        for node in nodes:
            node.kill()
    assert {name: lines[0].split()[:3] for name, lines in read().items()} == {"rank0": ["0", "2", "1"],
                                                                              "rank1": ["0", "2", "1"]}


@needs_localhost
def test_a_signal_to_torchrun_reaches_every_rank(tmp_path):
    stub = program(tmp_path / "limbeck_stub", f"""
trap 'touch "{tmp_path}/saved$RANK"; exit 75' USR1
touch "{tmp_path}/ready$RANK"
for _ in $(seq 300); do sleep 0.1; done
""")
    script = subprocess.Popen([str(LAUNCH / "torchrun.sh"), "2", "my.ini"], env=environment(LIMBECK=stub),
                              stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("ready*"))) < 2:
            assert script.poll() is None and time.monotonic() < deadline, "the ranks did not start"
            time.sleep(0.05)
        time.sleep(2)  # while torchrun is still starting its workers, a signal ends it without a word to them
        script.send_signal(signal.SIGUSR1)  # exec: the script's process is torchrun
        script.communicate(timeout=60)
    finally:
        script.kill()
    assert script.returncode != 0
    assert {path.name for path in tmp_path.glob("saved*")} == {"saved0", "saved1"}


@pytest.mark.parametrize("script,enough", [("torchrun.sh", ["2"]), ("torchrun_multi_node.sh", ["2", "1"])])
def test_scripts_say_what_they_want(script, enough):
    done = run(LAUNCH / script, *enough)  # no recipe
    assert done.returncode == 2 and f"tools/launch/{script} " in done.stderr and "LIMBECK" in done.stderr
    assert not any(line.startswith(("#", "set ")) for line in done.stderr.splitlines())


def test_multi_node_script_wants_an_endpoint():
    done = run(LAUNCH / "torchrun_multi_node.sh", 2, 1, "my.ini", RUN_ID="a")
    assert done.returncode == 2 and "wanted RDZV_ENDPOINT=HOST[:PORT]" in done.stderr


def test_scripts_without_torchrun_say_so(tmp_path):
    for tool in ("bash", "dirname", "env"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    done = run(LAUNCH / "torchrun.sh", 2, "my.ini", TORCHRUN="", LIMBECK_VENV=str(tmp_path), PATH=str(tmp_path))
    assert done.returncode == 2
    assert f"no torchrun at {tmp_path}/bin/torchrun or on PATH; set TORCHRUN=FILE" in done.stderr


@pytest.mark.parametrize("code,requeued", [(75, True), (0, False), (7, False)])
def test_slurm_job_is_queued_again_after_a_save(tmp_path, code, requeued):
    stub = program(tmp_path / "limbeck_stub", f'printf "%s\\n" "$@" >"{tmp_path}/given"\nexit {code}\n')
    program(tmp_path / "srun", 'while [[ $1 == --* ]]; do shift; done\nexec "$@"\n')
    program(tmp_path / "scontrol", f'echo "$@" >"{tmp_path}/scontrol_said"\n')
    more = {"LIMBECK": stub, "SLURM_JOB_ID": "1234", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = run("bash", LAUNCH / "slurm.sbatch", "my.ini", "--seed=1", **more)
    assert done.returncode == code, done.stderr
    assert (tmp_path / "given").read_text().split() == ["train", "my.ini", "--device=cuda", "--resume=auto", "--seed=1"]
    said = tmp_path / "scontrol_said"
    assert (said.read_text() if said.exists() else "") == ("requeue 1234\n" if requeued else "")
