"""The suites: lists of cases, who is compared on them, and the goals set. Data alone.

To add a suite, add an entry to ``SUITES``; docs/benchmarks.md shows it.
"""

from dataclasses import dataclass, field

from fusedrnn.cells import CELLS

from .case import Case
from .results import FULL

LAYERS = ("torch.nn", "fusedrnn", "fusedrnn padded")
CELL_LOOPS = ("torch.nn cell", "fusedrnn cell")
OUTPUT_LAYERS = (
    "linear+cross_entropy",
    "AdaptiveLogSoftmax",
    "padded-path Huffman",
    "gensim",
    "fusedrnn two-level",
    "fusedrnn two-level sparse",
    "fusedrnn Huffman",
    "fusedrnn Huffman sparse",
    "fusedrnn adaptive",
    "fusedrnn flat",
)
SCORERS = (
    "linear+log_softmax",
    "AdaptiveLogSoftmax",
    "fusedrnn two-level",
    "fusedrnn Huffman",
    "fusedrnn adaptive",
)
GPU_LAYERS = (
    *LAYERS,
    "fusedrnn one by one",
    "eager loop",
    "torch.compile",
    "FlashRNN",
    "haste",
    "TorchRL",
    "SRU",
    "sLSTM",
)
GPU_OUTPUT_LAYERS = (
    *OUTPUT_LAYERS,
    "F.linear_cross_entropy",
    "compiled linear+cross_entropy",
    "compiled AdaptiveLogSoftmax",
    "Cut Cross-Entropy",
    "Liger",
    "quack",
)

BASELINES = {
    "sequence": ("torch.nn", "eager loop"),
    "decode": ("torch.nn cell",),
    "softmax": ("linear+cross_entropy",),
    "log_prob": ("linear+log_softmax",),
    "topk": ("linear+log_softmax",),
}
"""For each operation, what ratios are to: the first of these that ran."""


@dataclass(frozen=True)
class Suite:
    """A list of cases.

    Attributes:
        about: one line.
        cases: what is measured.
        peers: who is, by operation.
        seconds: of samples for each contender of a case.
        twin: whether a second copy of the first of ours shows the noise.
        without: of some cases, who is not measured: rows that would cost minutes and tell what
            another case tells. Peers named after ``--peer`` are measured all the same.
    """

    about: str
    cases: tuple[Case, ...]
    peers: dict[str, tuple[str, ...]]
    seconds: float = 0.5
    twin: bool = True
    without: dict[Case, tuple[str, ...]] = field(default_factory=dict)


BOTH_PEERS = {"decode": CELL_LOOPS, "log_prob": SCORERS, "topk": SCORERS}
CPU_PEERS = BOTH_PEERS | {"sequence": LAYERS, "softmax": OUTPUT_LAYERS}
GPU_PEERS = BOTH_PEERS | {"sequence": GPU_LAYERS, "softmax": GPU_OUTPUT_LAYERS}

SHAPES = ((64, 1, 64, 64), (64, 16, 128, 128), (35, 20, 200, 200), (35, 20, 650, 650),
          (128, 64, 512, 512))  # fmt: skip
TORCH_CELLS = ("gru", "lstm", "rnn_tanh")


def _layer(cell: str, shape: tuple[int, ...], mode: str = "fwdbwd", **more: object) -> Case:
    return Case("sequence", cell, mode, shape, **more)


TABLE = tuple(
    _layer(cell, s, mode) for mode in ("fwdbwd", "infer") for s in SHAPES for cell in TORCH_CELLS
)

