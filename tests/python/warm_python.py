"""A Python that has loaded what the tests import (torch, transformers, peft: eight seconds) and forks for each request.

    python warm_python.py SOCKET             serves: prints "ready", and ends when its standard input does
    python -S warm_python.py -m pytest FILE  does what `python -m pytest FILE` does, in a child of the server that
                                             LIMBECK_WARM_PYTHON names, or by itself when there is none

The child has the asker's folder, environment and standard streams, and nothing of what another child did: as a process of
its own, without its start. Who has other variables than the server among those that are read while libraries are loaded
gets a process of its own. tools/test keeps a server while ctest runs.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys

SERVER = "LIMBECK_WARM_PYTHON"
LOADING = ("ATEN_", "CUDA_", "GOMP_", "HF_", "KMP_", "LD_", "MALLOC_", "MKL_", "OMP_", "PYTHON", "PYTORCH_", "TOKENIZERS_",
           "TORCH", "TRANSFORMERS_")  # fmt: skip
# What conftest.py sets before it imports anything.
SETTINGS = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
BYTECODE = ("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")  # where it is kept changes nothing that is loaded
SIZE, CODE = struct.Struct("!I"), struct.Struct("!i")
ACCEPTED, REFUSED = b"y", b"n"


def loaded_by(environment: dict) -> dict:
    """The variables that libraries read while they are loaded, as they are once conftest.py was imported."""
    return {name: value.lower() for name, value in (SETTINGS | environment).items()
            if name.startswith(LOADING) and name not in BYTECODE}


def exactly(connection: socket.socket, size: int) -> bytes:
    parts = b""
    while len(parts) < size:
        part = connection.recv(size - len(parts))
        if not part:
            raise EOFError
        parts += part
    return parts


def ask(arguments, environment=None, streams=(0, 1, 2), folder=None) -> socket.socket | None:
    """A connection on which the server will say how `python ARGUMENTS` ended, or None: start it yourself."""
    environment = dict(os.environ if environment is None else environment)
    path = os.environ.get(SERVER)
    if not path:
        return None
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(path)
        request = {"arguments": [str(word) for word in arguments], "environment": environment, "folder": str(folder or os.getcwd())}
        text = json.dumps(request).encode()
        socket.send_fds(connection, [SIZE.pack(len(text))], streams)
        connection.sendall(text)
        if exactly(connection, 1) == ACCEPTED:
            return connection
    except (OSError, EOFError):
        pass
    connection.close()
    return None


def answer(connection: socket.socket) -> int:
    """The exit code of what was asked for, or the signal that ended it, negative."""
    with connection:
        return CODE.unpack(exactly(connection, CODE.size))[0]


def completed(arguments, *, env=None, cwd=None, timeout: float = 120.0, code: int | None = None):
    """subprocess.run of `python ARGUMENTS`, stdin empty, both outputs captured as text; `code` is the exit code demanded."""
    import subprocess
    import tempfile

    command = [sys.executable, *map(str, arguments)]
    with open(os.devnull) as nothing, tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        connection = ask(arguments, env, (nothing.fileno(), out.fileno(), err.fileno()), cwd)
        if connection is None:
            done = subprocess.run(command, env=env, cwd=cwd, stdin=nothing, capture_output=True, text=True, timeout=timeout)
        else:
            connection.settimeout(timeout)
            try:
                ended = answer(connection)  # the server ends what nobody waits for any more
            except TimeoutError:
                raise subprocess.TimeoutExpired(command, timeout) from None
            out.seek(0), err.seek(0)
            done = subprocess.CompletedProcess(command, ended, out.read(), err.read())
    assert code in (None, done.returncode), (done.args, done.returncode, done.stdout, done.stderr)
    return done


def run_here_or_there(arguments: list[str]) -> None:
    connection = ask(arguments)
    if connection is None:
        os.execv(sys.executable, [sys.executable, *arguments])
    try:
        code = answer(connection)
    except EOFError:
        sys.exit(f"warm_python: the server at {os.environ[SERVER]} ended before what it ran")
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def become(request: dict, streams: list[int]) -> None:
    """This child is now what `python ARGUMENTS` would be before its first line."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    # A shell starts what it runs in the background deaf to these, and so is all that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    sys.pycache_prefix = os.environ.get("PYTHONPYCACHEPREFIX") or None
    sys.stdin = sys.__stdin__ = open(0, closefd=False)
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)


