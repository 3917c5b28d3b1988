"""``gpu-status``: writes docs/gpu-status.md from the recorded results of gpu-check.

The files are those under benchmarks/results/gpu. Without any, every kernel is said never to have
run on a GPU.
"""

import argparse
import shutil
from collections.abc import Iterable
from pathlib import Path

from fusedrnn.cells import CELLS

from . import gpu_check_softmax
from .environment import ROOT
from .gpu_check import Record, load
from .gpu_check_kernels import KERNELS, cells, dtypes
from .markdown import grid
from .results import FOLDER, ResultsError

PAGE = ROOT / "docs" / "gpu-status.md"
RECORDED = FOLDER / "gpu"  # CARD/DATE-COMMIT/PART.json
NEVER = "never run on a GPU"
DIRECTIONS = ("forward", "backward")

NOTHING = """\
Nothing yet. Every kernel below has been compiled for GPUs and its numbers have been checked without
one; none has been launched on a card. Until a row says otherwise, take the speed of the GPU path as
unmeasured and its results as unproven on hardware.
"""
SOMETHING = """\
What `python -m benchmarks gpu-check` found on each card. A row that says nothing of a card has been
compiled for GPUs and its numbers have been checked without one; it has not been launched.
"""
AFTER = """\
Each row stands for every cell: {cells}.
The cluster kernel has all of them but `gru_reset_before`, whose second product it lacks, and
`slstm`, whose four states it has no room for. What a cell's options need launches of their own for,
full peepholes and layer normalisation, only the stepwise kernel has; `gpu-check` tries it among the
tests (`tests/test_gpu.py`), and no row here speaks of it. float32 is held to the rule of float32;
tf32 is float32 where `torch.backends.cudnn.rnn.fp32_precision` lets numbers be rounded before they
are multiplied, and is held to a rule with the epsilon of float16.

Stacked layers that take turns on streams of their own (`fusedrnn/_waves.py`) launch these kernels
and have none: never run on a GPU either. Without one their order is held by clocks in the place of
streams (`tests/test_waves.py`); on a card `gpu-check` tries them among the tests and in the suite.

- **host**: the CUDA source itself, compiled by g++ with every CUDA thread as a fiber, against
  float64 under the error rule (`tests/test_cuda_host.py`, `tests/test_cluster_host.py`,
  `tests/test_grid_host.py`): every option, sizes across every tile border, random orders of
  threads, CTAs and of what CTAs send each other, NaN around every buffer. What tensor cores do is
  done lane by lane, as the instructions define it; in float32 as they do it at worst, with sums
  that are cut off. It cannot show what a GPU's memory system, scheduler or compiler does.
- **compiled**: stepwise CUDA for sm_75, sm_80, sm_90a, sm_100 and sm_120, grid CUDA for those from
  sm_80 on, cluster CUDA for sm_90a and sm_100 (elsewhere they are empty, and the planner never
  picks them), no register spilled ([kernel-table.md](kernel-table.md),
  `tests/test_cuda_compile.py`); Triton offline for the architectures named in
  `tests/test_triton_compile.py`.
- **interpreter**: Triton's own, on the CPU (`tests/test_triton.py`).
- **gradcheck**: numerical derivatives of the very kernel, in float64.
"""
OUTPUTS = """\
## Output layers

Each row stands for a flat, a two-level and a Huffman tree. Shown without a GPU as above
(`tests/test_softmax_host.py`, `tests/test_softmax_search_host.py`, `tests/test_triton_softmax.py`).
These kernels compute the loss and its gradients, dense and row-sparse, and the log-probabilities of
all words with theirs; the search finds the best words for `topk` and `predict`, a kernel like it
draws words for `sample`. No Triton kernel searches or samples: there both are torch's own operators
over all words.
"""
CHANGES = """\
## How a row changes

On a machine with a card, a CUDA build of torch and a build of this package with CUDA kernels:

    python -m benchmarks gpu-check --out checked    # 8 minutes; --part cuda alone: one
    python -m benchmarks gpu-status --add checked   # records the files and writes this page

`gpu-check` holds every cell and dtype of every kernel to the error rule against float64 and asks
for the same bits three times; runs the tests marked `gpu` (CUDA graph capture and replay, two
streams, opcheck, torch.compile) and compute-sanitizer; and takes the microbenchmarks, cuDNN's
kernels and the suites along. Every finding is in its files at once, so a run that is cut off loses
nothing. `--dry` tries all of it on the CPU. A test fails when this page and the files disagree.
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``gpu-status``."""
    add = parser.add_argument
    add("--add", type=Path, metavar="DIR", help="record the files of gpu-check that are there")
    add("--check", action="store_true", help="change nothing; exit with 1 if the page is stale")


