"""The whole sequence in one launch, for few units: W_hh and the states stay on chip.

A program owns BB batch rows and all hidden units, padded to BH, so that h never leaves it and no
program waits for another. Triton keeps the tiles of W_hh, read before the loop, in shared memory;
``sequence.plan`` says how many units fit. Units that are INDEPENDENT have no W_hh, and a program
owns some of any number. With FULL peepholes c meets the columns of W_hh after those of h. Both
directions of a layer run in one launch, side by side. Layouts: csrc/sequence.h; Y is the distance
of the rows of y and dy.
"""

import triton
import triton.language as tl

from ._around import cell_backward, cell_forward
from ._maths import bounded
from ._random import meeting, own_values
from ._tiles import (
    add,
    dot,
    is_reset,
    load,
    load_planes,
    load_rows,
    load_vectors,
    reset_states,
    row_lengths,
    select,
    states_after,
    states_before,
    store_planes,
    store_vectors,
    unit_weights,
    zeros,
)


@triton.jit
def _units(BH: tl.constexpr, INDEPENDENT: tl.constexpr):
    """This program's."""
    if INDEPENDENT:
        return tl.program_id(2) * BH + tl.arange(0, BH)
    else:
        return tl.arange(0, BH)


@triton.jit
def _weights(p, o_h, m_h, H, W, G: tl.constexpr, TRANSPOSED: tl.constexpr):
    """H columns of W_hh of each gate, whose rows are W apart; TRANSPOSED is [columns, units]."""
    w = ()
    for g in tl.static_range(G):
        if TRANSPOSED:
            p_w = p + (g * H + o_h)[None, :] * W + o_h[:, None]
        else:
            p_w = p + (g * H + o_h)[:, None] * W + o_h[None, :]
        w = w + (tl.load(p_w, mask=m_h[:, None] & m_h[None, :], other=0.0),)
    return w


