"""One launch a step, for any number of units and for projections (two launches, or three).

A program owns BB rows and BH units; the product with W_hh runs in tiles of BK, and the cell's maths
follow in the same launch. What one step hands to the next lies in small buffers of the state's
dtype: h in two that take turns, since programs read all of h while others already write it; all
else in place. What a step leaves is what the next one begins with: where a row is reset, the reset
state. Layouts: csrc/sequence.h. P is the width of h, Y the distance of the rows of y and dy.
"""

import triton
import triton.language as tl

from ._around import cell_backward, cell_forward
from ._maths import bounded
from ._random import meeting, own_values
from ._steps import give_reset, leave, offsets, store_inner, through_gates
from ._tiles import (
    add,
    is_reset,
    load,
    load_planes,
    load_rows,
    load_vectors,
    products,
    reset_states,
    row_lengths,
    select,
    states_after,
    states_before,
    store_planes,
    store_vectors,
    transposed_product,
    unit_weights,
    zeros,
)


@triton.jit(do_not_specialize=["t", "B"])
def operand_step(
    gx, weight_hh, bias_hh, h, stash, t, B, H,
    operand: tl.constexpr, G: tl.constexpr, K: tl.constexpr, SECOND: tl.constexpr,
    ACC: tl.constexpr, BB: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Everything before the second product. ``stash`` [K, B, H] takes what is saved so far."""
    o_b, o_h = offsets(BB, BH)
    m_b = o_b < B
    m = m_b[:, None] & (o_h < H)[None, :]
    x = load_vectors(gx, tl.cast(t, tl.int64) * B + o_b, o_h, m, H, 0, G, G, ACC)
    u = products(
        h, weight_hh, o_b, o_h, m_b, H, H, H, None, 0, G - SECOND,
        None, ACC, BB, BH, BK, PRECISION, UPCAST,
    )  # fmt: skip
    u = add(u, load_rows(bias_hh, o_h, H, 0, G - SECOND, ACC), G - SECOND)
    kept = operand(x, u, load_vectors(h, o_b, o_h, m, H, 0, 1, 1, ACC))
    store_planes(stash, kept, o_b, o_h, m, B, H, K)


@triton.jit(do_not_specialize=["t", "T", "B"])
def forward_step(
    gx, weight_hh, bias_hh, weight_unit, seed, h, h_new, c, c_new, stash, lengths, reset, y, saved,
    cells, hidden, t, T, B, H, P, Y, W,
    forward: tl.constexpr, OPERAND: tl.constexpr,
    G: tl.constexpr, S: tl.constexpr, K: tl.constexpr, SECOND: tl.constexpr,
    V: tl.constexpr, OWN: tl.constexpr, CHANCES: tl.constexpr,
    REVERSE: tl.constexpr, ACC: tl.constexpr, BB: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One step: h [B, P] to y and h_new, or to ``hidden`` where a projection follows; c in place.

    ``saved`` and ``cells`` are None where nothing is kept for backward. With full peepholes W is
    P + H, and c goes to c_new, as h does.
    """
    o_b, o_h = offsets(BB, BH)
    m_b = o_b < B
    m = m_b[:, None] & (o_h < H)[None, :]
    t = tl.cast(t, tl.int64)
    o_t = t * B + o_b
    b_len = row_lengths(lengths, o_b, m_b, T)
    m_t = (t < b_len)[:, None]
    if hidden is None:
        s = load_vectors(h, o_b, o_h, m, H, 0, 1, 1, ACC)
    else:
        s = zeros(BB, BH, 1, ACC)  # no cell sees an h that is not H wide
    s = s + load_planes(c, o_b, o_h, m, B, H, S - 1, ACC)
    x = load_vectors(gx, o_t, o_h, m, H, 0, G, G, ACC)
    v = h
    if SECOND > 0:
        v = stash + tl.cast(B, tl.int64) * (OPERAND * H)
    u = products(
        v, weight_hh, o_b, o_h, m_b, H, P, P if W is None else W, seed,
        G - SECOND if SECOND > 0 else 0, G, CHANCES, ACC, BB, BH, BK, PRECISION, UPCAST,
    )  # fmt: skip
    if W is not None:
        u_c = products(
            c, weight_hh + P, o_b, o_h, m_b, H, H, W, None, 0, G,
            None, ACC, BB, BH, BK, PRECISION, UPCAST,
        )  # fmt: skip
        u = add(u, u_c, G)
    own, keep_h = own_values(
        unit_weights(weight_unit, o_h, H, V, ACC), None, seed, t, o_b, o_h, CHANCES, ACC
    )
    kept = None
    if SECOND > 0:
        u = add(u, load_rows(bias_hh, o_h, H, G - SECOND, G, ACC), SECOND)
        u = zeros(BB, BH, G - SECOND, ACC) + u
        kept = load_planes(stash, o_b, o_h, m, B, H, K, ACC)
    else:
        u = add(u, load_rows(bias_hh, o_h, H, 0, G, ACC), G)
    out, kept = cell_forward(x, u, s, kept, own, keep_h, forward, OWN)
    leave(
        out, kept, s, m_t, b_len, t, o_t, o_b, o_h, m, reset, h_new,
        c if c_new is None else c_new, y, saved, cells, hidden, B, H, Y, S, K, REVERSE, ACC,
    )  # fmt: skip


@triton.jit(do_not_specialize=["t", "t_hidden", "T", "B"])
def project_step(
    hidden, weight_hr, h, h_new, lengths, reset, y, t, t_hidden, T, B, H, P, Y,
    REVERSE: tl.constexpr, ACC: tl.constexpr, BB: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """h_new = y = W_hr hidden[t_hidden], where a row still takes part."""
    o_b, o_p = offsets(BB, BH)
    m_b = o_b < B
    m = m_b[:, None] & (o_p < P)[None, :]
    t = tl.cast(t, tl.int64)
    b_len = row_lengths(lengths, o_b, m_b, T)
    m_t = (t < b_len)[:, None]
    o_hidden = tl.cast(t_hidden, tl.int64) * B + o_b
    out = products(
        hidden, weight_hr, o_hidden, o_p, m_b, P, H, H, None, 0, 1,
        None, ACC, BB, BH, BK, PRECISION, UPCAST,
    )  # fmt: skip
    o, o_y = o_b[:, None] * P + o_p[None, :], (t * B + o_b)[:, None] * Y + o_p[None, :]
    tl.store(y + o_y, tl.where(m_t, out[0], 0.0), mask=m)
    s = (tl.where(m_t, out[0], load(h, o, m, ACC)),)
    if reset is not None:
        m_cut = is_reset(reset, b_len, t - 1 if REVERSE else t + 1, o_b, B, REVERSE)
        s = select(m_cut, reset_states(reset, o_b, o_p, m & m_cut, B, P, 1, False, ACC), s, 1)
    tl.store(h_new + o, s[0], mask=m)


@triton.jit(do_not_specialize=["t", "t_after", "T", "B"])
def backward_step(
    dy, carry_h, carry_c, dreset, y, h0, c0, reset, weight_hh, weight_hr, weight_unit, seed, dh,
    lengths, saved, cells, grads, t, t_after, T, B, H, P, Y, W,
    backward: tl.constexpr, VECTOR: tl.constexpr,
    G: tl.constexpr, S: tl.constexpr, K: tl.constexpr, D: tl.constexpr, SECOND: tl.constexpr,
    V: tl.constexpr, OWN: tl.constexpr, CHANCES: tl.constexpr,
    REVERSE: tl.constexpr, ACC: tl.constexpr, BB: tl.constexpr, BH: tl.constexpr,
    BK: tl.constexpr, DH_CLIP: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One step back: ``grads`` of step t, from those of step t_after (none: t_after < 0).

    ``carry_h`` [B, H] and ``carry_c`` [S-1, B, H] carry what does not pass through W_hh, in place.
    With a projection the gradient of h is ready in ``dh`` [T, B, P] instead (see ``backward_h``).
    ``dreset``: (dreset_h, dreset_c), of the carries' sizes, or Nones where they are not wanted.
    With full peepholes W is P + H, and c's carry lacks what passes through W_hh, as h's does.
    """
    o_b, o_h = offsets(BB, BH)
    m_b = o_b < B
    m = m_b[:, None] & (o_h < H)[None, :]
    t = tl.cast(t, tl.int64)
    o_t = t * B + o_b
    b_len = row_lengths(lengths, o_b, m_b, T)
    m_t = (t < b_len)[:, None]
    b_dh = tl.zeros([BB, BH], ACC)
    o = o_b[:, None] * H + o_h[None, :]
    if dh is None:
        b_dh = through_gates(
            load(carry_h, o, m, ACC), grads, weight_hh, meeting(seed, o_b, o_h, CHANCES, ACC),
            t_after, o_b, o_h, m_b, B, H, H, H if W is None else W,
            G - SECOND, VECTOR, D, ACC, BK, PRECISION, UPCAST,
        )  # fmt: skip
        if reset is not None:
            m_after = is_reset(reset, b_len, tl.cast(t_after, tl.int64), o_b, B, REVERSE)
            b_dh = give_reset(m_after, b_dh, dreset[0], o, m)
        if dy is not None:
            b_dh += load(dy, o_t[:, None] * Y + o_h[None, :], m & m_t, ACC)
        b_dh = tl.where(m_t, bounded(b_dh, DH_CLIP), b_dh)
    else:
        b_dh = transposed_product(
            dh, weight_hr, b_dh, o_t, o_h, m_b, P, H, H, 0, 1, (0,), 1, ACC, BK, PRECISION, UPCAST
        )
    projected: tl.constexpr = dh is not None
    kept = load_vectors(saved, o_t, o_h, m, H, 0, K, K, ACC)
    m_cut = None
    if reset is not None:
        m_cut = is_reset(reset, b_len, t, o_b, B, REVERSE)
    s = states_before(
        y, h0, cells, c0, reset, m_cut, b_len, t, o_b, o_h, m, B, H, Y, S, REVERSE, projected, ACC
    )
    out = states_after(y, cells, t, o_b, o_h, m, B, H, Y, S, projected, ACC)
    dout = (b_dh,) + load_planes(carry_c, o_b, o_h, m, B, H, S - 1, ACC)
    if W is not None:
        b_dc = through_gates(
            dout[1], grads, weight_hh + P, None, t_after, o_b, o_h, m_b, B, H, H, W,
            G, VECTOR, D, ACC, BK, PRECISION, UPCAST,
        )  # fmt: skip
        if reset is not None:
            m_after = is_reset(reset, b_len, tl.cast(t_after, tl.int64), o_b, B, REVERSE)
            b_dc = give_reset(m_after, b_dc, dreset[1], o, m)
        dout = (b_dh, b_dc)
    own, keep_h = own_values(
        unit_weights(weight_unit, o_h, H, V, ACC), None, seed, t, o_b, o_h, CHANCES, ACC
    )
    d, ds = cell_backward(kept, s, out, dout, own, keep_h, backward, OWN)
    store_vectors(grads, select(m_t, d, zeros(BB, BH, D, ACC), D), o_t, o_h, m, H, D)
    ds = select(m_t, ds, dout, S)
    if dh is None:
        store_vectors(carry_h, ds, o_b, o_h, m, H, 1)
    if SECOND > 0 or W is not None:  # backward_operand_step completes them, or the next step
        store_planes(carry_c, ds[1:], o_b, o_h, m, B, H, S - 1)
    else:
        store_inner(carry_c, ds, dreset, m_cut, o_b, o_h, m, B, H, S)


@triton.jit(do_not_specialize=["t", "T", "B"])
def backward_operand_step(
    carry_h, carry_c, dreset, y, h0, c0, reset, weight_hh, lengths, saved, cells, grads,
    t, T, B, H, Y,
    backward_operand: tl.constexpr, VECTOR: tl.constexpr,
    G: tl.constexpr, S: tl.constexpr, K: tl.constexpr, D: tl.constexpr, SECOND: tl.constexpr,
    REVERSE: tl.constexpr, ACC: tl.constexpr, BB: tl.constexpr, BH: tl.constexpr,
    BK: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """What hangs on the second product's operand: completes ``grads`` of step t and the carries."""
    o_b, o_h = offsets(BB, BH)
    m_b = o_b < B
    m = m_b[:, None] & (o_h < H)[None, :]
    t = tl.cast(t, tl.int64)
    o_t = t * B + o_b
    b_len = row_lengths(lengths, o_b, m_b, T)
    m = m & (t < b_len)[:, None]  # rows that take no part stay as backward_step left them
    b_dp = transposed_product(
        grads, weight_hh, tl.zeros([BB, BH], ACC), o_t, o_h, m_b, H, H, H,
        G - SECOND, G, VECTOR, D, ACC, BK, PRECISION, UPCAST,
    )  # fmt: skip
    kept = load_vectors(saved, o_t, o_h, m, H, 0, K, K, ACC)
    m_cut = None
    if reset is not None:
        m_cut = is_reset(reset, b_len, t, o_b, B, REVERSE)
    s = states_before(
        y, h0, cells, c0, reset, m_cut, b_len, t, o_b, o_h, m, B, H, Y, S, REVERSE, False, ACC
    )
    d = load_vectors(grads, o_t, o_h, m, H, 0, D, D, ACC)
    ds = load_vectors(carry_h, o_b, o_h, m, H, 0, 1, 1, ACC)
    ds = ds + load_planes(carry_c, o_b, o_h, m, B, H, S - 1, ACC)
    d, ds = backward_operand(kept, s, b_dp, d, ds)
    for g in tl.static_range(G - SECOND):  # the others are being read by other programs
        tl.store(grads + (o_t * D + g)[:, None] * H + o_h[None, :], d[g], mask=m)
    store_vectors(carry_h, ds, o_b, o_h, m, H, 1)
    store_inner(carry_c, ds, dreset, m_cut, o_b, o_h, m, B, H, S)


@triton.jit(do_not_specialize=["t", "t_after", "T", "B"])
def backward_h(
    dy, carry_h, dreset, reset, weight_hh, seed, dh, dh_row, lengths, grads,
    t, t_after, T, B, H, P, Y, W,
    VECTOR: tl.constexpr, G: tl.constexpr, D: tl.constexpr, SECOND: tl.constexpr,
    CHANCES: tl.constexpr, REVERSE: tl.constexpr, ACC: tl.constexpr, BB: tl.constexpr,
    BH: tl.constexpr, BK: tl.constexpr, DH_CLIP: tl.constexpr, PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """carry_h += W_hh^T grads of step t_after: at the end of a sequence the gradient of h0.

    With a projection or normalisation also before each step: dy joins and all goes to ``dh``
    [T, B, P], or to ``dh_row`` [B, P], but for rows that take no part in step t, whose gradient
    passes by in ``carry_h`` [B, P]. W: see backward_step.
    """
    o_b, o_p = offsets(BB, BH)
    m_b = o_b < B
    m = m_b[:, None] & (o_p < P)[None, :]
    o = o_b[:, None] * P + o_p[None, :]
    b_len = row_lengths(lengths, o_b, m_b, T)
    b_dh = through_gates(
        load(carry_h, o, m, ACC), grads, weight_hh, meeting(seed, o_b, o_p, CHANCES, ACC),
        t_after, o_b, o_p, m_b, B, H, P, P if W is None else W,
        G - SECOND, VECTOR, D, ACC, BK, PRECISION, UPCAST,
    )  # fmt: skip
    if reset is not None:
        m_cut = is_reset(reset, b_len, tl.cast(t_after, tl.int64), o_b, B, REVERSE)
        b_dh = give_reset(m_cut, b_dh, dreset[0], o, m)
    if dh is not None or dh_row is not None:
        t = tl.cast(t, tl.int64)
        m_t = (t < b_len)[:, None]
        if dy is not None:
            b_dh += load(dy, (t * B + o_b)[:, None] * Y + o_p[None, :], m & m_t, ACC)
        b_out = tl.where(m_t, bounded(b_dh, DH_CLIP), 0.0)
        if dh is not None:
            tl.store(dh + t * B * P + o, b_out, mask=m)
        else:
            tl.store(dh_row + o, b_out, mask=m)
        b_dh = tl.where(m_t, 0.0, b_dh)
    tl.store(carry_h + o, b_dh, mask=m)
