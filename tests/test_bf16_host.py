"""The CPU kernels of avx512_bf16 on any machine with AVX-512, by the stand-in for VDPBF16PS.

Packing, layouts, tiles and epilogues are those of the library; the instruction is two multiply-adds
(csrc/cpu/operand.h). tests/test_isa.py runs the library's own kernels on a machine that has it.
"""

import numpy as np
import pytest
import test_cuda_host as stepwise
import torch
from sequence_case import CELLS, Case, cases, check, inputs, plain, run, truth
from test_isa import NEEDS, machine_flags

from fusedrnn import _autograd, _native, ops

if missing := NEEDS["avx512"] - machine_flags():
    pytest.skip(f"this machine has no {', '.join(sorted(missing))}", allow_module_level=True)
host = pytest.importorskip(
    "fusedrnn.fusedrnn_bf16_host",
    reason="not built: FUSEDRNN_TESTING=1 python setup.py build_ext --inplace",
)

BF16 = torch.bfloat16


@pytest.fixture
def on_threads(monkeypatch):
    """on_threads(n): the ops run on these kernels, with up to n threads."""
    monkeypatch.setattr(stepwise, "host", host)

    def use(threads):
        monkeypatch.setattr(_autograd, "op", stepwise.Host(threads))

    return use


@pytest.mark.parametrize(("cell", "case"), cases())
def test_against_float64(on_threads, cell, case):
    """The library's kernels of whatever instruction set is in use keep the same rule."""
    tensors = inputs(cell, case, BF16)
    theirs, true = run(plain, cell, case, tensors, BF16), truth(cell, case, tensors)
    library = run(ops.sequence, cell, case, tensors, BF16)
    check(library, true, theirs, BF16, f"{cell.name} {_native.build_info()['cpu_in_use']}")
    on_threads(1)
    found = run(stepwise.sequence, cell, case, tensors, BF16)
    check(found, true, theirs, BF16, f"{cell.name} stand-in")


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
@pytest.mark.parametrize("T", [1, 4])
def test_bits_do_not_depend_on_the_threads(on_threads, cell, T):
    """With enough work for several; a single step packs the weights as it meets them."""
    P = 75 if cell.name == "lstm" else None
    lengths = tuple(b % (T + 1) for b in range(37))
    case = Case(T, 37, 131, P, directions=2, lengths=lengths, reset="given")
    tensors, results = inputs(cell, case, BF16), []
    for threads in (1, 2, 5):
        on_threads(threads)
        results.append(run(stepwise.sequence, cell, case, tensors, BF16))
    for other in results[1:]:
        assert all(torch.equal(results[0][key], other[key]) for key in other)


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
def test_saving_for_backward_changes_no_bits(cell, on_threads):
    on_threads(1)
    case = Case(3, 5, 33, directions=2, lengths=(3, 1, 0, 2, 3), reset="given")
    given = stepwise.native(case, inputs(cell, case, BF16))
    device = stepwise.Host(1)
    saved, unsaved = (device.forward(cell.name, *given, save)[:3] for save in (True, False))
    assert all(torch.equal(a, b) for a, b in zip(saved, unsaved, strict=True))


def words(high, low):
    """Pairs of bfloat16 numbers as words; ``high`` and ``low`` in float32."""
    return high.view(np.uint32) | low.view(np.uint32) >> 16


def numbers(random, *size):
    """Numbers of bfloat16, as float32, whose products' sums are exact in float64."""
    values = random.standard_normal(size).astype(np.float32)
    return (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def test_the_stand_in_adds_the_upper_product_first_and_rounds_each_sum_once():
    random = np.random.default_rng(1)
    for _ in range(1000):
        total = random.standard_normal(16).astype(np.float32)
        (a, b), (v, w) = numbers(random, 2, 1), numbers(random, 2, 16)
        once = (total + a.astype(np.float64) * v).astype(np.float32)
        twice = (once + b.astype(np.float64) * w).astype(np.float32)
        assert (host.dot(total, words(a, b)[0], words(v, w)) == twice).all()


def test_the_stand_in_takes_subnormal_numbers_as_zero_and_leaves_none():
    tiny = np.float32(2.0**-126)
    zero, one, half = (np.full(16, v, np.float32) for v in (0, 1, 0.5))

    def dot(total, a, w):
        return host.dot(total, words(a[:1], zero[:1])[0], words(w, zero))

    assert (dot(zero, one, tiny * one) == tiny).all()
    assert (dot(zero, half, tiny * one) == 0).all()  # the sum
    assert (dot(zero, one * 2, tiny * half) == 0).all()  # of the weights
    assert (dot(zero, tiny * half, one * 2) == 0).all()  # of the operand
    assert (dot(tiny * half, one, tiny * one) == tiny).all()  # of the sum before
