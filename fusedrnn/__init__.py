"""Fused recurrent networks and hierarchical softmax for PyTorch."""

from . import gates, init
from ._backend import backend
from ._native import empty_cache
from .adaptive import AdaptiveLogSoftmaxWithLoss
from .cell_modules import GRUCell, LSTMCell, RNNCell
from .clip import clip_grad_norm_
from .convert import convert
from .gates import intervene, record
from .hierarchy import Hierarchy
from .layouts import (
    flip_update_gate,
    from_keras,
    from_onnx,
    from_tensorflow,
    to_keras,
    to_onnx,
    to_tensorflow,
)
from .modules import GRU, LSTM, RNN, SLSTM
from .softmax import HierarchicalSoftmax
from .streaming import step, truncated_bptt
from .user_cell import Cell, Recurrent

__version__ = "0.1.0"

__all__ = [
    "AdaptiveLogSoftmaxWithLoss",
    "Cell",
    "GRU",
    "GRUCell",
    "HierarchicalSoftmax",
    "Hierarchy",
    "LSTM",
    "LSTMCell",
    "RNN",
    "RNNCell",
    "Recurrent",
    "SLSTM",
    "backend",
    "clip_grad_norm_",
    "convert",
    "empty_cache",
    "flip_update_gate",
    "from_keras",
    "from_onnx",
    "from_tensorflow",
    "gates",
    "init",
    "intervene",
    "record",
    "step",
    "to_keras",
    "to_onnx",
    "to_tensorflow",
    "truncated_bptt",
]
