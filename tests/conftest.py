"""Devices and backends as fixtures; one seed for every test."""

import pytest
import torch

import fusedrnn
from fusedrnn import _native

NO_GPU = None if torch.cuda.is_available() else "no CUDA device on this machine"
CUDA = [pytest.mark.gpu, pytest.mark.skipif(NO_GPU is not None, reason=str(NO_GPU))]
BACKENDS = [
    pytest.param(("cpu", "cpu"), id="cpu"),
    pytest.param(("reference", "cpu"), id="reference"),
    pytest.param(("cuda", "cuda"), id="cuda", marks=CUDA),
    pytest.param(("triton", "cuda"), id="triton", marks=CUDA),
]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]

# What the tests compare float32 with is float32 itself. torch's own default for RNNs is tf32.
torch.backends.cudnn.allow_tf32 = False

# A minute and more each: they go first, so that at the end no process is left alone with one.
LONGEST = (
    "test_triton.py",
    "test_triton_compile.py",
    "test_bench_run.py",
    "test_isa.py",
    "test_triton_softmax.py",
    "test_build.py",
    "test_user_cell.py",
    "test_sequence.py",
    "test_softmax.py",
)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(20261121)


@pytest.fixture(params=BACKENDS)
def device(request):
    """The device of the test, with each backend that serves it in force."""
    name, device = request.param
    if name == "cpu" and _native.MISSING:
        pytest.skip(_native.MISSING)
    with fusedrnn.backend(name):
        yield torch.device(device)


@pytest.fixture(params=DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def dtype(request):
    """Each dtype that the kernels take."""
    return request.param
