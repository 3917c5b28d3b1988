"""What the generated text of a cell's twins calls, on tensors; on tiles: fusedrnn.triton._maths."""

from torch import absolute as absolute
from torch import exp as exp
from torch import full_like as constant  # noqa: F401
from torch import log as log
from torch import maximum as maximum
from torch import minimum as minimum
from torch import relu as relu
from torch import sigmoid as sigmoid
from torch import sqrt as sqrt
from torch import tanh as tanh
from torch import where as where
from torch.nn.functional import logsigmoid as logsigmoid
