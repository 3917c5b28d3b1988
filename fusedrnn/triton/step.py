"""One launch a step, for any number of units and for projections (two launches, or three).

A program owns BB rows and BH units; the product with W_hh runs in tiles of BK, and the cell's maths
follow in the same launch. What one step hands to the next lies in small buffers of the state's
dtype: h in two that take turns, since programs read all of h while others already write it; all
else in place. Layouts: csrc/sequence.h. P is the width of h.
"""

import triton
import triton.language as tl

from ._tiles import (
    load,
    load_bias,
    load_planes,
    load_vectors,
    products,
    row_lengths,
    select,
    states_after,
    states_before,
    store_planes,
    store_vectors,
    transposed_product,
    zeros,
)


@triton.jit
def _offsets(BB: tl.constexpr, BH: tl.constexpr):
    """Rows and columns of this program's tile."""
    o_b = tl.program_id(0).to(tl.int64) * BB + tl.arange(0, BB)
    return o_b, tl.program_id(1) * BH + tl.arange(0, BH)


@triton.jit
def _add(a, b, N: tl.constexpr):
    """Tile by tile."""
    tiles = ()
    for n in tl.static_range(N):
        tiles = tiles + (a[n] + b[n],)
    return tiles


@triton.jit(do_not_specialize=["t", "B"])
def operand_step(
    gx, weight_hh, bias_hh, h, stash, t, B, H,
    operand: tl.constexpr, G: tl.constexpr, K: tl.constexpr, SECOND: tl.constexpr,
    ACC: tl.constexpr, BB: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Everything before the second product. ``stash`` [K, B, H] takes what is saved so far."""
    o_b, o_h = _offsets(BB, BH)
    m_b = o_b < B
    m = m_b[:, None] & (o_h < H)[None, :]
    x = load_vectors(gx, tl.cast(t, tl.int64) * B + o_b, o_h, m, H, 0, G, G, ACC)
    u = products(
        h, weight_hh, o_b, o_h, m_b, H, H, 0, G - SECOND, ACC, BB, BH, BK, PRECISION, UPCAST
    )
    u = _add(u, load_bias(bias_hh, o_h, H, 0, G - SECOND, ACC), G - SECOND)
    kept = operand(x, u, load_vectors(h, o_b, o_h, m, H, 0, 1, 1, ACC))
    store_planes(stash, kept, o_b, o_h, m, B, H, K)


@triton.jit(do_not_specialize=["t", "T", "B"])
def forward_step(
    gx, weight_hh, bias_hh, h, h_new, c, stash, lengths, y, saved, cells, hidden, t, T, B, H, P,
    forward: tl.constexpr, OPERAND: tl.constexpr,
    G: tl.constexpr, S: tl.constexpr, K: tl.constexpr, SECOND: tl.constexpr,
    ACC: tl.constexpr, BB: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One step: h [B, P] to y and h_new, or to ``hidden`` where a projection follows; c in place.

    ``saved`` and ``cells`` are None where nothing is kept for backward.
    """
    o_b, o_h = _offsets(BB, BH)
    m_b = o_b < B
    m = m_b[:, None] & (o_h < H)[None, :]
    t = tl.cast(t, tl.int64)
    o_t = t * B + o_b
    m_t = (t < row_lengths(lengths, o_b, m_b, T))[:, None]
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
        v, weight_hh, o_b, o_h, m_b, H, P, G - SECOND if SECOND > 0 else 0, G,
        ACC, BB, BH, BK, PRECISION, UPCAST,
    )  # fmt: skip
    if SECOND > 0:
        u = _add(u, load_bias(bias_hh, o_h, H, G - SECOND, G, ACC), SECOND)
        u = zeros(BB, BH, G - SECOND, ACC) + u
        out, kept = forward(x, u, s, load_planes(stash, o_b, o_h, m, B, H, K, ACC))
    else:
        out, kept = forward(x, _add(u, load_bias(bias_hh, o_h, H, 0, G, ACC), G), s)
    b_h = tl.where(m_t, out[0], 0.0)
    s = select(m_t, out, s, S)
    if hidden is None:
        tl.store(y + o_t[:, None] * H + o_h[None, :], b_h, mask=m)
        store_vectors(h_new, s, o_b, o_h, m, H, 1)
    else:
        o_hidden = o_b if saved is None else o_t  # kept for all steps, or for this one
        tl.store(hidden + o_hidden[:, None] * H + o_h[None, :], b_h, mask=m)
    store_planes(c, s[1:], o_b, o_h, m, B, H, S - 1)
    if saved is not None:
        store_vectors(saved, kept, o_t, o_h, m, H, K)
        store_planes(cells, s[1:], t * (S - 1) * B + o_b, o_h, m, B, H, S - 1)


