"""Stacked layers that take turns: the numbers, the order of what waits for what, and the choice."""

from contextlib import contextmanager
from itertools import pairwise

import pytest
import torch
from exactness import assert_close64
from samples import LAYERS
from torch._subclasses.fake_tensor import FakeTensorMode

import fusedrnn
from fusedrnn import _native, _waves, ops, plan
from fusedrnn._call import Weights
from fusedrnn._pieces import LayerCall
from fusedrnn.cells import CELLS

leaves = torch.utils._pytree.tree_leaves
needs_native = pytest.mark.skipif(_native.MISSING is not None, reason=str(_native.MISSING))
DRAWN = {"zoneout": (0.3, 0.2), "recurrent_dropout": 0.2, "variational_dropout": 0.4}
STACKS = [(name, {}) for name in LAYERS]
STACKS += [("lstm", {"proj_size": 3}), ("gru", {"dropout": 1.0}), ("lstm", DRAWN)]


def results(layer, x, given):
    torch.manual_seed(3)
    y, end = layer(x, **given)
    total = y.square().sum() + sum(s.sin().sum() for s in leaves(end))
    return [y, end, *torch.autograd.grad(total, [x, *layer.parameters()])]


@pytest.mark.parametrize(("name", "options"), STACKS)
@pytest.mark.parametrize("pieces", ["2", "3", "99"])
@pytest.mark.parametrize("given", ["plain", "lengths", "reset"])
def test_waves_are_the_layers_one_by_one(name, options, pieces, given, device, monkeypatch):
    """With what is drawn too: a mask for all steps stays one, and steps draw as in the whole."""
    _, ours, named = LAYERS[name]
    batch_first = pieces == "3"
    options = {"batch_first": batch_first, "num_layers": 3, **named, **options}
    layer = ours(4, 5, **options, dtype=torch.float64, device=device)
    size = (3, 7, 4) if batch_first else (7, 3, 4)
    x = torch.randn(size, dtype=torch.float64, device=device, requires_grad=True)
    more = {
        "plain": {},
        "lengths": {"lengths": torch.tensor([7, 2, 4], device=device)},
        "reset": {"reset": torch.rand(size[:2], device=device) < 0.3},
    }[given]
    both = []
    for count in ("1", pieces):
        monkeypatch.setenv(_waves.VARIABLE, count)
        both.append(results(layer, x, more))
    assert_close64(both[1], both[0], name)


@pytest.mark.parametrize("mode", ["gates", "chunks"])
def test_recomputing_draws_the_same(mode, device):
    layer = fusedrnn.LSTM(4, 5, 2, **DRAWN, dtype=torch.float64, device=device)
    x = torch.randn(7, 3, 4, dtype=torch.float64, device=device, requires_grad=True)
    whole = results(layer, x, {})
    layer.recompute = mode
    assert_close64(results(layer, x, {}), whole, mode)


def test_an_intervention_that_changes_nothing_draws_the_same(device):
    layer = fusedrnn.LSTM(4, 5, bidirectional=True, **DRAWN, dtype=torch.float64, device=device)
    x = torch.randn(7, 3, 4, dtype=torch.float64, device=device, requires_grad=True)
    whole = results(layer, x, {})
    changes = [
        fusedrnn.intervene(layer, state="h", steps=[1, 4], direction=d, call=lambda h, t: h)
        for d in (0, 1)
    ]
    with changes[0], changes[1]:
        assert_close64(results(layer, x, {}), whole, "cut into pieces")


class Stream:
    """A stream as far as its order goes: what was begun on which stream before what is begun now.

    Each piece of work is a tick of its stream; ``seen`` holds the ticks that are over by the time
    the next one begins.
    """

    current = None

    def __init__(self, *_):
        self.seen = {}

    def wait_stream(self, other):
        for stream, tick in other.seen.items():
            self.seen[stream] = max(self.seen.get(stream, 0), tick)

    def tick(self):
        self.seen[self] = self.seen.get(self, 0) + 1
        return self, self.seen[self]

    def sees(self, work):
        stream, tick = work
        return self.seen.get(stream, 0) >= tick


