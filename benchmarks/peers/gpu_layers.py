"""Recurrent layers of others that run on GPUs alone, written against their published interfaces.

None has been run by this project yet: no GPU was at hand. A wrong guess at a layout shows as the
status ``wrong``, since every row is verified before it is timed.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..case import Case
from ..problems import Sequence
from ..task import Results, Task, Unsupported, results
from ._base import peer

NEVER = "never run by this project: no GPU was at hand"
ALL = "input product, recurrence, all gradients"


def plain(case: Case, peer_name: str, *cells: str) -> None:
    """Refuse what no peer of this module has.

    Raises:
        Unsupported: another cell, several layers, two directions, no bias, or lengths.
    """
    if case.cell not in cells:
        raise Unsupported(f"{peer_name} has {' and '.join(cells)}, not {case.cell}")
    if case.layers > 1 or case.bidirectional or not case.bias or case.layout != "padded":
        raise Unsupported(f"{peer_name}: one padded layer with biases, one direction")


@peer("FlashRNN", "sequence", what=f"{ALL}; the input product is torch's linear", needs="flashrnn",
      get="pip install flashrnn (and nvcc: it compiles at the first call of each shape)",
      devices=("cuda",), note=NEVER)  # fmt: skip
def flashrnn(problem: Sequence) -> Task:
    """``flashrnn(Wx [B, T, G, N, D], R [G, N, D, D], b [G, N, D])``: one head, fused backend."""
    case = problem.case
    plain(case, "FlashRNN", "lstm", "gru")
    if case.dtype not in ("bfloat16", "float16", "float32"):
        raise Unsupported("FlashRNN takes bfloat16, float16 and float32")
    from flashrnn import flashrnn as run

    w = {name: t.clone().requires_grad_() for name, t in problem.weights.items()}
    leaves = {"x": problem.leaf} | w
    G, H = w["weight_hh_l0"].shape[0] // case.shape[3], case.shape[3]

    def forward() -> Results:
        gx = linear(leaves["x"], w["weight_ih_l0"])  # [T, B, G*H]
        R, bias = w["weight_hh_l0"].view(G, 1, H, H), w["bias_ih_l0"] + w["bias_hh_l0"]
        bias = bias.view(G, 1, H)
        if case.cell == "gru":  # its gates: n of the recurrence, r, z, and n of the input
            hidden, inner = w["bias_hh_l0"].view(3, 1, H), w["bias_ih_l0"].view(3, 1, H)
            R = R[[2, 0, 1]]
            bias = torch.cat([hidden[2:], hidden[:2] + inner[:2], inner[2:]])
        wx = gx.transpose(0, 1).unflatten(-1, (G, 1, H))  # [B, T, G, 1, H]
        states, _ = run(wx, R, bias, function=case.cell, backend="cuda_fused", dtype=case.dtype)
        return {"y": states[0].flatten(-2).transpose(0, 1)}

    return Task(forward, leaves)


@peer("haste", "sequence", what=ALL, needs="haste_pytorch",
      get="pip install haste_pytorch (2020; builds from source with nvcc)", devices=("cuda",),
      note=NEVER)  # fmt: skip
def haste(problem: Sequence) -> Task:
    """haste_pytorch.LSTM and GRU; kernels ``[I, G*H]`` with gates i, g, f, o or z, r, n."""
    case = problem.case
    plain(case, "haste", "lstm", "gru")
    if case.dtype != "float32":
        raise Unsupported("haste's layers take float32")
    import haste_pytorch

    _, _, I, H = case.shape
    order = [0, 2, 1, 3] if case.cell == "lstm" else [1, 0, 2]  # its gates in torch's order
    back = torch.tensor(order).argsort().tolist()
    module = (haste_pytorch.LSTM if case.cell == "lstm" else haste_pytorch.GRU)(I, H).cuda()

    def gates(t: Tensor, which: list[int]) -> Tensor:
        return torch.cat([t.unflatten(0, (-1, H))[g] for g in which])

    w = {name: gates(t, order) for name, t in problem.weights.items()}
    names = {"weight_ih_l0": "kernel", "weight_hh_l0": "recurrent_kernel", "bias_ih_l0": "bias"}
    with torch.no_grad():
        module.kernel.copy_(w["weight_ih_l0"].t())
        module.recurrent_kernel.copy_(w["weight_hh_l0"].t())
        if case.cell == "lstm":  # it has the sum of the two
            module.bias.copy_(w["bias_ih_l0"] + w["bias_hh_l0"])
        else:
            module.bias.copy_(w["bias_ih_l0"])
            module.recurrent_bias.copy_(w["bias_hh_l0"])
            names["bias_hh_l0"] = "recurrent_bias"
    leaves = {"x": problem.leaf} | {name: getattr(module, own) for name, own in names.items()}

    def restore(name: str, grad: Tensor) -> Tensor:
        if name == "x":
            return grad
        return gates(grad.t() if grad.ndim == 2 else grad, back)

    return Task(lambda: {"y": module(leaves["x"])[0]}, leaves, restore=restore)


@peer("TorchRL", "sequence", what=f"{ALL}; reset masks, none set", needs="torchrl",
      get="pip install torchrl triton", devices=("cuda",), note=NEVER)  # fmt: skip
def torchrl(problem: Sequence) -> Task:
    """Its Triton kernels, ``lstm_triton`` and ``gru_triton``: batch first, float32."""
    case = problem.case
    plain(case, "TorchRL's Triton kernels", "lstm", "gru")
    if case.dtype != "float32":
        raise Unsupported("TorchRL's Triton kernels take float32")
    from torchrl.modules.tensordict_module import _rnn_triton

    T, B, _, H = case.shape
    w = {name: t.clone().requires_grad_() for name, t in problem.weights.items()}
    leaves = {"x": problem.leaf} | w
    start = problem.x.new_zeros(B, T, H)
    states = (start,) * (2 if case.cell == "lstm" else 1)
    reset = torch.zeros(B, T, dtype=torch.bool, device=case.device)
    run = getattr(_rnn_triton, f"{case.cell}_triton")

    def forward() -> Results:
        x = leaves["x"].transpose(0, 1).contiguous()
        y, *_ = run(x, *states, *w.values(), reset, input_precision="ieee")
        return {"y": y.transpose(0, 1)}

    return Task(forward, leaves)


def own_model(problem: Sequence, module: nn.Module, run: object) -> Task:
    """A peer with a recurrence of its own, held to itself in float64."""
    leaves = {"x": problem.leaf} | dict(module.named_parameters())

    def truth() -> Results:
        wide = copy.deepcopy(module).double()
        x = problem.x.double().requires_grad_(problem.case.mode != "infer")
        inner = {"x": x} | dict(wide.named_parameters())
        return results(Task(lambda: {"y": run(wide, x)}, inner), problem, torch.float64)

    return Task(lambda: {"y": run(module, leaves["x"])}, leaves, truth=truth)


@peer("SRU", "sequence", what="another model: its recurrence is elementwise", needs="sru",
      get="pip install sru ninja (and nvcc)", devices=("cuda",),
      note=f"another model, not a drop-in; {NEVER}")  # fmt: skip
def sru(problem: Sequence) -> Task:
    """One layer of sru.SRU, beside the LSTM's rows."""
    case = problem.case
    plain(case, "SRU (shown beside the LSTM)", "lstm")
    from sru import SRU

    module = SRU(*case.shape[2:], num_layers=1).to(case.device, case.torch_dtype)
    return own_model(problem, module, lambda m, x: m(x)[0])


