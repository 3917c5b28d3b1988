"""Real text as word ids: reading, cutting into words, the vocabulary, the split.

The words are those of WikiText (Merity et al. 2016): case kept, each mark of punctuation a word,
and ``<eos>`` where a paragraph ends. The vocabulary comes from the training part alone; every other
word, there too, is ``<unk>``.
"""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

UNK, EOS = "<unk>", "<eos>"

# In order: the tokens of an already prepared text, a word with its inner apostrophes, any one mark.
_WORD = re.compile(rf"{UNK}|{EOS}|\w+(?:['’]\w+)*|[^\w\s]")
_RULE = re.compile(r"([^\w\s])\1{3,}")
_BLANK_LINE = re.compile(r"\n\s*\n")


class CorpusError(ValueError):
    """The text cannot be used; the message says which, why, and what to do."""


@dataclass(frozen=True)
class Corpus:
    """A text as word ids.

    Attributes:
        name: where it came from, for people.
        words: the vocabulary, most frequent first; the index is the id.
        counts: how often each occurs in ``train``. ``[V]``, int64, none of them 0.
        train: the first nine tenths of the text. ``[tokens]``, int64.
        valid: the rest, or its beginning.
    """

    name: str
    words: list[str]
    counts: Tensor
    train: Tensor
    valid: Tensor


def reference_text() -> str:
    """The language reference that ships inside CPython: real English, on every machine.

    Its topics quote each other, so a paragraph is read once: else the validation part would repeat
    the training part.

    Raises:
        CorpusError: this Python comes without it.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise CorpusError(
            "this Python comes without pydoc_data, the default text; name another: --corpus PATH"
        ) from error
    paragraphs = (part for text in topics.values() for part in _BLANK_LINE.split(text.strip()))
    return "\n\n".join(dict.fromkeys(paragraphs))


def read_text(path: str | Path) -> str:
    """Read a UTF-8 text file.

    Raises:
        CorpusError: it cannot be read, or is not UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise CorpusError(f"--corpus {path}: {error.strerror}; name a UTF-8 text file") from error
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"--corpus {path}: not UTF-8 (byte {error.object[error.start]:#04x} at {error.start}); "
            "convert it first: iconv -f OLD -t utf-8"
        ) from error


def tokenize(text: str) -> list[str]:
    r"""Cut a text into words.

    A run of four or more equal marks is a ruled line, not words, and is left out. Paragraphs are
    parted by blank lines; in a text without any, each line is one, as in the Penn Treebank files.

    Example:
        >>> tokenize("It's late.\n--------\n\nGo!")
        ["It's", 'late', '.', '<eos>', 'Go', '!', '<eos>']
    """
    text = text.strip()
    parts = _BLANK_LINE.split(text) if _BLANK_LINE.search(text) else text.split("\n")
    tokens = []
    for part in parts:
        if words := _WORD.findall(_RULE.sub(" ", part)):
            tokens += words if words[-1] == EOS else [*words, EOS]
    return tokens


def vocabulary(tokens: list[str], *, size: int, min_count: int) -> list[str]:
    """The words that occur at least ``min_count`` times, most frequent first, at most ``size``.

    ``<unk>`` and ``<eos>`` are always among them. Words of equal count keep the order of the text.
    """
    counts = Counter(tokens)
    kept = [word for word, n in counts.most_common() if n >= min_count and word not in (UNK, EOS)]
    kept = kept[: size - 2]
    counts[UNK] += counts.total() - counts[EOS] - sum(counts[word] for word in kept) - counts[UNK]
    return sorted((*kept, UNK, EOS), key=lambda word: -counts[word])


def build(
    name: str, text: str, *, size: int = 10_000, min_count: int = 2, most_valid: int = 16_000
) -> Corpus:
    """Turn a text into ids: nine tenths for training, the last tenth for validation.

    Args:
        name: where the text came from, for people.
        text: the text.
        size: the largest vocabulary, ``<unk>`` and ``<eos>`` included.
        min_count: how often a word must occur in the training part to have an id of its own.
        most_valid: the most tokens of the last tenth that are used.

    Raises:
        CorpusError: there are fewer than 1,000 tokens, too few to train on.
    """
    tokens = tokenize(text)
    if len(tokens) < 1000:
        raise CorpusError(f"{name}: {len(tokens)} tokens; training needs at least 1,000")
    cut = len(tokens) * 9 // 10
    words = vocabulary(tokens[:cut], size=size, min_count=min_count)
    ids = {word: i for i, word in enumerate(words)}
    unk = ids[UNK]
    stream = torch.tensor([ids.get(word, unk) for word in tokens])  # [tokens]
    train, valid = stream[:cut], stream[cut : cut + most_valid]
    # A word that every token has (a text without rare words) would have count 0, which is no leaf.
    counts = torch.bincount(train, minlength=len(words)).clamp_(min=1)
    return Corpus(name, words, counts, train, valid)
