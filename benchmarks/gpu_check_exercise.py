"""Small calls of every CUDA kernel, for compute-sanitizer: ``python -m ... DEVICE``.

Two tiles of rows and of units, rows of unequal length, both directions of time, a projection; the
loss and all words over two trees.
"""

import sys

import torch

import fusedrnn


def main(device: str) -> int:
    """Forward and backward of every cell; the results are others' to check."""
    makers = [
        lambda **k: fusedrnn.LSTM(5, 19, bidirectional=True, **k),
        lambda **k: fusedrnn.LSTM(5, 19, proj_size=7, **k),
        lambda **k: fusedrnn.GRU(5, 19, bidirectional=True, **k),
        lambda **k: fusedrnn.GRU(5, 19, reset_after=False, bidirectional=True, **k),
        lambda **k: fusedrnn.RNN(5, 19, **k),
    ]
    lengths = torch.arange(33, device=device) % 3 + 1
    counts = range(100, 0, -1)
    kinds = (torch.float32, torch.bfloat16, torch.float64)
    for dtype, precision in ((torch.float32, "tf32"), *((kind, "ieee") for kind in kinds)):
        torch.backends.cudnn.rnn.fp32_precision = precision
        for make in makers:
            layer = make(device=device, dtype=dtype)
            x = torch.randn(3, 33, 5, device=device, dtype=dtype, requires_grad=True)
            with fusedrnn.backend("cuda" if device == "cuda" else "auto"):
                y, _ = layer(x, lengths=lengths)
                y.square().sum().backward()
        for tree in (fusedrnn.Hierarchy.classes(counts), fusedrnn.Hierarchy.huffman(counts)):
            layer = fusedrnn.HierarchicalSoftmax(19, tree, device=device, dtype=dtype)
            x = torch.randn(70, 19, device=device, dtype=dtype, requires_grad=True)
            with fusedrnn.backend("cuda" if device == "cuda" else "auto"):
                layer(x, torch.arange(70, device=device) % 60).loss.backward()
                layer.log_prob(x[:3]).square().sum().backward()
    if device == "cuda":
        torch.cuda.synchronize()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
