"""What one row of a suite measures: an operation, its sizes, and what is timed of it.

sequence   one recurrent module over T steps: y = rnn(x), x [T, B, I], H units
decode     its cell, step by step, T steps in a Python loop: inference only
softmax    the loss of N tokens over V words from x [N, H]
log_prob   the log-probabilities of all V words for each of N tokens: inference only
topk       the ten most probable of all V words for each of N tokens: inference only
"""

from dataclasses import dataclass, replace

import torch

from fusedrnn.cells import CELLS

LAYER_SIZES, WORD_SIZES = ("T", "B", "I", "H"), ("V", "H", "N")
OPS = {
    "sequence": LAYER_SIZES,
    "decode": LAYER_SIZES,
    "softmax": WORD_SIZES,
    "log_prob": WORD_SIZES,
    "topk": WORD_SIZES,
}
"""Every operation with the names of its sizes."""
WORD_OPS = tuple(op for op, names in OPS.items() if names == WORD_SIZES)
INFERENCE_ONLY = ("decode", "log_prob", "topk")

MODES = {
    "fwd": "forward, saving for backward",
    "bwd": "backward alone, all gradients and dx",
    "fwdbwd": "forward and backward, all gradients and dx",
    "infer": "forward under torch.no_grad()",
}
LAYOUTS = {
    "padded": "every row is T long",
    "lengths": "rows of T/2 to T steps, padded; ours takes lengths=, torch packs and pads",
    "packed": "the same rows, packed before and padded after, both timed",
}
COUNTS = {
    "zipf": "words occur as in text, as 1 / rank",
    "brown": "as they do in WikiText-2, by ../shared/data/wikitext2-brown-clusters.tsv",
    "uniform": "all words alike",
}
INPUTS = {
    "random": "normal: no word is likely",
    "peaked": "scaled until one word in 100,000 has a third of the probability",
}
DTYPES = ("float32", "bfloat16", "float16", "float64")


class CaseError(ValueError):
    """No such case; the message says what was asked for and what there is."""