@triton.jit
def _recur(
    b_v, w, bias, FIRST: tl.constexpr, LAST: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """W_g v + b_g for gates FIRST..LAST-1: [rows, BH]."""
    u = ()
    for g in tl.static_range(FIRST, LAST):
        u = u + (dot(b_v, w[g], tl.zeros_like(b_v) + bias[g], PRECISION, UPCAST),)
    return u


@triton.jit
def _recur_backward(
    b_acc, d, w, FIRST: tl.constexpr, LAST: tl.constexpr, VECTOR: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """b_acc + sum of W_g^T d[VECTOR[g]] over gates FIRST..LAST-1."""
    for g in tl.static_range(FIRST, LAST):
        b_acc = dot(d[VECTOR[g]], w[g], b_acc, PRECISION, UPCAST)
    return b_acc


@triton.jit
def _forward(
    direction, lengths, T, B, H, Y,
    forward: tl.constexpr, operand: tl.constexpr, OPERAND: tl.constexpr,
    G: tl.constexpr, S: tl.constexpr, K: tl.constexpr, SECOND: tl.constexpr,
    V: tl.constexpr, OWN: tl.constexpr, INDEPENDENT: tl.constexpr, FULL: tl.constexpr,
    CHANCES: tl.constexpr, REVERSE: tl.constexpr, ACC: tl.constexpr, BB: tl.constexpr,
    BH: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One direction. ``saved`` and ``cells`` are None where nothing is kept for backward."""
    gx, weight_hh, bias_hh, weight_unit, seed, h0, c0, reset, y, hn, cn, saved, cells = direction
    o_b = tl.program_id(0).to(tl.int64) * BB + tl.arange(0, BB)  # [BB]
    o_h = _units(BH, INDEPENDENT)
    m_b, m_h = o_b < B, o_h < H
    m = m_b[:, None] & m_h[None, :]
    b_len = row_lengths(lengths, o_b, m_b, T)
    w, w_c = (), ()
    if FULL:
        w = _weights(weight_hh, o_h, m_h, H, 2 * H, G, True)
        w_c = _weights(weight_hh + H, o_h, m_h, H, 2 * H, G, True)
    elif not INDEPENDENT:
        w = _weights(weight_hh, o_h, m_h, H, H, G, True)
    bias = load_rows(bias_hh, o_h, H, 0, G, ACC)
    weight = unit_weights(weight_unit, o_h, H, V, ACC)
    met = meeting(seed, o_b, o_h, CHANCES, ACC)
    s = load_planes(h0, o_b, o_h, m, B, H, 1, ACC) + load_planes(c0, o_b, o_h, m, B, H, S - 1, ACC)
    t_first = tl.cast(T - 1 if REVERSE else 0, tl.int64)
    anew = s
    if reset is not None:
        anew = reset_states(reset, o_b, o_h, m, B, H, S, False, ACC)
        s = select(is_reset(reset, b_len, t_first, o_b, B, REVERSE), anew, s, S)
    x = load_vectors(gx, t_first * B + o_b, o_h, m, H, 0, G, G, ACC)

    for i in range(T):
        t = tl.cast(T - 1 - i if REVERSE else i, tl.int64)
        o_t = t * B + o_b
        # The next step's gx sets out from memory before this step's products.
        o_next = o_t - B if REVERSE else o_t + B
        x_next = load_vectors(gx, o_next, o_h, m & (i + 1 < T), H, 0, G, G, ACC)
        own, keep_h = own_values(weight, None, seed, t, o_b, o_h, CHANCES, ACC)
        u, kept = bias, None
        if not INDEPENDENT:
            b_h = s[0]
            if met is not None:
                b_h = b_h * met
            u = _recur(b_h, w, bias, 0, G - SECOND, PRECISION, UPCAST)
        if FULL:
            u = _recur(s[1], w_c, u, 0, G, PRECISION, UPCAST)
        if SECOND > 0:
            kept = operand(x, u, s)
            u = u + _recur(kept[OPERAND], w, bias, G - SECOND, G, PRECISION, UPCAST)
        out, kept = cell_forward(x, u, s, kept, own, keep_h, forward, OWN)
        m_t = (t < b_len)[:, None]
        tl.store(y + o_t[:, None] * Y + o_h[None, :], tl.where(m_t, out[0], 0.0), mask=m)
        s, x = select(m_t & m, out, s, S), x_next  # units that pad the tile: a cell may make NaN
        if saved is not None:
            store_vectors(saved, kept, o_t, o_h, m, H, K)
            store_planes(cells, s[1:], t * (S - 1) * B + o_b, o_h, m, B, H, S - 1)
        if reset is not None:
            # A step ahead: Triton 3.7 lays out a product's operands for the narrowest load that
            # they come from in one step, which fails for float64 if that is a mask of bytes.
            t_next = t - 1 if REVERSE else t + 1
            s = select(is_reset(reset, b_len, t_next, o_b, B, REVERSE), anew, s, S)
    store_planes(hn, s, o_b, o_h, m, B, H, 1)
    store_planes(cn, s[1:], o_b, o_h, m, B, H, S - 1)


@triton.jit(do_not_specialize=["T", "B"])
def whole_forward(
    one, other, lengths, T, B, H, Y,
    forward: tl.constexpr, operand: tl.constexpr, OPERAND: tl.constexpr,
    G: tl.constexpr, S: tl.constexpr, K: tl.constexpr, SECOND: tl.constexpr,
    V: tl.constexpr, OWN: tl.constexpr, INDEPENDENT: tl.constexpr, FULL: tl.constexpr,
    CHANCES: tl.constexpr, ACC: tl.constexpr, BB: tl.constexpr, BH: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Grid: batch blocks, directions, blocks of independent units.

    ``other``, the reverse direction, may be None.
    """
    if tl.program_id(1) == 0:
        _forward(
            one, lengths, T, B, H, Y, forward, operand, OPERAND, G, S, K, SECOND,
            V, OWN, INDEPENDENT, FULL, CHANCES, False, ACC, BB, BH, PRECISION, UPCAST,
        )  # fmt: skip
    elif other is not None:
        _forward(
            other, lengths, T, B, H, Y, forward, operand, OPERAND, G, S, K, SECOND,
            V, OWN, INDEPENDENT, FULL, CHANCES, True, ACC, BB, BH, PRECISION, UPCAST,
        )  # fmt: skip


@triton.jit
def _backward(
    direction, lengths, T, B, H, Y,
    backward: tl.constexpr, backward_operand: tl.constexpr, VECTOR: tl.constexpr,
    G: tl.constexpr, S: tl.constexpr, K: tl.constexpr, D: tl.constexpr, SECOND: tl.constexpr,
    V: tl.constexpr, OWN: tl.constexpr, INDEPENDENT: tl.constexpr, FULL: tl.constexpr,
    CHANCES: tl.constexpr, REVERSE: tl.constexpr, ACC: tl.constexpr, BB: tl.constexpr,
    BH: tl.constexpr, DH_CLIP: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One direction. ``dy`` may be None: zero.

    ``carry_h`` [B, H], ``carry_c`` [S-1, B, H]: gradients of the last states, then of the first.
    ``dreset``: (dreset_h, dreset_c), of the same sizes, or Nones where they are not wanted.
    """
    dy, carry_h, carry_c, dreset, y, h0, c0, reset = direction[:8]
    weight_hh, weight_unit, seed, saved, cells, grads = direction[8:]
    o_b = tl.program_id(0).to(tl.int64) * BB + tl.arange(0, BB)  # [BB]
    o_h = _units(BH, INDEPENDENT)
    m_b, m_h = o_b < B, o_h < H
    m = m_b[:, None] & m_h[None, :]
    b_len = row_lengths(lengths, o_b, m_b, T)
    w, w_c = (), ()
    if FULL:
        w = _weights(weight_hh, o_h, m_h, H, 2 * H, G, False)
        w_c = _weights(weight_hh + H, o_h, m_h, H, 2 * H, G, False)
    elif not INDEPENDENT:
        w = _weights(weight_hh, o_h, m_h, H, H, G, False)
    weight = unit_weights(weight_unit, o_h, H, V, ACC)
    met = meeting(seed, o_b, o_h, CHANCES, ACC)
    dout = load_planes(carry_h, o_b, o_h, m, B, H, 1, ACC)
    dout = dout + load_planes(carry_c, o_b, o_h, m, B, H, S - 1, ACC)
    nothing = zeros(BB, BH, S, ACC)
    danew = nothing
    m_cut = None
    if reset is not None:  # a step ahead: see _forward
        t_first = tl.cast(0 if REVERSE else T - 1, tl.int64)
        m_cut = is_reset(reset, b_len, t_first, o_b, B, REVERSE)

    for i in range(T):
        t = tl.cast(i if REVERSE else T - 1 - i, tl.int64)
        o_t = t * B + o_b
        m_t = (t < b_len)[:, None]
        kept = load_vectors(saved, o_t, o_h, m, H, 0, K, K, ACC)
        s = states_before(
            y, h0, cells, c0, reset, m_cut, b_len, t, o_b, o_h, m, B, H, Y, S, REVERSE, False, ACC
        )
        out = states_after(y, cells, t, o_b, o_h, m, B, H, Y, S, False, ACC)
        b_dh = dout[0]
        if dy is not None:
            b_dh += load(dy, o_t[:, None] * Y + o_h[None, :], m & m_t, ACC)
        own, keep_h = own_values(weight, None, seed, t, o_b, o_h, CHANCES, ACC)
        b_dout = (bounded(b_dh, DH_CLIP),) + dout[1:]
        d, ds = cell_backward(kept, s, out, b_dout, own, keep_h, backward, OWN)
        if SECOND > 0:
            b_dp = _recur_backward(
                tl.zeros([BB, BH], ACC), d, w, G - SECOND, G, VECTOR, PRECISION, UPCAST
            )
            d, ds = backward_operand(kept, s, b_dp, d, ds)
        d = select(m_t & m, d, zeros(BB, BH, D, ACC), D)  # where the tile is padded: see _forward
        store_vectors(grads, d, o_t, o_h, m, H, D)
        b_dh = tl.zeros([BB, BH], ACC) + ds[0]
        if met is not None:
            b_met = tl.zeros([BB, BH], ACC)
            b_met = _recur_backward(b_met, d, w, 0, G - SECOND, VECTOR, PRECISION, UPCAST)
            b_dh += b_met * met
        elif not INDEPENDENT:
            b_dh = _recur_backward(b_dh, d, w, 0, G - SECOND, VECTOR, PRECISION, UPCAST)
        ds = (b_dh,) + ds[1:]
        if FULL:
            ds = (b_dh, _recur_backward(ds[1], d, w_c, 0, G, VECTOR, PRECISION, UPCAST))
        dout = select(m_t, ds, dout, S)
        if reset is not None:  # what a row began anew with gets it, not the step before
            if dreset[0] is not None:
                danew = add(danew, select(m_cut, dout, nothing, S), S)
            dout = select(m_cut, nothing, dout, S)
            m_cut = is_reset(reset, b_len, t + 1 if REVERSE else t - 1, o_b, B, REVERSE)
    store_planes(carry_h, dout, o_b, o_h, m, B, H, 1)
    store_planes(carry_c, dout[1:], o_b, o_h, m, B, H, S - 1)
    if dreset[0] is not None:
        store_planes(dreset[0], danew, o_b, o_h, m, B, H, 1)
        store_planes(dreset[1], danew[1:], o_b, o_h, m, B, H, S - 1)


@triton.jit(do_not_specialize=["T", "B"])
def whole_backward(
    one, other, lengths, T, B, H, Y,
    backward: tl.constexpr, backward_operand: tl.constexpr, VECTOR: tl.constexpr,
    G: tl.constexpr, S: tl.constexpr, K: tl.constexpr, D: tl.constexpr, SECOND: tl.constexpr,
    V: tl.constexpr, OWN: tl.constexpr, INDEPENDENT: tl.constexpr, FULL: tl.constexpr,
    CHANCES: tl.constexpr, ACC: tl.constexpr, BB: tl.constexpr, BH: tl.constexpr,
    DH_CLIP: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Grid: as in whole_forward. ``other``, the reverse direction, may be None."""
    if tl.program_id(1) == 0:
        _backward(
            one, lengths, T, B, H, Y, backward, backward_operand, VECTOR, G, S, K, D, SECOND,
            V, OWN, INDEPENDENT, FULL, CHANCES, False, ACC, BB, BH, DH_CLIP, PRECISION, UPCAST,
        )  # fmt: skip
    elif other is not None:
        _backward(
            other, lengths, T, B, H, Y, backward, backward_operand, VECTOR, G, S, K, D, SECOND,
            V, OWN, INDEPENDENT, FULL, CHANCES, True, ACC, BB, BH, DH_CLIP, PRECISION, UPCAST,
        )  # fmt: skip
