"""The one line that says how far a long command is."""

import shutil
import sys
import time
from typing import TextIO


class Progress:
    """One line: rewritten in place on a terminal, else a new one every fifteen seconds."""

    def __init__(self, total: int, stream: TextIO | None = None) -> None:
        self._total, self._done = total, 0
        self._stream = stream or sys.stdout
        self._terminal = self._stream.isatty()
        self._last = time.perf_counter()

    def advance(self, text: str, seconds_left: float) -> None:
        """Count one turn of a row."""
        self._done += 1
        minutes, seconds = divmod(max(0, round(seconds_left)), 60)
        self.show(f"ETA {minutes}:{seconds:02}  {text}", last=self._done == self._total)

    def show(self, text: str, *, last: bool = False) -> None:
        """Say what is being done; without a terminal, only after a long silence, or at last."""
        share, now = self._done / self._total, time.perf_counter()
        line = f"{share:4.0%}  {text}"
        if self._terminal:
            width = shutil.get_terminal_size().columns - 1
            bar = "━" * round(20 * share)
            text = f"\r{f'{bar:┈<20} {line}'[:width]}\x1b[K"
            print(text, end="", flush=True, file=self._stream)
        elif last or now - self._last >= 15:
            print(line, flush=True, file=self._stream)
            self._last = now

    def close(self) -> None:
        """Clear the line for what comes after it."""
        if self._terminal:
            print("\r\x1b[K", end="", flush=True, file=self._stream)
