"""Fused recurrent networks and hierarchical softmax for PyTorch."""

__version__ = "0.1.0"

from .hierarchy import Hierarchy as Hierarchy
from .softmax import HierarchicalSoftmax as HierarchicalSoftmax