@peer("sLSTM", "sequence", what="another model: exponential gates, 4 heads; input product included",
      needs="xlstm", get="pip install xlstm ninja (and nvcc)", devices=("cuda",),
      note=f"another model, not a drop-in; {NEVER}")  # fmt: skip
def slstm(problem: Sequence) -> Task:
    """xLSTM's sLSTMCell on its CUDA backend, with a Linear before it."""
    case = problem.case
    plain(case, "sLSTM (shown beside the LSTM)", "lstm")
    T, B, I, H = case.shape
    if H % 4:
        raise Unsupported(f"H is {H}; four heads need a multiple of 4")
    from xlstm.blocks.slstm.cell import sLSTMCell, sLSTMCellConfig

    def build(backend: str, dtype: str) -> nn.ModuleList:
        config = sLSTMCellConfig(
            hidden_size=H, num_heads=4, batch_size=B, backend=backend, dtype=dtype,
            bias_init="standard", recurrent_weight_init="standard", input_shape="SBGNH",
            output_shape="SBH", enable_automatic_mixed_precision=False, dtype_b=dtype,
        )  # fmt: skip
        return nn.ModuleList([nn.Linear(I, 4 * H), sLSTMCell(config)])

    module = build("cuda", case.dtype).to(case.device, case.torch_dtype)
    leaves = {"x": problem.leaf} | dict(module.named_parameters())

    def run(m: nn.ModuleList, x: Tensor) -> Tensor:
        return m[1](m[0](x))[0]  # [T, B, H]

    def truth() -> Results:
        wide = build("vanilla", "float32").to(case.device)
        wide[0].load_state_dict(module[0].state_dict())
        wide[1].recurrent_kernel = module[1].recurrent_kernel
        wide[1].bias = module[1].bias
        wide.double()
        with torch.no_grad():
            return {"y": run(wide, problem.x.double())}

    return Task(lambda: {"y": run(module, leaves["x"])}, leaves, truth=truth)
