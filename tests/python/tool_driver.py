"""Runs the tools' own main() for one case after another, each in a forked child, from a process that has their libraries
loaded already: a request a line on stdin, {"tool", "arguments", "folder", "seconds"}; an answer a line on stdout."""

import importlib.util
import json
import os
import pathlib
import resource
import signal
import sys
import time

TOOLS = pathlib.Path(os.environ.get("LIMBECK_TOOLS") or pathlib.Path(__file__).resolve().parents[2] / "tools")
NAMES = ("prepare_data", "convert_pickle", "take_layers", "as_classifier", "label_snippets", "report", "report_budgets", "report_sweep",
         "report_profile", "report_pareto", "sentence_similarity", "import_resnet_bk")  # fmt: skip


def loaded(name):
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(modules, request):
    """The code that the tool gives, the signal that ends it, seconds, and the most memory it or a child of it held."""
    begin, child = time.monotonic(), os.fork()
    if child == 0:
        os.setpgid(0, 0)
        os.chdir(request["folder"])
        out = os.open("printed", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdin.close()
        code = 99
        try:
            code = modules[request["tool"]].main([*request["arguments"]])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1 if end.code else 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    late = False
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() - begin > request["seconds"] and not late:
            late = True
            os.killpg(child, signal.SIGKILL)
        time.sleep(0.005)
    return {"code": os.waitstatus_to_exitcode(status), "late": late, "seconds": time.monotonic() - begin,
            "peak_bytes": usage.ru_maxrss << 10}


def main():
    sys.path.insert(0, str(TOOLS))
    import pyarrow.parquet  # noqa: F401
    import safetensors.torch  # noqa: F401
    import torch  # noqa: F401
    modules = {name: loaded(name) for name in NAMES}
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        print(json.dumps(run(modules, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
