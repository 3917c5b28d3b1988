"""Another commit of ours as a peer: built in a git worktree, run in a process of its own.

The process imports fusedrnn from that commit and the benchmarks from this one, and takes orders
over a pipe, one sample at a time: so its samples alternate with those of the others.
"""

import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

from .case import Case
from .environment import ROOT
from .verify import Verdict


class BaseError(ValueError):
    """The commit cannot be measured; the message says why."""


def _run(command: list[str], what: str, cwd: Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    if done.returncode:
        tail = (done.stderr.strip() or done.stdout.strip()).splitlines()[-5:]
        raise BaseError(f"{what}: {' / '.join(tail)}")
    return done.stdout.strip()


def checkout(ref: str) -> Path:
    """A folder that holds the package ``fusedrnn`` of a commit, built; made once per commit.

    Raises:
        BaseError: there is no such commit, or it does not build.
    """
    sha = _run(
        ["git", "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}"],
        f"--base {ref}: git knows no such commit", ROOT,
    )  # fmt: skip
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fusedrnn-benchmarks"
    tree, site = cache / sha / "tree", cache / sha / "site"
    if site.exists():
        return site
    if not (tree / "setup.py").exists():
        _run(["git", "worktree", "prune"], "git worktree", ROOT)
        tree.parent.mkdir(parents=True, exist_ok=True)
        _run(["git", "worktree", "add", "--detach", str(tree), sha], f"--base {ref}", ROOT)
    print(f"building {ref} ({sha[:9]}) in {tree}, once ...", file=sys.stderr, flush=True)
    _run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], f"--base {ref}", tree)
    fresh = site.with_name("site.part")
    fresh.mkdir(exist_ok=True)
    if not (fresh / "fusedrnn").is_symlink():
        (fresh / "fusedrnn").symlink_to(tree / "fusedrnn")
    fresh.rename(site)
    return site


@dataclass
class Remote:
    """What ``contender.Built`` is, at the far end of the pipe."""

    pipe: Connection
    verdict: Verdict
    flops: int | None
    peak: int | None

    def sample(self) -> float:
        """Seconds a call, by the clock of the other process."""
        return ask(self.pipe, "sample")

    def device_samples(self, seconds: float) -> dict[str, list[float]]:
        """On a GPU, times by events."""
        return ask(self.pipe, "device_samples", seconds)


def ask(pipe: Connection, *order: object) -> object:
    """Send an order and wait for its answer.

    Raises:
        Failure: what the other side says.
        BaseError: it is gone.
    """
    from .contender import Failure

    try:
        pipe.send(order)
        kind, *answer = pipe.recv()
    except (EOFError, OSError) as error:
        raise BaseError("the process of the other commit has ended") from error
    if kind == "failure":
        raise Failure(*answer)
    return answer[0]


class Base:
    """Another commit of ours, ready to build cases."""

    def __init__(self, ref: str, site: Path, threads: int) -> None:
        self.ref = ref
        self._pipe, far = Pipe()
        paths = [str(site), str(ROOT)]
        code = f"import sys; sys.path[:0] = {paths!r}; from benchmarks.base import serve; "
        code += f"serve({far.fileno()}, {threads})"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            pass_fds=[far.fileno()],
            cwd=site,
            stdin=subprocess.DEVNULL,
        )
        far.close()
        home = Path(ask(self._pipe, "hello")).resolve()
        if (site / "fusedrnn").resolve() not in home.parents:
            raise BaseError(f"--base {ref}: another fusedrnn was imported, {home}")

    def build(self, name: str, case: Case, seconds: float) -> Remote:
        """Build a peer there; as ``contender.build``."""
        error, bound, flops, peak = ask(self._pipe, "build", name, asdict(case), seconds)
        return Remote(self._pipe, Verdict(error, bound, None), flops, peak)

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.wait(timeout=30)


def serve(descriptor: int, threads: int) -> None:
    """The other process: do as told until the pipe closes."""
    import torch

    import fusedrnn

    from .contender import Failure, build, classify

    torch.set_num_threads(threads)
    pipe, built = Connection(descriptor), None
    while True:
        try:
            order, *given = pipe.recv()
        except EOFError:
            return
        try:
            if order == "hello":
                answer = fusedrnn.__file__
            elif order == "build":
                built = None
                case = Case(**given[1] | {"shape": tuple(given[1]["shape"])})
                built = build(given[0], case, given[2])
                answer = built.verdict.error, built.verdict.bound, built.flops, built.peak
            else:
                answer = getattr(built, order)(*given)
            pipe.send(("ok", answer))
        except Failure as failure:
            pipe.send(("failure", failure.status, failure.reason))
        except Exception as error:
            failure = classify(error)
            pipe.send(("failure", failure.status, failure.reason))
