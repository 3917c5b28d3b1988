"""Whether others use the processors while something is measured."""

import os
import time
from pathlib import Path

QUIET = 0.05
"""The share of the processors' time that others may take while something is recorded. With one of
two cores taken, what waits at a barrier took ten times as long, and what does not took three times:
no ratio means anything then."""


class Others:
    """How much of the processors' time goes to other processes, from its creation on."""

    def __init__(self) -> None:
        self._start = self._seconds()

    @staticmethod
    def _seconds() -> tuple[float, float, float] | None:
        """By the clock, of all processors at work, and of this process and its ended children."""
        try:
            fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        except OSError:
            return None
        user, nice, system, _idle, _wait, irq, soft, steal = map(int, fields)
        busy = (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")
        return time.monotonic(), busy, sum(os.times()[:4])

    def share(self) -> float | None:
        """Of all that the processors could do since; None: the machine does not tell."""
        now = self._seconds()
        if now is None or self._start is None:
            return None
        clock, busy, own = (b - a for a, b in zip(self._start, now, strict=True))
        return round(max(0.0, (busy - own) / (clock * (os.cpu_count() or 1))), 3)


class Quiet:
    """Tells which samples to keep: those of times in which others left the processors alone.

    What decides is the share of the others, never a sample itself.

    Attributes:
        patience: seconds of samples that may be thrown away in all; then everything is kept.
        lost: seconds of samples thrown away.
    """

    WINDOW = 0.5  # seconds; the system counts in hundredths

    def __init__(self, patience: float = 0.0) -> None:
        self.patience, self.lost = patience, 0.0
        self._kept: list[tuple[float, float]] = []
        self.begin()

    def begin(self) -> None:
        """What comes now is judged next."""
        self._others, self._since = Others(), time.monotonic()

    def keep(self) -> bool | None:
        """Whether to keep what was taken since it was last told; None: too early to tell."""
        seconds = time.monotonic() - self._since
        if seconds < self.WINDOW:
            return None
        share = self._others.share()
        self.begin()
        if share is not None and share > QUIET and self.lost < self.patience:
            self.lost += seconds
            return False
        if share is not None:
            self._kept.append((seconds, share))
        return True

    def end(self) -> None:
        """What was taken last is kept, however short a time it took."""
        share = self._others.share()
        if share is not None:
            self._kept.append((time.monotonic() - self._since, share))

    def share(self) -> float | None:
        """The others' share of the time of all that was kept; None: the machine does not tell."""
        total = sum(seconds for seconds, _ in self._kept)
        return round(sum(s * share for s, share in self._kept) / total, 3) if total else None