@dataclass(frozen=True)
class Case:
    """One line of a suite, hashable; peers are what is compared on it.

    Attributes:
        op: one of ``OPS``.
        cell: for ``sequence`` and ``decode`` a name of the registry, else empty.
        mode: one of ``MODES``: what is timed.
        shape: the sizes in the order of ``OPS[op]``.
        dtype: of data and weights.
        device: where.
        layers: stacked layers.
        bidirectional: two directions.
        bias: with biases.
        layout: one of ``LAYOUTS``.
        counts: one of ``COUNTS``, for operations over words.
        inputs: one of ``INPUTS``, for the same.
    """

    op: str
    cell: str
    mode: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    device: str = "cpu"
    layers: int = 1
    bidirectional: bool = False
    bias: bool = True
    layout: str = "padded"
    counts: str = "zipf"
    inputs: str = "random"

    def __post_init__(self) -> None:
        checks = (
            ("op", self.op, OPS),
            ("cell", self.cell, ("",) if self.op in WORD_OPS else CELLS),
            ("mode", self.mode, ("infer",) if self.op in INFERENCE_ONLY else MODES),
            ("dtype", self.dtype, DTYPES),
            ("layout", self.layout, LAYOUTS),
            ("counts", self.counts, COUNTS if self.op in WORD_OPS else ("zipf",)),
            ("inputs", self.inputs, INPUTS if self.op in WORD_OPS else ("random",)),
        )
        for what, value, known in checks:
            if value not in known:
                raise CaseError(f"{what} is {value!r}; it must be one of {', '.join(known)}")
        names = OPS[self.op]
        if len(self.shape) != len(names) or min(self.shape) < 1:
            raise CaseError(
                f"shape is {self.shape}; {self.op} needs {', '.join(names)}, each at least 1"
            )

    @property
    def sizes(self) -> dict[str, int]:
        """The shape by name."""
        return dict(zip(OPS[self.op], self.shape, strict=True))

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch has it."""
        return getattr(torch, self.dtype)

    @property
    def options(self) -> str:
        """What differs from one padded layer with biases in one direction, in words."""
        parts = [f"{self.layers} layers"] * (self.layers > 1)
        parts += ["bidirectional"] * self.bidirectional + ["no bias"] * (not self.bias)
        parts += [self.layout] * (self.layout != "padded")
        parts += [f"{self.counts} counts"] * (self.counts != "zipf")
        parts += [f"{self.inputs} inputs"] * (self.inputs != "random")
        return ", ".join(parts)

    @property
    def name(self) -> str:
        """One line for people, unique within a suite."""
        sizes = ",".join(map(str, self.shape))
        parts = [self.cell or self.op, self.mode, f"({sizes})", self.options]
        parts += [self.dtype] * (self.dtype != "float32")
        parts += ["decode"] * (self.op == "decode")
        return " ".join(filter(None, parts))

    def flops(self) -> int | None:
        """Operations of the products, 2 a multiply-add; None: it depends on the peer.

        Backward has twice those of forward: one product for the data, one for the weights.
        """
        passes = {"fwd": 1, "infer": 1, "bwd": 2, "fwdbwd": 3}[self.mode]
        if self.op in WORD_OPS:
            return None
        T, B, I, H = self.shape
        D, rows = 1 + self.bidirectional, len(CELLS[self.cell].gates) * H
        widths = [I] + [D * H] * (self.layers - 1)
        return 2 * passes * D * T * B * rows * sum(width + H for width in widths)

    def traffic(self) -> int | None:
        """Bytes that must move at least once: weights and x read, y written; gradients likewise."""
        if self.op in WORD_OPS:
            return None
        T, B, I, H = self.shape
        D, rows = 1 + self.bidirectional, len(CELLS[self.cell].gates) * H
        widths = [I] + [D * H] * (self.layers - 1)
        weights = D * rows * sum(width + H for width in widths)
        passes = {"fwd": 1, "infer": 1, "bwd": 2, "fwdbwd": 3}[self.mode]
        return passes * self.torch_dtype.itemsize * (weights + T * B * (I + D * H))

    def command(self, peers: str = "") -> str:
        """The command that measures this row alone."""
        sizes = ",".join(f"{k}={v}" for k, v in self.sizes.items())
        parts = ["python -m benchmarks run", f"--op {self.op}"]
        parts += [f"--cell {self.cell}"] * bool(self.cell) + [f"--mode {self.mode}"]
        parts += [f"--shape {sizes}"]
        parts += [f"--dtype {self.dtype}"] * (self.dtype != "float32")
        parts += [f"--device {self.device}"] * (self.device != "cpu")
        parts += [f"--layers {self.layers}"] * (self.layers > 1)
        parts += ["--bidirectional"] * self.bidirectional + ["--no-bias"] * (not self.bias)
        parts += [f"--layout {self.layout}"] * (self.layout != "padded")
        parts += [f"--counts {self.counts}"] * (self.counts != "zipf")
        parts += [f"--inputs {self.inputs}"] * (self.inputs != "random")
        parts += [f"--peer {peers}"] * bool(peers)
        return " ".join(parts)

    def on(self, **changes: object) -> "Case":
        """The same with some attributes changed."""
        return replace(self, **changes)


def parse_shape(text: str, op: str) -> tuple[int, ...]:
    """Read ``T=35,B=20,I=200,H=200``; a missing I is H.

    Raises:
        CaseError: sizes that the operation does not have, or has and that are missing.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name.strip() not in OPS[op] or not value.strip().isdecimal():
            example = ",".join(f"{n}=64" for n in OPS[op])
            raise CaseError(f"--shape {text}: {part!r} is no size of {op}; write it as {example}")
        sizes[name.strip()] = int(value)
    if "I" in OPS[op] and "H" in sizes:
        sizes.setdefault("I", sizes["H"])
    if missing := [n for n in OPS[op] if n not in sizes]:
        raise CaseError(f"--shape {text}: {op} needs {', '.join(missing)} too")
    return tuple(sizes[n] for n in OPS[op])
