"""llama.cpp's quantized products beside ours, interleaved in one process: ggml_peer.py FOLDER [rounds] [rows,rows].

FOLDER holds libggml-base.so and libggml-cpu.so, such as llama_cpp/lib of the package llama-cpp-python, or one of the
libggml-cpu-*.so of npm's @node-llama-cpp/linux-x64 under that name; neither is one of our requirements. ggml rounds rows
of x to 8 bits in blocks of 32, as our int8-dynamic does in whole rows; our other formats leave x as it is. Prints the
median milliseconds of each, the medians over the rounds of theirs / ours and of a plain read of our bytes / ours, and
how far theirs is from the product of unrounded rows with the same weight.
"""

from __future__ import annotations

import ctypes
import os
import pathlib
import random
import statistics
import sys
import time

import torch

BUILD = pathlib.Path(os.environ.get("LIMBECK_BUILD", pathlib.Path(__file__).parents[2] / "build" / "release"))
torch.ops.load_library(str(BUILD / "lib" / "liblimbeck_kernels.so"))
ops = torch.ops.limbeck

FLOAT32, Q4_0, Q8_0 = 0, 2, 8  # numbers of enum ggml_type
REPACKED_BUFFERS = "_Z35ggml_backend_cpu_repack_buffer_typev"
# Ours with scales in float16, as ggml stores them, and in float32, as we do unless told otherwise.
PEERS = {
    Q4_0: ("Q4_0", [("int4-sym-g32-dynamic", torch.float16), ("int4-sym-g32-dynamic", torch.float32),
                    ("int4-sym-g32", torch.float16)]),
    Q8_0: ("Q8_0", [("int8-g32", torch.float16), ("int8-dynamic", torch.float16)]),
}  # fmt: skip


