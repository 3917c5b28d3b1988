"""torch.compile, autocast, DistributedDataParallel, checkpointing: what modules live with."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from samples import run
from torch.nn.utils.rnn import pack_padded_sequence

import fusedrnn
from fusedrnn import _native

MODULES = {
    "lstm": lambda: fusedrnn.LSTM(3, 5, num_layers=2, bidirectional=True, dropout=0.0),
    "lstm_proj": lambda: fusedrnn.LSTM(3, 5, proj_size=2, batch_first=True),
    "gru": lambda: fusedrnn.GRU(3, 5, bias=False),
    "gru_reset_before": lambda: fusedrnn.GRU(3, 5, reset_after=False),
    "rnn_tanh": lambda: fusedrnn.RNN(3, 5),
    "rnn_relu": lambda: fusedrnn.RNN(3, 5, nonlinearity="relu"),
    "rnn_sigmoid": lambda: fusedrnn.RNN(3, 5, nonlinearity="sigmoid"),
}
CELLS = {
    "LSTMCell": lambda: fusedrnn.LSTMCell(3, 5),
    "GRUCell": lambda: fusedrnn.GRUCell(3, 5),
    "RNNCell": lambda: fusedrnn.RNNCell(3, 5),
}


@pytest.mark.parametrize("name", [*MODULES, *CELLS])
def test_compile_fullgraph_equals_eager(name, device):
    """Traced in one graph, forward and backward; aot_eager runs it without code generation."""
    module = ({**MODULES, **CELLS})[name]().to(device)
    size = (4, 3) if name in CELLS else (4, 2, 3)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    inputs = [torch.randn(size, device=device)]
    eager, graph = run(module, inputs), run(compiled, inputs)
    for a, b in zip(eager[0] + eager[1], graph[0] + graph[1], strict=True):
        torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-6)
    torch.compiler.reset()


@pytest.mark.skipif(_native.MISSING is not None, reason=str(_native.MISSING))
def test_compile_with_inductor_lengths_and_new_sizes():
    module = fusedrnn.GRU(3, 5, bidirectional=True)
    compiled = torch.compile(module, fullgraph=True, dynamic=True)
    for T, B in ((4, 2), (7, 3), (5, 6)):
        x, lengths = torch.randn(T, B, 3), torch.randint(1, T + 1, (B,))
        y, h = compiled(x, lengths=lengths)
        ey, eh = module(x, lengths=lengths)
        torch.testing.assert_close((y, h), (ey, eh), rtol=1e-6, atol=1e-6)
    torch.compiler.reset()


@pytest.mark.parametrize("name", MODULES)
def test_autocast_is_that_of_torchs_lstm(name, device):
    """Everything in autocast's dtype, results too, as nn.LSTM does; parameters keep theirs."""
    module = MODULES[name]().to(device)
    x = torch.randn(4, 2, 3, device=device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        y, state = module(x)
    low = MODULES[name]().to(device)
    low.load_state_dict(module.state_dict())
    ey, estate = low.bfloat16()(x.bfloat16())
    assert y.dtype == torch.bfloat16 and torch.equal(y, ey)
    leaves = torch.utils._pytree.tree_leaves
    assert all(torch.equal(a, b) for a, b in zip(leaves(state), leaves(estate), strict=True))
    y.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in module.parameters())


def test_autocast_dtype_is_torchs():
    x = torch.randn(4, 2, 3)
    ours, theirs = fusedrnn.LSTM(3, 5), torch.nn.LSTM(3, 5)
    theirs.load_state_dict(ours.state_dict())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (y, s), (ty, ts) = ours(x), theirs(x)
    assert [t.dtype for t in (y, *s)] == [t.dtype for t in (ty, *ts)]
    assert (y.float() - ty.float()).abs().max() <= 4 * torch.finfo(torch.bfloat16).eps


def test_checkpointing_recomputes_the_same(device):
    lstm = fusedrnn.LSTM(3, 5).to(device)
    x = torch.randn(4, 2, 3, device=device, requires_grad=True)
    (plain,) = torch.autograd.grad(lstm(x)[0].square().sum(), x)
    y, _ = torch.utils.checkpoint.checkpoint(lstm, x, use_reentrant=False)
    (again,) = torch.autograd.grad(y.square().sum(), x)
    assert torch.equal(plain, again)


def test_functional_call_and_swapped_parameters(device):
    gru = fusedrnn.GRU(3, 5).to(device)
    x = torch.randn(4, 2, 3, device=device)
    other = {n: torch.randn_like(p) for n, p in gru.named_parameters()}
    y, _ = torch.func.functional_call(gru, other, (x,))
    gru.load_state_dict(other)
    assert torch.equal(y, gru(x)[0])


def test_packed_under_no_grad_and_inference_mode(device):
    lstm = fusedrnn.LSTM(3, 5).to(device)
    packed = pack_padded_sequence(torch.randn(4, 2, 3, device=device), [4, 2])
    expected = lstm(packed)[0].data
    with torch.inference_mode():
        assert torch.equal(lstm(packed)[0].data, expected)


DDP = """
    import os, sys, torch, torch.distributed as dist, fusedrnn
    from torch.nn.parallel import DistributedDataParallel
    rank = int(sys.argv[1])
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=sys.argv[2])
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = torch.nn.ModuleList([fusedrnn.LSTM(3, 5, 2, bidirectional=True), fusedrnn.GRU(10, 4)])
    forward = lambda m, x: m[1](m[0](x)[0])[0]
    x = torch.randn(6, 4, 3)
    forward(model, x).square().sum().backward()
    whole = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = model
        def forward(self, x):
            return forward(self.layers, x)
    net = DistributedDataParallel(Net())
    net(x[:, 2 * rank : 2 * rank + 2]).square().sum().backward()
    for p, g in zip(model.parameters(), whole):
        torch.testing.assert_close(2 * p.grad, g, rtol=1e-4, atol=1e-5)  # DDP averages
    dist.barrier()
    dist.destroy_process_group()
    print("gradients agree on rank", rank)
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no torch.distributed")
def test_distributed_data_parallel_over_two_processes():
    port = str(29500 + os.getpid() % 2000)
    command = [sys.executable, "-c", textwrap.dedent(DDP)]
    processes = [
        subprocess.Popen([*command, str(rank), port], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for rank, process in enumerate(processes):
        out, _ = process.communicate(timeout=240)
        assert process.returncode == 0 and f"gradients agree on rank {rank}" in out
