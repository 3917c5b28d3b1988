"""What a peer is: its record, and the decorator that registers it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec

import torch

from ..case import LAYOUTS, Case
from ..task import Task


@dataclass(frozen=True)
class Peer:
    """One who is measured.

    Attributes:
        name: as in tables and after ``--peer``.
        ops: the operations it has.
        what: what each timed call computes.
        build: the adapter, ``build(problem) -> Task``; raises :class:`Unsupported`.
        needs: the module it is in, or None.
        get: how to get that.
        devices: on which types of device it runs.
        layouts: in cases of which layouts it takes part.
        ours: whether it is this package.
        note: what else a reader must know.
    """

    name: str
    ops: tuple[str, ...]
    what: str
    build: Callable[..., Task] = field(repr=False)
    needs: str | None = None
    get: str = ""
    devices: tuple[str, ...] = ("cpu", "cuda")
    layouts: tuple[str, ...] = tuple(LAYOUTS)
    ours: bool = False
    note: str = ""

    def takes_part(self, case: Case) -> bool:
        """Whether a case of such an operation and layout has a row for it."""
        return case.op in self.ops and case.layout in self.layouts

    def missing(self) -> str | None:
        """Why it cannot run on this machine at all, and what would help; None: it can."""
        lacks = []
        if self.devices == ("cuda",) and not torch.cuda.is_available():
            lacks.append("an NVIDIA GPU, and torch sees none")
        if self.needs and find_spec(self.needs) is None:
            lacks.append(f"the module {self.needs}: {self.get}")
        return f"needs {'; needs '.join(lacks)}" if lacks else None

    def obstacle(self, case: Case) -> str | None:
        """Why it cannot run this case, or None as far as can be told without building it."""
        if case.op not in self.ops:
            return f"has no {case.op}"
        if case.device not in self.devices:
            return f"runs on {' and '.join(self.devices)} only: --device {self.devices[0]}"
        return self.missing()


PEERS: dict[str, Peer] = {}
"""Every peer by its name."""


def peer(name: str, *ops: str, **fields: object) -> Callable:
    """Register an adapter. ``fields`` are those of :class:`Peer`."""

    def register(build: Callable[..., Task]) -> Callable[..., Task]:
        if name in PEERS:
            raise ValueError(f"there are two peers called {name!r}")
        PEERS[name] = Peer(name, ops, build=build, **fields)
        return build

    return register
