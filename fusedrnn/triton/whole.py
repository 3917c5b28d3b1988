"""The whole sequence in one launch, for few units: W_hh and the states stay on chip.

A program owns BB batch rows and all hidden units, padded to BH, so that h never leaves it and no
program waits for another. Triton keeps the tiles of W_hh, read before the loop, in shared memory;
``sequence.plan`` says how many units fit. Both directions of a layer run in one launch, side by
side. Layouts: csrc/sequence.h; Y is the distance of the rows of y and dy.
"""

import triton
import triton.language as tl

from ._maths import bounded
from ._tiles import (
    add,
    dot,
    is_reset,
    load,
    load_bias,
    load_planes,
    load_vectors,
    reset_states,
    row_lengths,
    select,
    states_after,
    states_before,
    store_planes,
    store_vectors,
    zeros,
)


@triton.jit
def _recur(
    b_v, w, bias, FIRST: tl.constexpr, LAST: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """W_g v + b_g for gates FIRST..LAST-1."""
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
    REVERSE: tl.constexpr, ACC: tl.constexpr, BB: tl.constexpr, BH: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One direction. ``saved`` and ``cells`` are None where nothing is kept for backward."""
    gx, weight_hh, bias_hh, h0, c0, reset, y, hn, cn, saved, cells = direction
    o_b = tl.program_id(0).to(tl.int64) * BB + tl.arange(0, BB)  # [BB]
    o_h = tl.arange(0, BH)
    m_b, m_h = o_b < B, o_h < H
    m = m_b[:, None] & m_h[None, :]
    b_len = row_lengths(lengths, o_b, m_b, T)
    w = ()
    for g in tl.static_range(G):
        p_w = weight_hh + (g * H + o_h)[None, :] * H + o_h[:, None]
        w = w + (tl.load(p_w, mask=m_h[:, None] & m_h[None, :], other=0.0),)  # [BH of h, BH]
    bias = load_bias(bias_hh, o_h, H, 0, G, ACC)
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
        u = _recur(s[0], w, bias, 0, G - SECOND, PRECISION, UPCAST)
        if SECOND > 0:
            kept = operand(x, u, s)
            u = u + _recur(kept[OPERAND], w, bias, G - SECOND, G, PRECISION, UPCAST)
            out, kept = forward(x, u, s, kept)
        else:
            out, kept = forward(x, u, s)
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
    ACC: tl.constexpr, BB: tl.constexpr, BH: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Grid: batch blocks, directions. ``other``, the reverse one, may be None."""
    if tl.program_id(1) == 0:
        _forward(
            one, lengths, T, B, H, Y, forward, operand, OPERAND, G, S, K, SECOND,
            False, ACC, BB, BH, PRECISION, UPCAST,
        )  # fmt: skip
    elif other is not None:
        _forward(
            other, lengths, T, B, H, Y, forward, operand, OPERAND, G, S, K, SECOND,
            True, ACC, BB, BH, PRECISION, UPCAST,
        )  # fmt: skip


@triton.jit
def _backward(
    direction, lengths, T, B, H, Y,
    backward: tl.constexpr, backward_operand: tl.constexpr, VECTOR: tl.constexpr,
    G: tl.constexpr, S: tl.constexpr, K: tl.constexpr, D: tl.constexpr, SECOND: tl.constexpr,
    REVERSE: tl.constexpr, ACC: tl.constexpr, BB: tl.constexpr, BH: tl.constexpr,
    DH_CLIP: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One direction. ``dy`` may be None: zero.

    ``carry_h`` [B, H], ``carry_c`` [S-1, B, H]: gradients of the last states, then of the first.
    ``dreset``: (dreset_h, dreset_c), of the same sizes, or Nones where they are not wanted.
    """
    dy, carry_h, carry_c, dreset, y, h0, c0, reset, weight_hh, saved, cells, grads = direction
    o_b = tl.program_id(0).to(tl.int64) * BB + tl.arange(0, BB)  # [BB]
    o_h = tl.arange(0, BH)
    m_b, m_h = o_b < B, o_h < H
    m = m_b[:, None] & m_h[None, :]
    b_len = row_lengths(lengths, o_b, m_b, T)
    w = ()
    for g in tl.static_range(G):
        p_w = weight_hh + (g * H + o_h)[:, None] * H + o_h[None, :]
        w = w + (tl.load(p_w, mask=m_h[:, None] & m_h[None, :], other=0.0),)  # [BH, BH of h]
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
        d, ds = backward(kept, s, out, (bounded(b_dh, DH_CLIP),) + dout[1:])
        if SECOND > 0:
            b_dp = _recur_backward(
                tl.zeros([BB, BH], ACC), d, w, G - SECOND, G, VECTOR, PRECISION, UPCAST
            )
            d, ds = backward_operand(kept, s, b_dp, d, ds)
        d = select(m_t & m, d, zeros(BB, BH, D, ACC), D)  # where the tile is padded: see _forward
        store_vectors(grads, d, o_t, o_h, m, H, D)
        b_dh = tl.zeros([BB, BH], ACC) + ds[0]
        b_dh = _recur_backward(b_dh, d, w, 0, G - SECOND, VECTOR, PRECISION, UPCAST)
        dout = select(m_t, (b_dh,) + ds[1:], dout, S)
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
    ACC: tl.constexpr, BB: tl.constexpr, BH: tl.constexpr,
    DH_CLIP: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Grid: batch blocks, directions. ``other``, the reverse one, may be None."""
    if tl.program_id(1) == 0:
        _backward(
            one, lengths, T, B, H, Y, backward, backward_operand, VECTOR, G, S, K, D, SECOND,
            False, ACC, BB, BH, DH_CLIP, PRECISION, UPCAST,
        )  # fmt: skip
    elif other is not None:
        _backward(
            other, lengths, T, B, H, Y, backward, backward_operand, VECTOR, G, S, K, D, SECOND,
            True, ACC, BB, BH, DH_CLIP, PRECISION, UPCAST,
        )  # fmt: skip
