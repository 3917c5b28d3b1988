"""Fused recurrent networks and hierarchical softmax for PyTorch."""

__version__ = "0.1.0"
