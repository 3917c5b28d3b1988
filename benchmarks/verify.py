"""Before a row is timed it is verified: the error rule of the tests, on the row's own problem.

Against float64, at most twice the error of torch's own operator in the same dtype, plus the floor.
A peer may be four times less exact than that and is still timed, its error beside it: torch.compile
of torch's own output layer is 1.2 times beyond the rule.
"""

import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from fusedrnn import _precision

from .problems import Problem, Sequence
from .task import Task, results


def _rule() -> object:
    """tests/exactness.py by its path: a package of someone else's may be called ``tests``."""
    path = Path(__file__).parent.parent / "tests" / "exactness.py"
    spec = importlib.util.spec_from_file_location("fusedrnn_exactness", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


rule = _rule()
PEERS_MAY = 4.0  # times what the rule allows us
EXACT64 = 1e-13  # float64, where nothing is more exact: equal but for the order of sums


@dataclass(frozen=True)
class Verdict:
    """How exact a task is.

    Attributes:
        error: the largest relative error, in the 2-norm, of its outputs and gradients; None: it
            returns nothing that could be compared.
        bound: what the rule allows that one.
        wrong: what breaks the rule, in words, or None.
        loss: of a task that has one, its value: models differ, and with them what they reach.
    """

    error: float | None
    bound: float | None
    wrong: str | None
    loss: float | None = None


def verify(task: Task, problem: Problem, may: float = 1.0) -> Verdict:
    """Run a task once and hold every output and gradient to ``may`` times the rule.

    A peer with a model of its own (``task.truth``) is held to itself in float64: its error is told,
    and only what is not finite is wrong.
    """
    if task.step is not None:
        task.step()
        return Verdict(None, None, None)
    got = problem.comparable(results(task, problem), task.kind)
    own = task.truth() if task.truth else None
    truth, yardstick = (own, None) if own else problem.judge(task.kind)
    worst, wrong = (-1.0, 0.0, math.inf), None
    shared = [name for name in got if name in truth]  # outputs first, then gradients
    for name in shared:
        error = rule.error(got[name], truth[name])
        bound = math.inf
        if not own:  # the same for every peer of this kind: V x H numbers are compared once
            if (task.kind, name) not in problem.bounds:
                theirs = rule.error(yardstick[name], truth[name])
                problem.bounds[task.kind, name] = allowed(theirs, problem)
            bound = problem.bounds[task.kind, name]
        if not error <= may * bound or not math.isfinite(error):
            wrong = wrong or f"{name}: error {error:.3g}, allowed {may * bound:.3g}"
        worst = max(worst, (error / bound if bound else math.inf, error, bound))
    if not shared:
        wrong = f"nothing to compare: it returns {', '.join(got) or 'nothing'}"
    loss = float(got["loss"]) if "loss" in got else None
    return Verdict(worst[1], worst[2] if math.isfinite(worst[2]) else None, wrong, loss)


def allowed(theirs: float, problem: Problem) -> float:
    """The error that the rule allows where torch's own operator makes this one.

    Where torch's switch lets float32 be rounded before it is multiplied, the rule has tf32's
    epsilon, which is that of float16.
    """
    dtype, device = problem.case.torch_dtype, torch.device(problem.case.device)
    if dtype == torch.float64:
        return EXACT64
    recurs = isinstance(problem, Sequence)
    switch = _precision.of_recurrence if recurs else _precision.of_output
    if switch(dtype, device) == "tf32":
        dtype = torch.float16
    return 2 * theirs + rule.FLOOR * torch.finfo(dtype).eps
