"""What the parts of ``gpu-check`` share: a record that is written as it grows, and time limits.

A GPU is at hand rarely and briefly. So every part is a process of its own with a limit, an error in
one loses nothing of the others, and what was seen is on disk before the next thing is tried.
"""

import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

import torch

from . import environment
from .results import read, write

SCHEMA = 1
BAD = ("wrong", "failed")
"""The statuses of an entry that make gpu-check exit with 1."""

Item = TypeVar("Item")


@dataclass
class Record:
    """One part's results, one JSON file.

    Attributes:
        part: its name.
        dry: whether it ran on the CPU, to show that the part itself works.
        created: local time in ISO format.
        environment: see :func:`describe`.
        status: ``running``, ``complete``, ``cut off`` (the time was over) or ``failed``.
        reason: of a status other than complete.
        seconds: what it took.
        entries: what was found, in order; each has a ``status`` where it can be good or bad.
    """

    part: str
    dry: bool
    created: str
    environment: dict[str, object]
    status: str = "running"
    reason: str = ""
    seconds: float = 0.0
    entries: list[dict[str, object]] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        write(path, {"schema": SCHEMA, "kind": "gpu-check"} | asdict(self), "entries")

    @property
    def bad(self) -> list[dict[str, object]]:
        """The entries that are wrong or failed."""
        return [entry for entry in self.entries if entry.get("status") in BAD]


def load(path: str | Path) -> Record:
    """Read a file of a part.

    Raises:
        ResultsError: it cannot be read, or is of another kind or schema.
    """
    content = read(path, "a result of gpu-check", kind="gpu-check", schema=SCHEMA)
    return Record(**content)


class Run:
    """A part under way: its record, its file, its time.

    Attributes:
        record: what was found so far.
        dry: on the CPU, and only a little of everything.
        device: ``cuda``, or ``cpu`` where it is dry.
        folder: where the file is, and whatever else the part leaves.
    """

    def __init__(self, part: str, folder: Path, seconds: float, dry: bool, commit: str) -> None:
        self.dry, self.folder = dry, folder
        self.device = "cpu" if dry else "cuda"
        self._path = folder / f"{part}.json"
        self._start, self._seconds = time.monotonic(), seconds
        created = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self.record = Record(part, dry, created, describe(self.device, commit))
        self.record.save(self._path)

    @property
    def left(self) -> float:
        """Seconds that the part still has."""
        return self._seconds - (time.monotonic() - self._start)

    def add(self, **entry: object) -> None:
        """Keep one finding, on disk at once."""
        self.add_all([entry])

    def add_all(self, entries: list[dict[str, object]]) -> None:
        """Keep several findings."""
        self.record.entries += entries
        self.record.seconds = round(time.monotonic() - self._start, 2)
        self.record.save(self._path)

    def in_time(self, items: Sequence[Item]) -> Iterator[Item]:
        """The items, as long as there is time; then the record says how many were left out."""
        for number, item in enumerate(items):
            if self.left <= 0:
                self.record.status = "cut off"
                self.record.reason = f"its time was over after {number} of {len(items)}"
                self.record.save(self._path)
                return
            yield item

    def close(self, status: str = "complete", reason: str = "") -> None:
        """The last write."""
        if self.record.status == "running":
            self.record.status, self.record.reason = status, reason
        self.record.seconds = round(time.monotonic() - self._start, 2)
        self.record.save(self._path)


@dataclass(frozen=True)
class Part:
    """One part of the check.

    Attributes:
        about: one line.
        seconds: its share of the time, on an H200.
        run: does it.
    """

    about: str
    seconds: float
    run: Callable[[Run], None]


def describe(device: str, commit: str) -> dict[str, object]:
    """The card, the versions, the commit.

    ``commit`` names it where there is no git repository: copies of a working tree often have none.
    """
    facts = environment.describe(device)
    facts["commit"] = commit or facts["commit"]
    for package in ("triton", "pytest"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    facts["nvcc"] = _said("nvcc", "--version").rpartition("release ")[2].partition(",")[0]
    query = "--query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit"
    facts["nvidia_smi"] = _said("nvidia-smi", query, "--format=csv,noheader")
    if device == "cuda":
        seen = torch.cuda.get_device_properties(0)
        values = {n: getattr(seen, n) for n in dir(seen) if not n.startswith("_")}
        facts["properties"] = {
            n: v for n, v in values.items() if isinstance(v, (int, float, str)) and n != "uuid"
        }
    return facts


def _said(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def launched(call: Callable[[], object], device: str) -> dict[str, int]:
    """The kernels that a call launches, with how often each, by torch's profiler.

    On the CPU the operators instead, so that the code that asks can be tried there.
    """
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    on_gpu = device == "cuda"
    kind = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    with profile(activities=[kind], acc_events=True) as seen:
        call()
        if on_gpu:
            torch.cuda.synchronize()
    wanted = DeviceType.CUDA if on_gpu else DeviceType.CPU
    return dict(Counter(e.name for e in seen.events() if e.device_type == wanted))