MIDDLE = (35, 20, 200, 200)
VARIANTS = (
    _layer("gru_reset_before", MIDDLE),
    _layer("gru_reset_before", MIDDLE, "infer"),
    _layer("lstm", MIDDLE, bias=False),
    *(_layer(c, MIDDLE, layout=l) for c in ("gru", "lstm") for l in ("lengths", "packed")),
    _layer("lstm", MIDDLE, layers=2, bidirectional=True),
    *(Case("decode", c, "infer", (256, 1, h, h)) for c in ("lstm", "gru") for h in (64, 256)),
)
OUTPUT_SHAPES = ((10_000, 200, 700), (100_000, 512, 1024))  # V, H, N
OUTPUTS = tuple(Case("softmax", "", "fwdbwd", shape) for shape in OUTPUT_SHAPES)
REAL = Case("softmax", "", "fwdbwd", (33_000, 512, 1024), counts="brown")
SCORE_SHAPES = ((10_000, 200, 1), (10_000, 200, 20), (100_000, 512, 64))
SCORES = tuple(Case("log_prob", "", "infer", s) for s in (*SCORE_SHAPES, (100_000, 512, 256)))
SEARCHES = tuple(
    Case("topk", "", "infer", shape, inputs=inputs)
    for shape in ((100_000, 512, 1), *SCORE_SHAPES)
    for inputs in ("random", "peaked")
)
# Cases of the same numbers are neighbours: their truths are then computed once.
INFERRED = tuple(case.on(mode="infer") for case in OUTPUTS)
TRAINED = tuple(pair for both in zip(OUTPUTS, INFERRED, strict=True) for pair in both)
VARIED = (*(case.on(counts="uniform") for case in OUTPUTS), OUTPUTS[0].on(inputs="peaked"))
SCORED = tuple(sorted((*SCORES, *SEARCHES), key=lambda case: (case.shape, case.inputs != "random")))
ALL_WORDS = ("F.linear_cross_entropy", "compiled linear+cross_entropy", "fusedrnn flat")
WITHOUT = {
    # Whatever counts and inputs are, a full softmax does what it did with others of this shape.
    **{case: ALL_WORDS for case in VARIED},
    # 15 seconds a call, in inference as in training.
    INFERRED[1]: ("F.linear_cross_entropy",),
}
CURVES = tuple(
    _layer(cell, shape)
    for cell in ("gru", "lstm")
    for shape in (
        *((t, 16, 128, 128) for t in (8, 32, 128, 512)),
        *((64, b, 128, 128) for b in (1, 4, 64)),
        *((32, 16, h, h) for h in (32, 64, 256, 512, 1024)),
    )
)

QUICK = (
    *(_layer(cell, (6, 3, 8, 16)) for cell in CELLS),
    *(_layer("gru", (6, 3, 8, 16), mode) for mode in ("fwd", "bwd", "infer")),
    _layer("lstm", (6, 3, 8, 16), bias=False),
    _layer("lstm", (5, 3, 8, 16), layers=2, bidirectional=True),
    *(_layer("gru", (6, 3, 8, 16), layout=layout) for layout in ("lengths", "packed")),
    *(_layer("lstm", (6, 3, 8, 16), dtype=dtype) for dtype in ("bfloat16", "float16", "float64")),
    *(Case("decode", cell, "infer", (6, 1, 8, 16)) for cell in ("lstm", "gru", "rnn_tanh")),
    *(Case("softmax", "", mode, (400, 64, 50)) for mode in ("fwdbwd", "infer")),
    Case("softmax", "", "fwdbwd", (400, 64, 50), counts="uniform"),
    *(Case(op, "", "infer", (400, 64, 50)) for op in ("log_prob", "topk")),
    *(Case(op, "", "infer", (400, 64, 50), inputs="peaked") for op in ("softmax", "topk")),
)

FAMILY_CELLS = (
    *CELLS,
    "lstm:update=tanh:output=identity",
    "lstm:candidate=relu:output=relu",
    "lstm:clip=3.0",
    "lstm:dh_clip=1.0",
    "lstm:peephole=diagonal",
    "lstm:peephole=full",
    "lstm:layer_norm=True",
    "lstm:zoneout_h=0.1:zoneout_c=0.1",
    "lstm:dropout=0.1",
    "lstm:variational=0.1",
    "gru:candidate=relu",
    "gru:layer_norm=True",
    "gru:zoneout_h=0.1:dropout=0.1",
    "rnn_tanh:residual=True",
    "rnn_tanh:independent=True",
)
FAMILY_SHAPES = ((50, 1, 64, 64), (50, 8, 128, 128), (50, 20, 200, 200))
FAMILY = tuple(_layer(cell, shape) for shape in FAMILY_SHAPES for cell in FAMILY_CELLS)
FAMILY_PEERS = BOTH_PEERS | {
    "sequence": ("eager loop", "fusedrnn", "fusedrnn plain", "fusedrnn recorded"),
    "softmax": (),
}
GPU_TABLE = tuple(
    _layer(cell, shape, mode, device="cuda", dtype=dtype)
    for dtype in ("bfloat16", "float32")
    for mode in ("fwdbwd", "infer")
    for shape in (
        (1024, 16, 512, 512), (1024, 16, 768, 768), (512, 64, 1024, 1024), (35, 20, 200, 200),
        (64, 1, 128, 128),
    )
    for cell in ("lstm", "gru", "rnn_tanh")
)  # fmt: skip
GPU_OUTPUTS = tuple(
    Case("softmax", "", "fwdbwd", (v, 512, n), device="cuda", dtype=dtype)
    for dtype in ("bfloat16", "float32")
    for v, n in ((10_000, 4096), (100_000, 1024), (100_000, 4096), (100_000, 16_384))
)
GPU_SEARCHES = tuple(
    Case("topk", "", "infer", (100_000, 512, n), device="cuda", dtype=dtype, inputs=inputs)
    for dtype in ("bfloat16", "float32")
    for n in (1, 64, 1024)
    for inputs in ("random", "peaked")
)
LM = (
    *(_layer(cell, MIDDLE) for cell in TORCH_CELLS),
    *(_layer(cell, (35, 20, 650, 650)) for cell in TORCH_CELLS),
    Case("softmax", "", "fwdbwd", (10_000, 200, 700)),
    Case("softmax", "", "fwdbwd", (33_000, 200, 700)),
    Case("decode", "lstm", "infer", (256, 1, 200, 200)),
)

