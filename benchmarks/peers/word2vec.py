"""The per-token loop of word2vec's descendants: a Huffman softmax, trained one pair at a time.

It fuses forward, backward and the SGD update of every touched row, takes sigmoids from a table, and
runs on one thread. What is timed is N pairs (a dot product, a sigmoid, two updates for each node of
the path): what ``fusedrnn Huffman sparse`` computes, and the update that an optimizer would still
apply. fastText has the same loop, but builds its model, reads its file and trains in one call.
"""

from ..task import Results, Task, Unsupported
from ..words import Softmax
from ._base import peer

WHAT = "forward, backward and SGD of N pairs in one loop, on one thread"
NOTE = "sigmoids from a table: fused with its update, so not held to the error rule"


def sentence(problem: Softmax) -> list[str]:
    """The N targets as words: with a window of one, and pairs in both directions, N pairs."""
    case = problem.case
    if case.mode != "fwdbwd" or case.dtype != "float32":
        raise Unsupported("it trains in float32: forward, backward and update in one")
    return [str(word) for word in problem.target[: case.shape[2] // 2 + 1].tolist()]


def empty() -> Results:
    """It returns nothing."""
    return {}


@peer("gensim", "softmax", what=WHAT, needs="gensim", get="pip install gensim", devices=("cpu",),
      note=NOTE)  # fmt: skip
def gensim(problem: Softmax) -> Task:
    """gensim's compiled skip-gram with hierarchical softmax, one call a sentence of N pairs."""
    from gensim.models import Word2Vec
    from gensim.models.word2vec_inner import MAX_WORDS_IN_BATCH, train_batch_sg

    words = sentence(problem)
    model = Word2Vec(
        sg=1, hs=1, negative=0, vector_size=problem.case.shape[1], window=1, min_count=1,
        sample=0, shrink_windows=False, workers=1,
    )  # fmt: skip
    counts = {str(i): int(c) + 1 for i, c in enumerate(problem.counts.tolist())}
    model.build_vocab_from_freq(counts)
    if len(words) > MAX_WORDS_IN_BATCH:
        raise Unsupported(f"N is {problem.case.shape[2]}; it takes {2 * MAX_WORDS_IN_BATCH - 2}")
    import numpy

    work = [numpy.zeros(problem.case.shape[1], dtype=numpy.float32) for _ in range(2)]
    return Task(empty, {}, step=lambda: train_batch_sg(model, [words], 1e-4, work[0], False))
