"""The peers: who is measured. One adapter a peer, registered by its decorator.

To add one, write a function as in these modules; docs/benchmarks.md shows it. Importing this
package registers them all; none imports its library before it is built.
"""

from . import gpu_layers, gpu_softmax, ours, torch_layers, torch_softmax, word2vec
from ._base import PEERS, Peer, peer

__all__ = ["PEERS", "Peer", "peer"]

_MODULES = (torch_layers, torch_softmax, gpu_layers, gpu_softmax, word2vec, ours)
