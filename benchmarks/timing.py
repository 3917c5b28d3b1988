"""How a call is timed on a CPU: blocks of calls by the clock, contenders in turns.

A sample is the mean of a block of calls long enough for the clock. Contenders take turns, one block
each, so that a machine that slows down slows all of them; medians and quartiles are told. Who is
next to whom must not matter: the order of each round is drawn anew, and a block of several calls
begins with one that is not timed. (Without that, of two copies of ours at B = 1 the one that came
after torch took 1.3 times as long as the one that came after the other.)
"""

import gc
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .problems import Problem
from .quiet import Quiet
from .task import Task

BLOCK = 2e-3  # seconds; perf_counter and the loop around a call cost less than 0.1% of it
WARM_UP = 0.15  # seconds; less where fewer are sampled
LONG = 1.0  # seconds: such a call is warm after those that verified it and took its memory
FEWEST, MOST = 5, 60  # samples
CLOSE = 0.01  # stop when the median is known to 1%


@dataclass
class Stepper:
    """One task in one mode, as something to call and something to time.

    Attributes:
        prepare: what must be done before each timed call and is not timed; None: nothing.
        call: what is timed; takes what ``prepare`` returned.
    """

    call: Callable[..., object]
    prepare: Callable[[], object] | None = None

    def once(self) -> None:
        """One call."""
        self.call(*(() if self.prepare is None else (self.prepare(),)))

    def seconds(self, calls: int) -> float:
        """The mean of a block of calls."""
        clock = time.perf_counter
        if calls > 1:
            self.once()
        if self.prepare is None:
            start = clock()
            for _ in range(calls):
                self.call()
            return (clock() - start) / calls
        total = 0.0
        for _ in range(calls):
            ready = self.prepare()
            start = clock()
            self.call(ready)
            total += clock() - start
        return total / calls


def stepper(task: Task, problem: Problem) -> Stepper:
    """What a case's mode means for a task."""
    mode = problem.case.mode
    if task.step is not None:
        return Stepper(task.step)
    if mode == "infer":
        return Stepper(torch.no_grad()(task.forward))
    if mode == "fwd":
        return Stepper(task.forward)
    leaves = list(task.leaves.values())

    def backward(out: dict[str, torch.Tensor]) -> None:
        start = problem.grad(out)
        torch.autograd.grad(next(iter(out.values())), leaves, start, allow_unused=True)

    if mode == "bwd":
        return Stepper(backward, prepare=task.forward)
    return Stepper(lambda: backward(task.forward()))


def warm_up(stepper: Stepper, limit: float = WARM_UP) -> int:
    """Call until the time of a call is known; return how many make a block."""
    seconds, spent = stepper.seconds(1), 0.0
    while spent < limit and seconds < limit:
        calls = max(1, min(math.ceil(BLOCK / seconds), 10_000))
        seconds = stepper.seconds(calls)
        spent += calls * seconds
    return max(1, math.ceil(BLOCK / seconds))


def quartiles(samples: list[float]) -> tuple[float, float, float]:
    """The lower quartile, the median and the upper quartile."""
    ordered = sorted(samples)

    def at(share: float) -> float:
        place = share * (len(ordered) - 1)
        low = math.floor(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])

    return at(0.25), at(0.5), at(0.75)


def settled(samples: list[float]) -> bool:
    """Whether the median is known well enough: 1.57 IQR / sqrt(n), as of notched box plots."""
    if len(samples) < 2 * FEWEST:
        return False
    low, median, high = quartiles(samples)
    return 1.57 * (high - low) / math.sqrt(len(samples)) <= CLOSE * median


def alternate(
    contenders: list[Callable[[], float]],
    *,
    seconds: float,
    each: Callable[[], None] = lambda: None,
    quiet: Quiet | None = None,
) -> list[list[float]]:
    """Take samples by turns until all medians are settled or the time is over.

    Args:
        contenders: each takes one sample when called.
        seconds: for each contender; all have at least ``FEWEST`` samples whatever it takes.
        each: called after every round.
        quiet: says whether what was sampled is kept; what is not is sampled anew at once.
    """
    quiet = quiet or Quiet()
    quiet.begin()
    samples: list[list[float]] = [[] for _ in contenders]
    taken: list[tuple[int, float]] = []  # of which it is not known whether they are kept
    start, collect, order = time.perf_counter() - quiet.lost, gc.isenabled(), random.Random(0)
    gc.disable()
    try:
        for turn in range(MOST):
            round_ = order.sample(range(len(contenders)), len(contenders))
            while round_:
                index = round_.pop(0)
                taken.append((index, contenders[index]()))
                keep = quiet.keep()
                if keep is False:
                    round_ = [i for i, _ in taken] + round_
                elif keep:
                    samples = _with(samples, taken)
                if keep is not None:
                    taken = []
            each()
            late = time.perf_counter() - quiet.lost - start > seconds * len(contenders)
            if turn + 1 >= FEWEST and (late or all(map(settled, _with(samples, taken)))):
                break
    finally:
        if collect:
            gc.enable()
    quiet.end()
    return _with(samples, taken)


def _with(samples: list[list[float]], taken: list[tuple[int, float]]) -> list[list[float]]:
    """The samples of each, with those that were taken since."""
    return [have + [s for i, s in taken if i == k] for k, have in enumerate(samples)]
