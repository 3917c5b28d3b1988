"""Fused recurrent networks and hierarchical softmax for PyTorch."""

from . import gates, init
from ._backend import backend
from .adaptive import AdaptiveLogSoftmaxWithLoss
from .cell_modules import GRUCell, LSTMCell, RNNCell
from .clip import clip_grad_norm_
from .convert import convert
from .gates import intervene, record
from .hierarchy import Hierarchy
from .modules import GRU, LSTM, RNN
from .softmax import HierarchicalSoftmax
from .streaming import step, truncated_bptt

__version__ = "0.1.0"

__all__ = [
    "AdaptiveLogSoftmaxWithLoss",
    "GRU",
    "GRUCell",
    "HierarchicalSoftmax",
    "Hierarchy",
    "LSTM",
    "LSTMCell",
    "RNN",
    "RNNCell",
    "backend",
    "clip_grad_norm_",
    "convert",
    "gates",
    "init",
    "intervene",
    "record",
    "step",
    "truncated_bptt",
]
