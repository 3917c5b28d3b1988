"""What training a language model costs: its time, part by part, and a table's line made of it."""

import time
from dataclasses import dataclass, field

import torch

PARTS = ("recurrence", "output", "rest")


class Stopwatch:
    """Adds up the time from mark to mark under the name of the second.

    On a GPU the marks are events in its stream: they wait for nothing, so that taking the time
    leaves the work as it is; only ``read`` waits.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[str, float | torch.cuda.Event]] = []

    def mark(self, name: str = "") -> None:
        """End the part called ``name`` here."""
        if self._cuda:
            moment = torch.cuda.Event(enable_timing=True)
            moment.record()
        else:
            moment = time.perf_counter()
        self._marks.append((name, moment))

    def read(self) -> dict[str, float]:
        """The seconds of each part since the first mark."""
        if self._cuda:
            self._marks[-1][1].synchronize()
        seconds = dict.fromkeys(PARTS, 0.0)
        for (_, before), (name, after) in zip(self._marks, self._marks[1:], strict=False):
            seconds[name] += before.elapsed_time(after) / 1e3 if self._cuda else after - before
        return seconds


@dataclass(frozen=True)
class Turn:
    """Some consecutive training steps of one row: what they cost and gave."""

    steps: int
    tokens: int
    loss: float
    seconds: dict[str, float]

    @property
    def total(self) -> float:
        """Seconds of all parts."""
        return sum(self.seconds.values())

    @property
    def seconds_per_token(self) -> float:
        """What the turns of a row are ordered by."""
        return self.total / self.tokens


@dataclass
class Row:
    """One line of the table: a model's name, and what was measured.

    Attributes:
        recurrence: its name in ``ALL_RECURRENCES``.
        output: its name, as ``output_layer`` takes it.
        turns: what was trained so far.
        perplexity: of the validation text after training, or None.
    """

    recurrence: str
    output: str
    turns: list[Turn] = field(default_factory=list)
    perplexity: float | None = None

    @property
    def name(self) -> str:
        """Both names."""
        return f"{self.recurrence} + {self.output}"

    @property
    def steps(self) -> int:
        """Training steps done."""
        return sum(turn.steps for turn in self.turns)

    def _typical(self) -> list[Turn]:
        """The middle half of the turns by speed: a pause of the machine counts for none.

        On two shared cores one turn in ten took 5 to 20 times as long as the others: too much for
        any mean.
        """
        ordered = sorted(self.turns, key=lambda turn: turn.seconds_per_token)
        quarter = len(ordered) // 4
        return ordered[quarter : len(ordered) - quarter]

    @property
    def seconds_per_step(self) -> float:
        """Training time, evaluation and warm-up excluded."""
        return sum(self.ms(part) for part in PARTS) / 1e3

    @property
    def tokens_per_second(self) -> float:
        """Of training, evaluation and warm-up excluded."""
        turns = self._typical()
        return sum(turn.tokens for turn in turns) / sum(turn.total for turn in turns)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The milliseconds per step between which the middle half of the turns lies."""
        turns = self._typical()
        return tuple(1e3 * turn.total / turn.steps for turn in (turns[0], turns[-1]))

    def ms(self, part: str) -> float:
        """Milliseconds per step of one of ``PARTS``."""
        turns = self._typical()
        return 1e3 * sum(t.seconds[part] for t in turns) / sum(t.steps for t in turns)
