"""One peer on one problem: built, verified, then asked for samples, one at a time.

The same object works in this process and, for another commit (``--base``), at the far end of a
pipe.
"""

from dataclasses import dataclass

import torch

from . import gpu
from .case import Case
from .memory import peak
from .peers import PEERS
from .problems import Problem, problem
from .task import Unsupported
from .timing import LONG, WARM_UP, Stepper, stepper, warm_up
from .verify import PEERS_MAY, Verdict, verify

OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


class Failure(Exception):
    """The peer cannot be timed on this case: a status and the reason."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(status, reason)
        self.status, self.reason = status, reason


def classify(error: BaseException) -> Failure:
    """Which status an error is."""
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    if isinstance(error, Unsupported):
        return Failure("unsupported", reason)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and any(text in reason for text in OUT_OF_MEMORY)
    ):
        return Failure("out of memory", reason)
    return Failure("failed", f"{type(error).__name__}: {reason}")


@dataclass
class Built:
    """A peer that passed, warm, with the calls of a block."""

    stepper: Stepper
    verdict: Verdict
    calls: int
    flops: int | None
    peak: int | None
    device: str

    def sample(self) -> float:
        """Seconds a call, by the clock."""
        if self.device == "cuda":
            return gpu.wall(self.stepper, self.calls)
        return self.stepper.seconds(self.calls)

    def device_samples(self, seconds: float) -> dict[str, list[float]]:
        """On a GPU, times by events."""
        return gpu.device_samples(self.stepper, seconds) if self.device == "cuda" else {}


def build(name: str, case: Case, seconds: float, shared: Problem | None = None) -> Built:
    """Build a peer on a case, verify it, warm it up, take its memory.

    ``seconds`` is how long it will be sampled.

    Raises:
        Failure: it is not here, has no such thing, is wrong, or raised an error.
    """
    try:
        of = shared or problem(case)
        if reason := PEERS[name].obstacle(case):
            raise Unsupported(reason)
        task = PEERS[name].build(of)
        verdict = verify(task, of, 1.0 if PEERS[name].ours else PEERS_MAY)
        if verdict.wrong:
            raise Failure("wrong", verdict.wrong)
        steps = stepper(task, of)
        first: list[float] = []
        used = peak(lambda: first.append(steps.seconds(1)), case.device)
        calls = 1 if first and first[0] >= LONG else warm_up(steps, min(WARM_UP, seconds / 3))
        return Built(steps, verdict, calls, task.flops or case.flops(), used, case.device)
    except Failure:
        raise
    except Exception as error:
        raise classify(error) from error