SUITES = {
    "quick": Suite(
        "every op verified at tiny sizes, in seconds", QUICK, CPU_PEERS, seconds=0.01, twin=False
    ),
    "cpu": Suite(
        "what a CPU user gets: layers, variants, decoding, output layers, curves over T, B, H",
        (*TABLE, *VARIANTS, *OUTPUTS, *(c for c in CURVES if c not in TABLE)),
        CPU_PEERS,
    ),
    "gpu": Suite(
        "layers on an NVIDIA GPU, with every peer that is installed", GPU_TABLE, GPU_PEERS
    ),
    "softmax": Suite(
        "output layers with every peer: training, inference, all words scored, the best words",
        (*TRAINED, *VARIED, REAL, *SCORED),
        GPU_PEERS,
        without=WITHOUT,
    ),
    "softmax-gpu": Suite(
        "output layers on an NVIDIA GPU: training, the best words",
        (*GPU_OUTPUTS, *GPU_SEARCHES),
        GPU_PEERS,
    ),
    "family": Suite(
        "every variant beside its plain cell and a loop of operators; recording",
        FAMILY,
        FAMILY_PEERS,
    ),
    "curves": Suite("time against T, B and H", CURVES, CPU_PEERS),
    "lm": Suite("the sizes of word-level language models", LM, CPU_PEERS),
}
"""Every suite by its name."""


@dataclass(frozen=True)
class Goal:
    """How fast a row should be.

    Attributes:
        least: how many times as fast as ``of``; None: there is no goal.
        of: another peer, or ``FULL``; empty: the baseline.
    """

    least: float | None
    of: str = ""


NONE = Goal(None)


def _goals() -> dict[tuple[Case, str], Goal]:
    """Those set for two cores, in float32, and for an H200."""
    train = {
        "gru": (15, 3, 2.5, 1.6, 1.4),
        "lstm": (5, 1.3, 1.25, 1.0, 1.2),
        "rnn_tanh": (6, 2.5, 2, 1.3, 3),
    }
    goals = {}
    for cell, ratios in train.items():
        for shape, least in zip(SHAPES, ratios, strict=True):
            goals[_layer(cell, shape), "fusedrnn"] = Goal(least)
            alone = shape[1] == 1
            goals[_layer(cell, shape, "infer"), "fusedrnn"] = Goal(2.0 if alone else 1.0)
    goals |= {(case, "fusedrnn"): Goal(5.0) for case in FAMILY}  # of the eager loop
    return goals | _goals_of_outputs() | _goals_on_a_gpu()


def _goals_of_outputs() -> dict[tuple[Case, str], Goal]:
    small, large = OUTPUT_SHAPES
    goals = {
        (Case("softmax", "", "fwdbwd", shape), peer): Goal(least)
        for shape, peer, least in (
            (large, "fusedrnn two-level", 25),
            (large, "fusedrnn Huffman", 80),
            (large, "fusedrnn Huffman sparse", 200),
            (small, "fusedrnn two-level", 12),
            (small, "fusedrnn Huffman", 35),
        )
    }
    single = Case("topk", "", "infer", (100_000, 512, 1), inputs="peaked")
    goals[single, "fusedrnn two-level"] = Goal(8)
    for case in SCORES:
        if case.shape[0] == 100_000:
            goals[case, "fusedrnn adaptive"] = Goal(2, "AdaptiveLogSoftmax")
    return goals


def _goals_on_a_gpu() -> dict[tuple[Case, str], Goal]:
    goals = {}
    two_level = {1024: 3.5, 4096: 12, 16_384: 25}
    for case in GPU_OUTPUTS:
        V, _, N = case.shape
        if V != 100_000 or case.dtype != "bfloat16":
            continue
        goals[case, "fusedrnn two-level"] = Goal(two_level[N], FULL)
        if N in (1024, 4096):
            goals[case, "fusedrnn Huffman"] = Goal({1024: 7, 4096: 18}[N], FULL)
        goals[case, "fusedrnn adaptive"] = Goal(2.5, "AdaptiveLogSoftmax")
    return goals


GOALS = _goals()
"""By case and peer."""
