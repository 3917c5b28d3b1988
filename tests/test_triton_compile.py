"""Every Triton kernel compiles for GPUs that need not be there, within their limits.

Checked here: for sm_90 every kind of cell in bfloat16, LSTM in both kinds of kernel, in the other
types, with a projection and in tf32, and output layers; some of that for sm_80 and sm_100, and on
each of the three options that change the kernels.
``FUSEDRNN_TEST_ALL=1`` takes all cells in all types for sm_80, sm_89, sm_90, sm_100 and sm_120
(minutes). What compiles is what the host code launches (tests/triton_compile.py); whether it
computes the right thing is for test_triton.py and test_triton_softmax.py.
"""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sequence_case import KINDS

from fusedrnn import _backend
from fusedrnn.cells import CELLS

pytestmark = pytest.mark.skipif(not _backend._HAS_TRITON, reason="triton is not installed")
DTYPES = ("float64", "float32", "bfloat16", "float16")

# Bytes of stack a thread for values that no longer fit into registers. The unaligned step kernels
# (H = 300) need more addresses than the others: seen are 56 bytes, 14 registers of 255, in sLSTM's
# backward with lengths and given reset states.
STACK = 64

# Options in company: what they cost adds up.
DRAWING = "lstm:peephole=diagonal:zoneout_h=0.1:dropout=0.1:variational=0.1"
FULL = "lstm:peephole=full:zoneout_h=0.1:zoneout_c=0.1:dropout=0.1"
NORMED = "lstm:peephole=diagonal:layer_norm=True:dropout=0.1"
ALONE = "rnn_tanh:residual=True:independent=True:zoneout_h=0.1:dropout=0.1"

if os.environ.get("FUSEDRNN_TEST_ALL") == "1":
    ALL = [
        f"{cell}/{dtype}/{kernel}"
        for cell in CELLS
        for dtype in DTYPES
        for kernel in ("whole", "step")
    ]
    ALL += [f"{cell}/{dtype}/projected" for cell in ("lstm", "rnn_tanh") for dtype in DTYPES]
    ALL += [f"{cell}/float32/{kernel}/tf32" for cell in CELLS for kernel in ("whole", "step")]
    ALL += [f"{cell}/{dtype}/step" for cell in (DRAWING, FULL, NORMED) for dtype in DTYPES]
    ALL += [f"{cell}/{dtype}/whole" for cell in (DRAWING, FULL, ALONE) for dtype in DTYPES]
    ALL += [f"{NORMED}/{dtype}/projected" for dtype in DTYPES]
    ALL += [f"softmax/{dtype}/{kernel}" for dtype in DTYPES for kernel in ("loss", "smoothed")]
    ALL += [f"softmax/{dtype}/words" for dtype in ("float64", "float32")]
    PROBLEMS = {arch: ALL for arch in (80, 89, 90, 100, 120)}
else:
    SOME = ["lstm/float64/step", "lstm/float16/projected", "softmax/bfloat16/smoothed"]
    MORE = ["lstm/float32/whole/tf32", "softmax/float32/loss", "mgu/bfloat16/whole"]
    # mgu: the page's cell of a user's.
    # A cell's maths is in both kinds of kernel the same: one of them in turn.
    pairs = zip(KINDS, itertools.cycle(("whole", "step")), strict=False)
    MORE += [f"{cell}/bfloat16/{kernel}" for cell, kernel in pairs]
    PROBLEMS = {
        80: [*SOME, "softmax/float32/words", f"{NORMED}/float32/step"],
        90: [*SOME, *MORE, "softmax/float64/words", f"{DRAWING}/bfloat16/whole"],
        100: [
            *("lstm/bfloat16/step", "softmax/float64/loss", "softmax/float32/words"),
            f"{FULL}/bfloat16/step",
        ],
    }


@pytest.mark.parametrize("arch", PROBLEMS)
def test_compiles(arch):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("triton_compile.py")
    root = str(script.parents[1])
    run = subprocess.run(
        [sys.executable, str(script), str(arch), *PROBLEMS[arch]],
        env={**environment, "PYTHONPATH": root},
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    kernels = [json.loads(line) for line in run.stdout.splitlines()]
    for kernel in kernels:
        assert kernel["shared"] <= kernel["limit"], kernel
        assert kernel["stack"] <= STACK, kernel
    for problem in PROBLEMS[arch]:
        names = {k["kernel"] for k in kernels if k["problem"] == problem}
        assert names == expected(problem), problem


def expected(problem):
    """The kernels that a forward and a backward call of a problem launch."""
    cell, _, kernel, *_ = problem.split("/")
    if kernel == "words":
        names = ("links", "ends", "whole_forward", "whole_backward")
        return {f"softmax_{name}" for name in names}
    if cell == "softmax":
        names = ("walk", "logits", "paths", "input_grad", "weight_grad")
        return {f"softmax_{name}" for name in names}
    if kernel == "whole":
        return {"whole_forward", "whole_backward"}
    names = {"forward_step", "backward_step", "backward_h"}
    options = CELLS[cell] if cell in CELLS else None  # users' are registered over there
    if options and options.norms:
        names = {"recur_step", "normed_forward_step", "normed_backward_step", "backward_h"}
        names |= {"unproject_step"} if kernel == "projected" else set()
    if kernel == "projected":
        names |= {"project_step"}
    if options and options.second:
        names |= {"operand_step", "backward_operand_step"}
    return names
