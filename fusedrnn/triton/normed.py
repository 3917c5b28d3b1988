"""Single steps with layer normalisation: the product, and then whole rows (csrc/cell_options.h).

A row's mean is that of all its units in all gates, which no program of a product has: products go
to a workspace, and in a second launch a program owns BB rows and all units, padded to BH. What is
normalised is saved, and mean and variance are taken again in backward. All else is as in step.py.
"""

import triton
import triton.language as tl

from ._around import cell_backward, cell_forward
from ._norm import normal, through_normal
from ._random import own_values
from ._steps import leave, offsets, store_inner
from ._tiles import (
    is_reset,
    load,
    load_planes,
    load_rows,
    load_vectors,
    products,
    row_lengths,
    select,
    states_after,
    states_before,
    store_vectors,
    transposed_product,
    unit_weights,
    zeros,
)


@triton.jit
def _of_c(
    p, o_h, m, H, FIRST: tl.constexpr, NORMS: tl.constexpr, G: tl.constexpr, ACC: tl.constexpr
):
    """What twins need for c on its way to h; None where it is not normalised."""
    if NORMS > G:
        return load_rows(p, o_h, H, FIRST, FIRST + 2, ACC) + (m, H)
    else:
        return None


@triton.jit(do_not_specialize=["B"])
def recur_step(
    h, weight_hh, seed, v, B, H, P,
    G: tl.constexpr, CHANCES: tl.constexpr, ACC: tl.constexpr, BB: tl.constexpr, BH: tl.constexpr,
    BK: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """v [B, G, H] = W_hh h, for h [B, P]."""
    o_b, o_h = offsets(BB, BH)
    m_b = o_b < B
    u = products(
        h, weight_hh, o_b, o_h, m_b, H, P, P, seed, 0, G,
        CHANCES, ACC, BB, BH, BK, PRECISION, UPCAST,
    )  # fmt: skip
    store_vectors(v, u, o_b, o_h, m_b[:, None] & (o_h < H)[None, :], H, G)


@triton.jit(do_not_specialize=["t", "T", "B"])
def normed_forward_step(
    gx, v, bias_hh, weight_unit, seed, h, h_new, c, lengths, reset, y, saved, cells, hidden,
    t, T, B, H, Y,
    forward: tl.constexpr, G: tl.constexpr, S: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    NORMS: tl.constexpr, OWN: tl.constexpr, CHANCES: tl.constexpr, REVERSE: tl.constexpr,
    ACC: tl.constexpr, BB: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """The rest of a step, from the product v: as forward_step."""
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
        s = zeros(BB, BH, 1, ACC)
    s = s + load_planes(c, o_b, o_h, m, B, H, S - 1, ACC)
    x = load_vectors(gx, o_t, o_h, m, H, 0, G, G, ACC)
    raw = load_vectors(v, o_b, o_h, m, H, 0, G, G, ACC)
    n, _ = normal(raw, m, H, G)
    gain = load_rows(weight_unit, o_h, H, V, V + G, ACC)
    bias = load_rows(bias_hh, o_h, H, 0, G, ACC)
    u = ()
    for g in tl.static_range(G):
        u = u + (n[g] * gain[g] + bias[g],)
    weight = unit_weights(weight_unit, o_h, H, V, ACC)
    of_c = _of_c(weight_unit, o_h, m, H, V + G, NORMS, G, ACC)
    own, keep_h = own_values(weight, of_c, seed, t, o_b, o_h, CHANCES, ACC)
    out, kept = cell_forward(x, u, s, None, own, keep_h, forward, OWN)
    leave(
        out, kept + raw, s, m_t, b_len, t, o_t, o_b, o_h, m, reset, h_new, c, y, saved, cells,
        hidden, B, H, Y, S, K + G, REVERSE, ACC,
    )  # fmt: skip


@triton.jit(do_not_specialize=["t", "B"])
def unproject_step(
    dh, weight_hr, dh_row, t, B, H, P,
    ACC: tl.constexpr, BB: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """dh_row [B, H] = W_hr^T dh[t], for dh [T, B, P]."""
    o_b, o_h = offsets(BB, BH)
    m_b = o_b < B
    b_dh = transposed_product(
        dh, weight_hr, tl.zeros([BB, BH], ACC), tl.cast(t, tl.int64) * B + o_b, o_h, m_b, P, H, H,
        0, 1, (0,), 1, ACC, BK, PRECISION, UPCAST,
    )  # fmt: skip
    store_vectors(dh_row, (b_dh,), o_b, o_h, m_b[:, None] & (o_h < H)[None, :], H, 1)


@triton.jit(do_not_specialize=["t", "T", "B"])
def normed_backward_step(
    dh_row, carry_h, carry_c, dreset, y, h0, c0, reset, weight_unit, seed, lengths, saved, cells,
    grads, t, T, B, H, Y,
    backward: tl.constexpr, H_GRAD: tl.constexpr, VECTOR: tl.constexpr,
    G: tl.constexpr, S: tl.constexpr, K: tl.constexpr, D: tl.constexpr, V: tl.constexpr,
    NORMS: tl.constexpr, OWN: tl.constexpr, CHANCES: tl.constexpr, REVERSE: tl.constexpr,
    ACC: tl.constexpr, BB: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """One step back from dh_row [B, H], the gradient of the cell's h: ``grads`` and the carries.

    ``carry_h`` is None where there is a projection. Vectors VECTOR[0].. of grads are those of
    W_hh h; the cell's own stand before them, and that of the normalised c after them.
    """
    o_b, o_h = offsets(BB, BH)
    m_b = o_b < B
    m = m_b[:, None] & (o_h < H)[None, :]
    t = tl.cast(t, tl.int64)
    o_t = t * B + o_b
    b_len = row_lengths(lengths, o_b, m_b, T)
    m_t = (t < b_len)[:, None]
    o = o_b[:, None] * H + o_h[None, :]
    projected: tl.constexpr = carry_h is None
    kept = load_vectors(saved, o_t, o_h, m, H, 0, K, K + G, ACC)
    raw = load_vectors(saved, o_t, o_h, m, H, K, K + G, K + G, ACC)
    m_cut = None
    if reset is not None:
        m_cut = is_reset(reset, b_len, t, o_b, B, REVERSE)
    s = states_before(
        y, h0, cells, c0, reset, m_cut, b_len, t, o_b, o_h, m, B, H, Y, S, REVERSE, projected, ACC
    )
    out = states_after(y, cells, t, o_b, o_h, m, B, H, Y, S, projected, ACC)
    dout = (load(dh_row, o, m, ACC),) + load_planes(carry_c, o_b, o_h, m, B, H, S - 1, ACC)
    weight = unit_weights(weight_unit, o_h, H, V, ACC)
    of_c = _of_c(weight_unit, o_h, m, H, V + G, NORMS, G, ACC)
    own, keep_h = own_values(weight, of_c, seed, t, o_b, o_h, CHANCES, ACC)
    d, ds = cell_backward(kept, s, out, dout, own, keep_h, backward, OWN)
    n, inverse = normal(raw, m, H, G)
    gain = load_rows(weight_unit, o_h, H, V, V + G, ACC)
    dn = ()
    for g in tl.static_range(G):
        dn = dn + (d[H_GRAD[g]] * gain[g],)
    d = d[: VECTOR[0]] + through_normal(dn, n, inverse, m, H, G) + d[VECTOR[0] :]
    store_vectors(grads, select(m_t, d, zeros(BB, BH, D, ACC), D), o_t, o_h, m, H, D)
    if carry_h is not None:  # rows that take no part stay as backward_h left them
        tl.store(carry_h + o, tl.zeros([BB, BH], ACC) + ds[0], mask=m & m_t)
    store_inner(carry_c, select(m_t, ds, dout, S), dreset, m_cut, o_b, o_h, m, B, H, S)