class InitParams(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


class Ggml:
    def __init__(self, folder: pathlib.Path):
        self.base = ctypes.CDLL(str(folder / "libggml-base.so"), ctypes.RTLD_GLOBAL)
        self.cpu = ctypes.CDLL(str(folder / "libggml-cpu.so"), ctypes.RTLD_GLOBAL)
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        self.declare("ggml_init", pointer, [InitParams])
        self.declare("ggml_free", None, [pointer])
        self.declare("ggml_new_tensor_2d", pointer, [pointer, ctypes.c_int, size, size])
        self.declare("ggml_get_data", pointer, [pointer])
        self.declare("ggml_nbytes", ctypes.c_size_t, [pointer])
        self.declare("ggml_quantize_chunk", ctypes.c_size_t, [ctypes.c_int, pointer, pointer, size, size, size, pointer])
        self.declare("ggml_mul_mat", pointer, [pointer, pointer, pointer])
        self.declare("ggml_new_graph", pointer, [pointer])
        self.declare("ggml_build_forward_expand", None, [pointer, pointer])
        self.declare("ggml_backend_alloc_ctx_tensors_from_buft", pointer, [pointer, pointer])
        self.declare("ggml_backend_tensor_set", None, [pointer, pointer, ctypes.c_size_t, ctypes.c_size_t])
        self.cpu.ggml_cpu_init()
        self.cpu.ggml_graph_compute_with_ctx.argtypes = [pointer, pointer, ctypes.c_int]
        self.repacked = getattr(self.cpu, REPACKED_BUFFERS)
        self.repacked.restype = pointer

    def declare(self, name: str, result, arguments: list) -> None:
        function = getattr(self.base, name)
        function.restype, function.argtypes = result, arguments
        setattr(self, name, function)

    def context(self, size: int, no_alloc: bool = False) -> int:
        return self.ggml_init(InitParams(size, None, no_alloc))

    def product(self, kind: int, weight: torch.Tensor, x: torch.Tensor, repacks: bool):
        """A function that multiplies, and its result."""
        (rows, width), count = weight.shape, x.shape[0]
        codes = torch.empty(weight.numel() * 4, dtype=torch.uint8)
        size = self.ggml_quantize_chunk(kind, weight.data_ptr(), codes.data_ptr(), 0, rows, width, None)
        context = self.context((4 * (x.numel() + count * rows) + 4 * size) + (64 << 20))
        owner = self.context(1 << 20, no_alloc=True) if repacks else context
        stored = self.ggml_new_tensor_2d(owner, kind, width, rows)
        if repacks:
            if not self.ggml_backend_alloc_ctx_tensors_from_buft(owner, self.repacked()):
                return None
            self.ggml_backend_tensor_set(stored, codes.data_ptr(), 0, size)
        else:
            ctypes.memmove(self.ggml_get_data(stored), codes.data_ptr(), size)
        of_x = self.ggml_new_tensor_2d(context, FLOAT32, width, count)
        ctypes.memmove(self.ggml_get_data(of_x), x.data_ptr(), 4 * x.numel())
        y = self.ggml_mul_mat(context, stored, of_x)
        graph = self.ggml_new_graph(context)
        self.ggml_build_forward_expand(graph, y)

        def work() -> None:
            if self.cpu.ggml_graph_compute_with_ctx(context, graph, torch.get_num_threads()) != 0:
                raise RuntimeError("ggml_graph_compute_with_ctx failed")

        work()
        values = (ctypes.c_float * (count * rows)).from_address(self.ggml_get_data(y))
        return work, torch.frombuffer(values, dtype=torch.float32).view(count, rows)


def seconds(work) -> float:
    # One thread is timed by its own clock: others on the machine do not count.
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    work()
    return clock() - start


def read(parts: list[torch.Tensor]) -> None:
    for part in parts:
        part.view(torch.int64).sum()


def measure(ggml: Ggml, kind: int, count: int, rows: int, width: int, rounds: int) -> None:
    name, forms = PEERS[kind]
    weight, x = torch.randn(rows, width) * 0.02, torch.randn(count, width)
    contenders, reads = {}, {}
    for repacks in (False, True) if kind == Q4_0 else (False,):  # on x86 it has no other order for Q8_0, and crashes
        if made := ggml.product(kind, weight, x, repacks):
            contenders[name + (" repacked" if repacks else "")] = made
    for form, scales in forms:
        parts = ops.quantize_weight(weight, form, scales)
        work = lambda parts=parts, form=form: ops.quantized_linear.default(x, parts, form, rows, width)  # noqa: E731
        contenders[f"{form} {str(scales)[6:]}"] = (work, work())
        # Of copies: ours must not be left in the caches by it.
        reads[f"{form} {str(scales)[6:]}"] = lambda copies=[part.clone() for part in parts]: read(copies)
    columns, of_reads = {who: [] for who in contenders}, {who: [] for who in reads}
    for _ in range(rounds):
        # In another order each time: who comes after whom decides what the caches still hold.
        turns = [(columns[who], work) for who, (work, _) in contenders.items()]
        turns += [(of_reads[who], work) for who, work in reads.items()]
        for column, work in random.sample(turns, len(turns)):
            column.append(seconds(work))
    exact = x @ weight.T
    print(f"{count} rows, weight {rows} x {width}, {torch.get_num_threads()} threads")
    for who, of_rounds in columns.items():
        ratios = "".join(
            f"   {peer} / it {statistics.median(a / b for a, b in zip(columns[peer], of_rounds, strict=True)):5.2f}"
            for peer in columns if peer.startswith("Q") and not who.startswith("Q"))  # fmt: skip
        if who in reads:
            ratios += f"   read / it {statistics.median(a / b for a, b in zip(of_reads[who], of_rounds, strict=True)):5.2f}"
        apart = (contenders[who][1] - exact).norm() / exact.norm()
        print(f"  {who:29} {1e3 * statistics.median(of_rounds):9.3f} ms   from the floats {apart:.4f}{ratios}", flush=True)


def main() -> None:
    ggml = Ggml(pathlib.Path(sys.argv[1]))
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 9
    rows = [int(count) for count in (sys.argv[3] if len(sys.argv) > 3 else "1,16,128").split(",")]
    with torch.inference_mode():
        for kind in PEERS:
            for count in rows:
                for out, width in ((4096, 4096), (11008, 4096), (1024, 1024)):
                    measure(ggml, kind, count, out, width, rounds)


if __name__ == "__main__":
    main()