def run(arguments: list[str]) -> None:
    """python [-m MODULE | -c TEXT | FILE] WORD..."""
    import atexit
    import runpy
    import threading
    import traceback

    code = 0
    try:
        if arguments[0] == "-m":
            sys.argv, sys.path[0] = arguments[1:], os.getcwd()
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        elif arguments[0] == "-c":
            sys.argv, sys.path[0] = ["-c", *arguments[2:]], ""
            exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv, sys.path[0] = arguments, os.path.dirname(os.path.realpath(arguments[0]))
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else 1 if end.code else 0
    except BaseException:
        traceback.print_exc()
        code = 1
    try:
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code & 0xFF)


def load() -> None:
    """Everything that takes long and that several files of tests import; no thread may have been started by it."""
    os.environ.update(SETTINGS | os.environ | {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"})
    import logging

    logging.disable(logging.WARNING)  # of what these libraries would like to have
    import bitsandbytes.functional  # noqa: F401
    import numpy.ctypeslib  # noqa: F401
    import peft  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import pytest  # noqa: F401
    import safetensors.torch  # noqa: F401
    import tokenizers  # noqa: F401
    import torch
    import transformers

    for name in ("AutoModelForCausalLM", "PreTrainedTokenizerFast", *(f"{family}Model" for family in FAMILIES)):
        getattr(transformers, name)  # here it is loaded
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    logging.disable(logging.NOTSET)


# Of model_zoo.py.
FAMILIES = ("Bert", "DistilBert", "GPT2", "Gemma2", "Gemma3", "Llama", "Mistral", "Mixtral", "Phi3", "Qwen2", "Qwen3", "Qwen3Moe")


class Server:
    def __init__(self, path: str):
        import selectors

        self._own = loaded_by(dict(os.environ))
        load()
        threads = os.listdir("/proc/self/task")
        assert len(threads) == 1, f"{len(threads)} threads after loading: a fork would lose what they hold"
        self._events = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(16)
        self._events.register(self._listener, selectors.EVENT_READ, self._accept)
        self._events.register(0, selectors.EVENT_READ, lambda: sys.exit(0))  # nobody writes there: it is the end
        self._children: dict[int, int] = {}

    def serve(self) -> None:
        import gc

        gc.collect()
        gc.freeze()
        print("ready", flush=True)
        try:
            while True:
                for key, _ in self._events.select():
                    key.data()
        finally:
            for child in self._children.values():
                os.killpg(child, signal.SIGKILL)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        head, streams, _, _ = socket.recv_fds(connection, SIZE.size, 3)
        try:
            request = json.loads(exactly(connection, SIZE.unpack(head)[0]))
            alike = loaded_by(request["environment"]) == self._own and len(streams) == 3
            connection.sendall(ACCEPTED if alike else REFUSED)
            child = os.fork() if alike else 0
        except (OSError, EOFError, struct.error):
            alike = False
        if alike and child == 0:
            os.setpgid(0, 0)
            self._events.close()
            self._listener.close()
            connection.close()
            become(request, streams)
            run(request["arguments"])
        for stream in streams:
            os.close(stream)
        if not alike:
            return connection.close()
        self._watch(connection, child)

    def _watch(self, connection: socket.socket, child: int) -> None:
        """The asker learns how the child ends; an asker that was killed takes the child along."""
        import selectors

        try:
            os.setpgid(child, child)  # whoever is first: it has its group before anybody ends the group
        except OSError:
            pass
        end = os.pidfd_open(child)
        self._children[end] = child

        def ended() -> None:
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            try:
                connection.sendall(CODE.pack(code))
            except OSError:
                pass
            del self._children[end]
            for source in (end, connection):
                try:
                    self._events.unregister(source)
                except KeyError:
                    pass
            os.close(end)
            connection.close()

        def left() -> None:
            self._events.unregister(connection)
            os.killpg(child, signal.SIGKILL)

        self._events.register(end, selectors.EVENT_READ, ended)
        self._events.register(connection, selectors.EVENT_READ, left)


if __name__ == "__main__":
    if len(sys.argv) == 2 and not sys.argv[1].startswith("-"):
        Server(sys.argv[1]).serve()
    else:
        run_here_or_there(sys.argv[1:])