def main(options: argparse.Namespace) -> int:
    """Write the page, or say that it is stale."""
    if options.add:
        print(f"recorded in {record(options.add).relative_to(ROOT)}")
    text = page(records())
    stale = not PAGE.exists() or PAGE.read_text() != text
    if stale and not options.check:
        PAGE.write_text(text, encoding="utf-8")
    state = "up to date" if not stale else "stale" if options.check else "written"
    print(f"{PAGE.relative_to(ROOT)}: {state}")
    return int(options.check and stale)


def record(folder: Path) -> Path:
    """Copy a run's files to where they are kept.

    Raises:
        ResultsError: there are none, or they are of a dry run, or name no commit.
    """
    files = {path: load(path) for path in sorted(folder.glob("*.json"))}
    if not files:
        raise ResultsError(f"{folder}: no JSON file of gpu-check is there")
    for path, one in files.items():
        if one.dry:
            raise ResultsError(f"{path}: of a dry run, which shows nothing of a GPU")
        if one.environment["commit"] == "unknown":
            raise ResultsError(f"{path}: names no commit; run gpu-check with --commit")
    first = min(files.values(), key=lambda one: one.created)
    facts = first.environment
    into = RECORDED / str(facts["slug"]) / f"{first.created[:10]}-{facts['commit']}"
    into.mkdir(parents=True, exist_ok=True)
    for path in files:
        shutil.copyfile(path, into / path.name)
    return into


def records(folder: Path = RECORDED) -> list[Record]:
    """All that are kept, the newest first."""
    found = [load(path) for path in folder.glob("*/*/*.json")]
    return sorted(found, key=lambda one: one.created, reverse=True)


def page(found: list[Record]) -> str:
    """docs/gpu-status.md."""
    head = f"# What has run on a GPU\n\n{SOMETHING if found else NOTHING}"
    cells = ",\n".join(wrapped([f"`{name}`" for name in CELLS]))
    after = AFTER.format(cells=cells)
    outputs = [OUTPUTS, table(found, gpu_check_softmax.KERNELS)]
    return "\n".join([head, table(found, KERNELS), after, *outputs, *checks(found), CHANGES])


def table(found: list[Record], kernels: Iterable[str]) -> str:
    """A row for each kernel, dtype and direction."""
    heads = ["kernel", "dtype", "direction", "on a GPU", "shown without one"]
    body = [
        [kernel, dtype, direction, status(found, kernel, dtype, direction), without(kernel, dtype)]
        for kernel in kernels
        for dtype in dtypes(kernel)
        for direction in directions(kernel)
    ]
    rows = "\n".join(f"| {' | '.join(line)} |" for line in [heads, ["---"] * len(heads), *body])
    return f"{rows}\n"


def directions(kernel: str) -> tuple[str, ...]:
    """The directions that a kernel has."""
    if kernel in gpu_check_softmax.KERNELS:
        return gpu_check_softmax.directions(kernel)
    return DIRECTIONS


def every(kernel: str) -> tuple[str, ...]:
    """The cells or trees that a kernel has."""
    return gpu_check_softmax.TREES if kernel in gpu_check_softmax.KERNELS else cells(kernel)


def wrapped(names: list[str]) -> list[str]:
    """The names in lines of four, with commas."""
    return [", ".join(names[i : i + 4]) for i in range(0, len(names), 4)]


def without(kernel: str, dtype: str) -> str:
    """What has been shown of a kernel on machines without a GPU."""
    if "Triton" in kernel:
        return "interpreter, compiled"
    without_it = {gpu_check_softmax.SEARCH, *gpu_check_softmax.ALL_WORDS}
    checked = dtype == "float64" and kernel not in without_it
    return "host, gradcheck, compiled" if checked else "host, compiled"


