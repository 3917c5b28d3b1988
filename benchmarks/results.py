"""What a run leaves: one JSON file with the environment and every row's samples."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from .case import Case
from .timing import quartiles

SCHEMA = 1
FULL = "the fastest full softmax"
FOLDER = Path(__file__).parent / "results"

STATUSES = {
    "ok": "verified and timed",
    "wrong": "breaks the error rule; not timed",
    "unsupported": "the peer has no such thing, or is not here",
    "out of memory": "the machine's memory did not suffice",
    "failed": "raised an error",
    "unmeasured": "the run was interrupted before",
}


class ResultsError(ValueError):
    """A file that cannot be used; the message says which and why."""


@dataclass
class Row:
    """One peer on one case.

    Attributes:
        case: what is measured.
        peer: who.
        status: one of ``STATUSES``.
        reason: of a status other than ok; of ok, what a reader must know.
        samples: seconds a call, by the clock, in the order taken.
        device_samples: on a GPU, those by events: cold, hot, graph.
        error: the largest relative error; None: not compared.
        bound: what the error rule allows.
        peak: bytes in use at the peak of a call.
        flops: of one call's products.
        ours: whether the peer is this package.
        baseline: whether it is what the others of its case are compared with.
        twin: whether it is a second copy of ours, which shows the noise.
        loss: what the model's loss is on these inputs; None: it has none.
        goal: how many times as fast as the baseline it should be, or as ``goal_of``.
        goal_of: another peer; ``FULL``: the fastest of those that compute the full softmax.
        condition: clock and temperature after it, on a GPU.
    """

    case: Case
    peer: str
    status: str = "unmeasured"
    reason: str = ""
    samples: list[float] = field(default_factory=list)
    device_samples: dict[str, list[float]] = field(default_factory=dict)
    error: float | None = None
    bound: float | None = None
    peak: int | None = None
    flops: int | None = None
    ours: bool = False
    baseline: bool = False
    twin: bool = False
    loss: float | None = None
    goal: float | None = None
    goal_of: str = ""
    condition: dict[str, float] | None = None

    @property
    def median(self) -> float:
        """Seconds a call."""
        return quartiles(self.samples)[1]

    @property
    def spread(self) -> float:
        """The interquartile range as a share of the median."""
        low, median, high = quartiles(self.samples)
        return (high - low) / median

    @property
    def label(self) -> str:
        """The peer, and that it is the twin."""
        return f"{self.peer} (again)" if self.twin else self.peer


@dataclass
class Run:
    """All rows of a run, and what they depend on.

    Attributes:
        suite: its name, or ``custom``.
        created: local time in ISO format.
        command: as typed.
        environment: see ``environment.describe``.
        peaks: GFLOP/s and GB/s measured at its start.
        rows: in the order of the suite.
        lm: what the ``lm`` command measured, see ``lm_table.py``.
    """

    suite: str
    created: str
    command: str
    environment: dict[str, object]
    peaks: dict[str, float] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    lm: dict[str, object] = field(default_factory=dict)

    def by_case(self) -> Iterator[tuple[Case, list[Row]]]:
        """The rows of each case, in order."""
        cases = dict.fromkeys(row.case for row in self.rows)
        for case in cases:
            yield case, [row for row in self.rows if row.case == case]

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        content = {"schema": SCHEMA} | asdict(self)
        for row in content["rows"]:
            row["samples"] = [float(f"{s:.5g}") for s in row["samples"]]
        write(path, content, "rows")


def write(path: Path, content: dict[str, object], listed: str) -> None:
    """Write a JSON file, whole or not at all, with a line for each entry of one of its lists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n  ".join(json.dumps(entry) for entry in content.pop(listed))
    text = f'{json.dumps(content, indent=1)[:-2]},\n "{listed}": [\n  {lines}\n ]\n}}\n'
    fresh = path.with_name(path.name + ".part")
    fresh.write_text(text, encoding="utf-8")
    os.replace(fresh, path)


def read(path: str | Path, what: str, **marks: object) -> dict[str, object]:
    """The content of a JSON file that must have these marks, which are taken out of it.

    Raises:
        ResultsError: it cannot be read, or differs in a mark; ``what`` says what it should be.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultsError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ResultsError(f"{path}: no JSON ({error})") from error
    for name, value in marks.items():
        found = content.pop(name, None) if isinstance(content, dict) else None
        if found != value:
            raise ResultsError(f"{path}: not {what}: its {name} is {found!r}, not {value!r}")
    return content


def load(path: str | Path) -> Run:
    """Read a file that :meth:`Run.save` wrote.

    Raises:
        ResultsError: it cannot be read, or is of another kind or schema.
    """
    content = read(path, "a result of run or lm", schema=SCHEMA)
    names = {f.name for f in fields(Row)} - {"case"}
    rows = []
    for entry in content.pop("rows"):
        case = entry.pop("case")
        case = Case(**case | {"shape": tuple(case["shape"])})
        rows.append(Row(case, **{k: v for k, v in entry.items() if k in names}))
    return Run(**content, rows=rows)


def newest(suite: str) -> Path | None:
    """The newest recorded run of a suite, or None."""
    found = [
        (run.created, path)
        for path in FOLDER.glob("*/*.json")
        if (run := load(path)).suite == suite
    ]
    return max(found)[1] if found else None


def ratio(baseline: list[float], samples: list[float]) -> tuple[float, float, float]:
    """How many times faster than the baseline, with a 95% confidence interval.

    The ratio of medians; its interval by the percentile bootstrap of both sides, 2,000 resamples
    from a fixed seed.
    """
    import torch

    random = torch.Generator().manual_seed(0)

    def medians(values: list[float]) -> torch.Tensor:
        kept = torch.tensor(values, dtype=torch.float64)
        index = torch.randint(len(values), (2000, len(values)), generator=random)
        return kept[index].quantile(0.5, dim=1)

    spread = (medians(baseline) / medians(samples)).sort().values
    point = quartiles(baseline)[1] / quartiles(samples)[1]
    return point, float(spread[49]), float(spread[1949])