class Watched:
    """Every call of the op: does it wait for who made its arguments, and are they kept for it?"""

    def __init__(self, monkeypatch):
        self.caller, self.made, self.readers = Stream(), {}, set()
        self.order, self.kept, self.waited = [], [], []
        self.begun = self.caller.tick()  # all that the call is given
        Stream.current = self.caller
        self.op, real = ops.sequence, _waves.Lanes
        card = torch.device("cuda", 0)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.caller)
        monkeypatch.setattr(torch.cuda, "stream", self.on)
        monkeypatch.setattr(_waves, "_side_streams", lambda i, n: tuple(Stream() for _ in range(n)))
        monkeypatch.setattr(_waves, "Lanes", lambda device, layers: real(card, layers))
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda t, s: self.record(t, s))
        monkeypatch.setattr(ops, "sequence", self.sequence)

    @contextmanager
    def on(self, stream):
        before, Stream.current = Stream.current, stream
        yield
        Stream.current = before

    @staticmethod
    def of(t):
        return t.untyped_storage().data_ptr()

    def record(self, t, stream):
        self.readers.add((self.of(t), stream))

    def read(self, t):
        if t is None or not t.numel():
            return
        work = self.made.get(self.of(t), self.begun)
        assert Stream.current.sees(work), "begins before its argument is there"
        if work[0] is not Stream.current:
            assert (self.of(t), Stream.current) in self.readers, "may be given away meanwhile"

    def sequence(self, cell, x, weights, h, c, lengths, reset, *rest):
        # lengths and resets of a piece are made on its stream; those of the whole are read there.
        for t in (x, h, c, *rest, *(w for each in weights for w in each)):
            if isinstance(t, torch.Tensor):
                self.read(t)
        outputs = self.op(cell, x, weights, h, c, lengths, reset, *rest)
        self.waited.append((Stream.current, dict(Stream.current.seen)))
        work = Stream.current.tick()
        self.order.append(work)
        self.kept.append(outputs)  # so that no address is used twice
        self.made |= {self.of(t): work for t in outputs if t.numel()}
        return outputs


@pytest.mark.parametrize("layers", [2, 3, 5])
@pytest.mark.parametrize("pieces", ["2", "4", "7"])
def test_whoever_reads_waits_for_who_wrote(layers, pieces, monkeypatch):
    """The calls of real streams, their order kept by clocks: nothing is too early or too late."""
    layer = fusedrnn.LSTM(4, 5, layers)
    monkeypatch.setenv(_waves.VARIABLE, pieces)
    seen = Watched(monkeypatch)
    lengths, mask = torch.tensor([7, 2, 4]), torch.rand(7, 3) < 0.3
    with torch.no_grad():
        layer(torch.randn(7, 3, 4), lengths=lengths, reset=mask)
    assert len(seen.order) == layers * int(pieces)
    last = {stream: outputs for (stream, _), outputs in zip(seen.order, seen.kept, strict=True)}
    for _, h, c in last.values():  # with which the caller goes on
        seen.read(h), seen.read(c)
    lanes = list(dict(seen.order))  # from the lowest layer up: in this order they begin
    assert len(lanes) == layers and lanes[-1] is seen.caller
    assert all((seen.of(t), lane) in seen.readers for t in (lengths, mask) for lane in lanes[:-1])
    for lower, upper in pairwise(lanes):
        assert lower.seen.get(upper, 0) == (upper is seen.caller)  # waits for none of its pieces
        waited = [seen_then[lower] for lane, seen_then in seen.waited if lane is upper]
        assert waited == list(range(1, int(pieces) + 1))  # for the piece it reads, and no more


def test_without_a_wait_the_clocks_say_so(monkeypatch):
    monkeypatch.setenv(_waves.VARIABLE, "2")
    Watched(monkeypatch)
    monkeypatch.setattr(Stream, "wait_stream", lambda self, other: None)
    with torch.no_grad(), pytest.raises(AssertionError, match="before its argument is there"):
        fusedrnn.GRU(4, 5, 2)(torch.randn(7, 3, 4))


