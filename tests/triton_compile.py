"""Compiles the Triton kernels of given problems for a GPU that need not be there.

Usage: ``python tests/triton_compile.py ARCH CELL/DTYPE/KERNEL[/PRECISION] ...``; an output layer is
``softmax/DTYPE/loss``, ``softmax/DTYPE/smoothed`` or, where all words are scored,
``softmax/DTYPE/words``; cells of user_cells.py are there too. Runs the
real host code of fusedrnn.triton over a driver that compiles each launch and does not run it;
prints what each kernel takes, one JSON line a kernel. A process of its own, since TRITON_INTERPRET
must be unset and a driver is for a whole process.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
import user_cells
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

from fusedrnn import Hierarchy, _precision
from fusedrnn.cells import CELLS
from fusedrnn.triton import plan as planner
from fusedrnn.triton import sequence, softmax, softmax_whole

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


class CompileOnly:
    """As much of a Triton driver as compilation asks for."""

    def __init__(self, arch):
        self.target = GPUTarget("cuda", arch, 32)

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def resources(cubin):
    """Registers and bytes of stack a thread, from ptxas."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        dump = [CUOBJDUMP, "--dump-resource-usage", file.name]
        text = subprocess.run(dump, capture_output=True, text=True, check=True).stdout
    return {k.lower(): int(re.search(rf"{k}:(\d+)", text)[1]) for k in ("REG", "STACK")}


def largest_whole(cell, dtype, shared):
    """The most units that the planner gives to the kernel for whole sequences."""
    for H in (128, 64, 32, 16):
        if planner.plan(planner.Shape(cell.name, dtype, 16, H), shared).whole:
            return H


def call(name, dtype, kernel, shared):
    """Forward and backward with one direction, and with all arguments; values do not matter.

    Without FUSEDRNN_TEST_ALL=1 only lstm does both: cells with options have one direction, the
    others all arguments.
    """
    cell, T, B = CELLS[name], 2, 20
    H = largest_whole(cell, dtype, shared) if kernel == "whole" else 300
    P = 40 if kernel == "projected" else H
    G, S = len(cell.gates), len(cell.states)

    def zeros(*size):
        return torch.zeros(size, dtype=dtype)

    weight_hh, bias_hh = [zeros(G * H, cell.depth(P, H))], [zeros(G * H)]
    weight_hr = [zeros(P, H)] if kernel == "projected" else []
    own = [zeros(cell.rows_of_units, H)] if cell.rows_of_units else []
    lengths, mask = torch.zeros(B, dtype=torch.int64), torch.zeros(T, B, dtype=torch.bool)
    both = name == "lstm" or os.environ.get("FUSEDRNN_TEST_ALL") == "1"
    for N in (1, 2) if both else (1,) if "=" in name else (2,):
        seed = torch.zeros(N, 2, dtype=torch.int64)
        gx = [zeros(T, B, G * H)]
        h0, c0 = zeros(N, B, P), zeros(N, S - 1, B, H)
        spans = (None, None, None, None) if N == 1 else (lengths, mask, h0, c0)
        y, hn, cn, saved, cells, _ = sequence.sequence_forward(
            name, gx * N, weight_hh * N, bias_hh * N, weight_hr * N, own * N, seed, h0, c0, *spans,
            True,
        )  # fmt: skip
        sequence.sequence_backward(
            name, y, hn, cn, y, h0, c0, weight_hh * N, weight_hr * N, own * N, seed, *spans, saved,
            cells,
        )  # fmt: skip


def call_softmax(dtype, kernel):
    """Likewise an output layer, in the middle of a block of tokens, with and without options."""
    tree = Hierarchy.classes(range(1, 301)[::-1])
    tensors, options = tree.tensors().values(), (0.1, 1e-3) if kernel == "smoothed" else (0.0, 0.0)
    x, weight = torch.zeros(40, 300, dtype=dtype), torch.zeros(tree.rows, 300, dtype=dtype)
    target, sizes = torch.zeros(40, dtype=torch.int64), (tree.max_path_rows, tree.depth)
    output, _, saved, plan = softmax.softmax_forward(
        x, weight, weight[:, 0], target, *tensors, *sizes, -100, *options, True
    )
    softmax.softmax_backward(
        output, x, weight, target, *tensors, saved, plan, -100, True, True, True, False, None
    )


def call_words(dtype):
    """All words: of classes; with FUSEDRNN_TEST_ALL=1 also of a binary tree and of one node."""
    trees = [Hierarchy.classes(range(1, 301)[::-1]), Hierarchy.balanced(9), Hierarchy.flat(9)]
    for tree in trees if os.environ.get("FUSEDRNN_TEST_ALL") == "1" else trees[:1]:
        tensors, z = tree.tensors().values(), torch.zeros(3, tree.rows, dtype=dtype)
        every = softmax_whole.log_softmax(z, *tensors)
        softmax_whole.log_softmax_backward(every, z, *tensors)


def main():
    arch, problems = int(sys.argv[1]), sys.argv[2:]
    # What one block may have: CUDA C++ Programming Guide, technical specifications per capability.
    shared = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}[arch] << 10
    driver.set_active(CompileOnly(arch))
    run, compiled = JITFunction.run, {}

    def compile_only(self, *args, grid, warmup, **options):
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        compiled[id(kernel)] = self.fn.__name__, kernel

    JITFunction.run = compile_only
    planner.shared_memory = lambda device: shared
    for problem in problems:
        cell, dtype, kernel, *precision = problem.split("/")
        if precision:
            _precision.of_recurrence = lambda dtype, device, asked=precision[0]: asked
        compiled.clear()
        if kernel == "words":
            call_words(getattr(torch, dtype))
        elif cell == "softmax":
            call_softmax(getattr(torch, dtype), kernel)
        else:
            call(cell, getattr(torch, dtype), kernel, shared)
        for name, result in compiled.values():
            line = {"arch": arch, "problem": problem, "kernel": name, "limit": shared}
            line |= {"shared": result.metadata.shared, **resources(result.asm["cubin"])}
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    with user_cells.registered():
        main()
