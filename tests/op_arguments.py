"""What the sequence ops themselves take, of the problems of sequence_case."""

from sequence_case import Case, Result, arguments


def native(case: Case, tensors: Result) -> list:
    """The forward op's arguments after the cell, but for ``save``."""
    x, weights, h0, c0, lengths, reset = arguments(case, tensors)
    lists = [
        [t for t in kind if t is not None]
        for kind in zip(*((w.weight_hh, w.bias_hh, w.weight_hr) for w in weights), strict=True)
    ]
    return [list(x), *lists, h0, c0, lengths, *(reset or (None, None, None))]