def test_without_a_record_the_clocks_say_so(monkeypatch):
    monkeypatch.setenv(_waves.VARIABLE, "2")
    Watched(monkeypatch)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
    with torch.no_grad(), pytest.raises(AssertionError, match="given away"):
        fusedrnn.GRU(4, 5, 2)(torch.randn(7, 3, 4))


@pytest.mark.parametrize("asked", ["0", "-2", "many", "1.5"])
def test_a_number_of_pieces_that_is_none(asked, monkeypatch):
    monkeypatch.setenv(_waves.VARIABLE, asked)
    with pytest.raises(ValueError, match=f"FUSEDRNN_PIECES is '{asked}'; it must be a number"):
        fusedrnn.GRU(4, 5, 2)(torch.randn(7, 3, 4))


def of(card, layers, T, B, H, backward=True, **more):
    given = {"proj_size": 0, "dtype": torch.bfloat16, "precision": None, **more}
    return _waves.planned(
        more.pop("cell", "lstm"), layers, T, B, H, backward=backward, device=card, **given
    )


@needs_native
def test_the_choice():
    """Waves where SMs can be left; never where a layer needs them all, is stepwise, or short."""
    h200, a100 = plan.devices()["h200"], plan.devices()["a100"]
    found = of(h200, 2, 1024, 16, 512)
    assert found.pieces > 1 and found.at_once == 2 and found.us < 0.9 * found.us_one_by_one
    assert of(h200, 4, 1024, 16, 512).us < 0.6 * of(h200, 4, 1024, 16, 512).us_one_by_one
    for full in (
        of(h200, 2, 512, 64, 1024),  # all SMs
        of(h200, 2, 1024, 16, 512, dtype=torch.float64),  # stepwise
        of(h200, 2, 1024, 16, 512, kernel="stepwise"),
        of(h200, 2, 20, 16, 512),  # short
        of(a100, 2, 512, 64, 1024),
    ):
        assert full.pieces == 1 and full.us == full.us_one_by_one


@needs_native
def test_waves_are_chosen_where_the_model_gains():
    for card in plan.devices().values():
        for layers, T, B, H in ((2, 35, 20, 200), (3, 256, 8, 256), (2, 4096, 1, 512)):
            for backward in (False, True):
                found = of(card, layers, T, B, H, backward)
                assert 1 <= found.at_once <= layers
                assert found.pieces & (found.pieces - 1) == 0 and T // found.pieces >= 16
                assert found.us <= found.us_one_by_one
                assert (found.at_once > 1) == (found.pieces > 1)
                if found.at_once > 1:
                    assert all(p.runs and p.at_once >= found.at_once for p in found.passes)


@needs_native
def test_a_stack_on_a_card_asks_the_planner(monkeypatch):
    """The road to the choice on a GPU, with tensors that have no memory."""
    monkeypatch.setattr(_waves._backend, "choose", lambda *_: ("cuda", ""))
    monkeypatch.setattr(plan, "here", lambda index: plan.devices()["h200"])
    _waves.planned.cache_clear()

    def on_card(*size):
        return torch.empty(*size, device="cuda", dtype=torch.bfloat16, requires_grad=True)

    with FakeTensorMode():
        weights = Weights(on_card(2048, 512), on_card(2048, 512))
        h, c = on_card(1, 16, 512), on_card(1, 1, 16, 512)
        stack = [LayerCall(CELLS["lstm"], (weights,), h, c)] * 2
        found = _waves.chosen(stack, on_card(1024, 16, 512))
        with torch.no_grad():
            forward_alone = _waves.chosen(stack, on_card(1024, 16, 512))
        monkeypatch.setenv(_waves.VARIABLE, "3")
        asked = _waves.chosen(stack, on_card(1024, 16, 512))
    _waves.planned.cache_clear()
    both, alone = (of(plan.devices()["h200"], 2, 1024, 16, 512, back) for back in (True, False))
    assert found == (both.pieces, both.at_once) and both.pieces > 1
    assert forward_alone == (alone.pieces, alone.at_once)
    assert asked == (3, both.at_once)
