"""The generated twins in Triton's kernels: run by test_user_cell.py, as triton_numbers.py is."""

from dataclasses import replace

import pytest
import torch
import user_cells
from exactness import assert_close64
from sequence_case import Case
from triton_numbers import check, force, one_thread, round_to_nearest  # noqa: F401
from triton_option_numbers import both

pytestmark = pytest.mark.usefixtures("one_thread", "round_to_nearest")
ALL = Case(4, 3, 7, directions=2, lengths=(1, 4, 0), reset="given")


@pytest.fixture(scope="module", autouse=True)
def cells():
    with user_cells.registered() as named:
        yield named


@pytest.mark.parametrize("kernel", ("whole", "step"))
@pytest.mark.parametrize("name", ("mgu", *user_cells.CELLS))
@pytest.mark.parametrize("dtype", (torch.float64, torch.float32), ids=str)
def test_values_and_gradients(force, kernel, name, dtype):  # noqa: F811
    force(kernel)
    check(name, ALL if dtype == torch.float64 else replace(ALL, lengths=None, H=16), dtype)


@pytest.mark.parametrize("kernel", ("whole", "step"))
def test_in_16_bits(force, kernel):  # noqa: F811
    force(kernel)
    check("mgu", Case(3, 3, 16), torch.bfloat16)


@pytest.mark.parametrize(("kernel", "name"), (("whole", "user_everything"), ("step", "mgu")))
def test_zoneout(force, kernel, name):  # noqa: F811
    """Of padding too, where the maths of "user_everything" make NaN."""
    force(kernel)
    assert_close64(*both(f"{name}:zoneout_h=0.4", ALL, torch.float64), name)


def test_clipped_and_projected(force):  # noqa: F811
    force("whole")
    check("mgu:dh_clip=0.1", Case(3, 2, 7))
    check("user_lstm", Case(3, 3, 7, P=5))
