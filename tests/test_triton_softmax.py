"""The Triton backend of the output layers: its numbers (tests/triton_softmax_numbers.py).

tests/test_triton_compile.py compiles the same kernels for GPUs that need not be there.
"""

import pytest
import torch
from test_triton import needs_triton, run_numbers

NUMBERS = "triton_softmax_numbers.py"


@needs_triton
def test_numbers_in_the_interpreter():
    run_numbers("1", NUMBERS)


@needs_triton
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_numbers_on_the_gpu():
    run_numbers("0", NUMBERS)