@triton.jit(do_not_specialize=["t", "t_hidden", "T", "B"])
def project_step(
    hidden, weight_hr, h, h_new, lengths, y, t, t_hidden, T, B, H, P,
    ACC: tl.constexpr, BB: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """h_new = y = W_hr hidden[t_hidden], where a row still takes part."""
    o_b, o_p = _offsets(BB, BH)
    m_b = o_b < B
    m = m_b[:, None] & (o_p < P)[None, :]
    t = tl.cast(t, tl.int64)
    m_t = (t < row_lengths(lengths, o_b, m_b, T))[:, None]
    o_hidden = tl.cast(t_hidden, tl.int64) * B + o_b
    out = products(
        hidden, weight_hr, o_hidden, o_p, m_b, P, H, 0, 1, ACC, BB, BH, BK, PRECISION, UPCAST
    )
    o = o_b[:, None] * P + o_p[None, :]
    tl.store(y + t * B * P + o, tl.where(m_t, out[0], 0.0), mask=m)
    tl.store(h_new + o, tl.where(m_t, out[0], load(h, o, m, ACC)), mask=m)


@triton.jit(do_not_specialize=["t", "t_after", "T", "B"])
def backward_step(
    dy, carry_h, carry_c, y, h0, c0, weight_hh, weight_hr, dh, lengths, saved, cells, grads,
    t, t_after, T, B, H, P,
    backward: tl.constexpr, VECTOR: tl.constexpr,
    G: tl.constexpr, S: tl.constexpr, K: tl.constexpr, D: tl.constexpr, SECOND: tl.constexpr,
    REVERSE: tl.constexpr, ACC: tl.constexpr, BB: tl.constexpr, BH: tl.constexpr,
    BK: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One step back: ``grads`` of step t, from those of step t_after (none: t_after < 0).

    ``carry_h`` [B, H] and ``carry_c`` [S-1, B, H] carry what does not pass through W_hh, in place.
    With a projection the gradient of h is ready in ``dh`` [T, B, P] instead (see ``backward_h``).
    """
    o_b, o_h = _offsets(BB, BH)
    m_b = o_b < B
    m = m_b[:, None] & (o_h < H)[None, :]
    t = tl.cast(t, tl.int64)
    o_t = t * B + o_b
    b_len = row_lengths(lengths, o_b, m_b, T)
    m_t = (t < b_len)[:, None]
    b_dh = tl.zeros([BB, BH], ACC)
    if dh is None:
        b_dh = load(carry_h, o_b[:, None] * H + o_h[None, :], m, ACC)
        if t_after >= 0:
            b_dh = transposed_product(
                grads, weight_hh, b_dh, tl.cast(t_after, tl.int64) * B + o_b, o_h, m_b, H, H,
                0, G - SECOND, VECTOR, D, ACC, BK, PRECISION, UPCAST,
            )  # fmt: skip
        if dy is not None:
            b_dh += load(dy, o_t[:, None] * H + o_h[None, :], m & m_t, ACC)
    else:
        b_dh = transposed_product(
            dh, weight_hr, b_dh, o_t, o_h, m_b, P, H, 0, 1, (0,), 1, ACC, BK, PRECISION, UPCAST
        )
    projected: tl.constexpr = dh is not None
    kept = load_vectors(saved, o_t, o_h, m, H, 0, K, K, ACC)
    s = states_before(y, h0, cells, c0, b_len, t, o_b, o_h, m, B, H, S, REVERSE, projected, ACC)
    out = states_after(y, cells, t, o_b, o_h, m, B, H, S, projected, ACC)
    dout = (b_dh,) + load_planes(carry_c, o_b, o_h, m, B, H, S - 1, ACC)
    d, ds = backward(kept, s, out, dout)
    store_vectors(grads, select(m_t, d, zeros(BB, BH, D, ACC), D), o_t, o_h, m, H, D)
    ds = select(m_t, ds, dout, S)
    if dh is None:
        store_vectors(carry_h, ds, o_b, o_h, m, H, 1)
    store_planes(carry_c, ds[1:], o_b, o_h, m, B, H, S - 1)


@triton.jit(do_not_specialize=["t", "T", "B"])
def backward_operand_step(
    carry_h, carry_c, y, h0, c0, weight_hh, lengths, saved, cells, grads, t, T, B, H,
    backward_operand: tl.constexpr, VECTOR: tl.constexpr,
    G: tl.constexpr, S: tl.constexpr, K: tl.constexpr, D: tl.constexpr, SECOND: tl.constexpr,
    REVERSE: tl.constexpr, ACC: tl.constexpr, BB: tl.constexpr, BH: tl.constexpr,
    BK: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """What hangs on the second product's operand: completes ``grads`` of step t and the carries."""
    o_b, o_h = _offsets(BB, BH)
    m_b = o_b < B
    m = m_b[:, None] & (o_h < H)[None, :]
    t = tl.cast(t, tl.int64)
    o_t = t * B + o_b
    b_len = row_lengths(lengths, o_b, m_b, T)
    m = m & (t < b_len)[:, None]  # rows that take no part stay as backward_step left them
    b_dp = transposed_product(
        grads, weight_hh, tl.zeros([BB, BH], ACC), o_t, o_h, m_b, H, H,
        G - SECOND, G, VECTOR, D, ACC, BK, PRECISION, UPCAST,
    )  # fmt: skip
    kept = load_vectors(saved, o_t, o_h, m, H, 0, K, K, ACC)
    s = states_before(y, h0, cells, c0, b_len, t, o_b, o_h, m, B, H, S, REVERSE, False, ACC)
    d = load_vectors(grads, o_t, o_h, m, H, 0, D, D, ACC)
    ds = load_vectors(carry_h, o_b, o_h, m, H, 0, 1, 1, ACC)
    ds = ds + load_planes(carry_c, o_b, o_h, m, B, H, S - 1, ACC)
    d, ds = backward_operand(kept, s, b_dp, d, ds)
    for g in tl.static_range(G - SECOND):  # the others are being read by other programs
        tl.store(grads + (o_t * D + g)[:, None] * H + o_h[None, :], d[g], mask=m)
    store_vectors(carry_h, ds, o_b, o_h, m, H, 1)
    store_planes(carry_c, ds[1:], o_b, o_h, m, B, H, S - 1)


@triton.jit(do_not_specialize=["t", "t_after", "T", "B"])
def backward_h(
    dy, carry_h, weight_hh, dh, lengths, grads, t, t_after, T, B, H, P,
    VECTOR: tl.constexpr, G: tl.constexpr, D: tl.constexpr, SECOND: tl.constexpr,
    ACC: tl.constexpr, BB: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """carry_h += W_hh^T grads of step t_after: at the end of a sequence the gradient of h0.

    With a projection also before each step: dy joins and all goes to ``dh`` [T, B, P], but for rows
    that take no part in step t, whose gradient passes by in ``carry_h`` [B, P].
    """
    o_b, o_p = _offsets(BB, BH)
    m_b = o_b < B
    m = m_b[:, None] & (o_p < P)[None, :]
    o = o_b[:, None] * P + o_p[None, :]
    b_dh = load(carry_h, o, m, ACC)
    if t_after >= 0:
        b_dh = transposed_product(
            grads, weight_hh, b_dh, tl.cast(t_after, tl.int64) * B + o_b, o_p, m_b, H, P,
            0, G - SECOND, VECTOR, D, ACC, BK, PRECISION, UPCAST,
        )  # fmt: skip
    if dh is not None:
        t = tl.cast(t, tl.int64)
        m_t = (t < row_lengths(lengths, o_b, m_b, T))[:, None]
        if dy is not None:
            b_dh += load(dy, t * B * P + o, m & m_t, ACC)
        tl.store(dh + t * B * P + o, tl.where(m_t, b_dh, 0.0), mask=m)
        b_dh = tl.where(m_t, 0.0, b_dh)
    tl.store(carry_h + o, b_dh, mask=m)