def where(one: Record) -> str:
    """Card, date and commit."""
    facts = one.environment
    changed = ", changed since" if facts["dirty"] else ""
    return f"{facts['gpu']}, {one.created[:10]}, {facts['commit']}{changed}"


def status(found: list[Record], kernel: str, dtype: str, direction: str) -> str:
    """What the newest run that tried it says, one card after the other."""
    key, cards = (kernel, dtype, direction), {}
    for one in found:
        mine = [
            e for e in one.entries if (e.get("kernel"), e.get("dtype"), e.get("direction")) == key
        ]
        if mine:
            cards.setdefault(one.environment["gpu"], (one, mine))
    said = (f"{where(one)}: {outcome(mine, every(kernel))}" for one, mine in cards.values())
    return "; ".join(said) or NEVER


def outcome(entries: list[dict[str, object]], every: tuple[str, ...]) -> str:
    """The entries of one kernel, dtype and direction in a few words."""
    bad = [e for e in entries if e["status"] != "ok"]
    if bad:
        what = sorted({f"{e['cell']} {e['status']}" for e in bad})
        return f"**{', '.join(what)}**"
    tried = {e["cell"] for e in entries}
    worst = max(e["error"] / e["bound"] for e in entries)
    what = "cells" if tried <= set(CELLS) else "trees"
    some = "" if tried == set(every) else f" ({len(tried)} of {len(every)} {what})"
    return f"ok{some}, error at most {worst:.2f} of what is allowed"


def newest(found: list[Record], part: str) -> Record | None:
    """The newest record of a part."""
    return next((one for one in found if one.part == part), None)


def checks(found: list[Record]) -> list[str]:
    """Sections on the other parts, those that there are."""
    sections = []
    if one := newest(found, "tests"):
        counts: dict[str, int] = {}
        for entry in one.entries:
            counts[entry["status"]] = counts.get(entry["status"], 0) + 1
        said = ", ".join(f"{n} {s}" for s, n in sorted(counts.items()))
        failed = "".join(f"- failed: `{e['test']}`\n" for e in one.bad)
        sections.append(f"## Tests marked gpu\n\n{where(one)}: {said}.\n{failed}")
    if one := newest(found, "sanitizer"):
        lines = "".join(f"- {e['tool']}: {e['status']}\n" for e in one.entries)
        sections.append(f"## compute-sanitizer\n\n{where(one)}\n\n{lines}")
    if one := newest(found, "micro"):
        sections.append(f"## Microbenchmarks\n\n{where(one)}\n\n{micro(one)}\n")
    if one := newest(found, "cudnn"):
        sections.append(f"## What cuDNN runs\n\n{where(one)}. T = 64, I = H.\n\n{cudnn(one)}\n")
    return sections


def micro(one: Record) -> str:
    """A line for each figure."""
    body = []
    for entry in one.entries:
        skip = ("program", "name", "status", "wrong", "said")
        fields = ", ".join(f"{k} {v}" for k, v in entry.items() if k not in skip)
        body.append([entry["program"], str(entry.get("name", "")), fields, entry["status"]])
    return grid(["program", "what", "figures", "status"], body)


def cudnn(one: Record) -> str:
    """A line for each layer and pass; what differs from the source's rules stands out."""
    body = []
    for e in (e for e in one.entries if e["status"] == "ok"):
        options = [f"{e['layers']} layers"] * (e["layers"] > 1)
        options += ["bidirectional"] * e["bidirectional"] + [e["layout"]]
        agrees = e["expected"].partition(",")[0] == e["seen"]
        seen = e["seen"] if agrees else f"**{e['seen']}**"
        what = [e["dtype"], e["cell"], str(e["H"]), str(e["B"]), ", ".join(options), e["direction"]]
        body.append([*what, e["expected"], seen, f"{e['us_per_step']:.2f}"])
    heads = ["dtype", "cell", "H", "B", "layer", "pass", "expected", "seen", "us a step"]
    return grid(heads, body)
