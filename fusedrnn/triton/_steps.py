"""What the kernels of single steps share: where a program's tile lies, and how steps hand over."""

import triton
import triton.language as tl

from ._tiles import (
    is_reset,
    load,
    reset_states,
    select,
    store_planes,
    store_vectors,
    transposed_product,
)


@triton.jit
def offsets(BB: tl.constexpr, BH: tl.constexpr):
    """Rows and columns of this program's tile."""
    o_b = tl.program_id(0).to(tl.int64) * BB + tl.arange(0, BB)
    return o_b, tl.program_id(1) * BH + tl.arange(0, BH)


@triton.jit
def leave(
    out, kept, s, m_t, b_len, t, o_t, o_b, o_h, m, reset, h_new, c, y, saved, cells, hidden,
    B, H, Y, S: tl.constexpr, K: tl.constexpr, REVERSE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Store what a step made: to y, for backward, and what the next step begins with.

    ``s`` are the states before the step, ``out`` those after it, ``c`` where the inner ones go;
    ``m_t`` says which rows take part.
    """
    projected: tl.constexpr = hidden is not None
    b_h = tl.where(m_t, out[0], 0.0)
    s = select(m_t, out, s, S)
    if saved is not None:
        store_vectors(saved, kept, o_t, o_h, m, H, K)
        store_planes(cells, s[1:], t * (S - 1) * B + o_b, o_h, m, B, H, S - 1)
    if reset is not None:
        m_cut = is_reset(reset, b_len, t - 1 if REVERSE else t + 1, o_b, B, REVERSE)
        anew = reset_states(reset, o_b, o_h, m & m_cut, B, H, S, projected, ACC)
        s = select(m_cut, anew, s, S)
    if hidden is None:
        tl.store(y + o_t[:, None] * Y + o_h[None, :], b_h, mask=m)
        store_vectors(h_new, s, o_b, o_h, m, H, 1)
    else:
        o_hidden = o_b if saved is None else o_t  # kept for all steps, or for this one
        tl.store(hidden + o_hidden[:, None] * H + o_h[None, :], b_h, mask=m)
    store_planes(c, s[1:], o_b, o_h, m, B, H, S - 1)


@triton.jit
def through_gates(
    b_acc, grads, weight_hh, met, t_after, o_b, o_p, m_b, B, H, P, W,
    LAST: tl.constexpr, VECTOR: tl.constexpr, D: tl.constexpr, ACC: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """b_acc + W_hh^T grads of step t_after (none: t_after < 0), of gates 0..LAST-1.

    ``met``: by what h was multiplied where it met W_hh, or None.
    """
    if t_after >= 0:
        o_after = tl.cast(t_after, tl.int64) * B + o_b
        b_sum = b_acc
        if met is not None:
            b_sum = tl.zeros_like(b_acc)
        b_sum = transposed_product(
            grads, weight_hh, b_sum, o_after, o_p, m_b, H, P, W,
            0, LAST, VECTOR, D, ACC, BK, PRECISION, UPCAST,
        )  # fmt: skip
        if met is not None:
            b_sum = b_acc + b_sum * met
        b_acc = b_sum
    return b_acc


@triton.jit
def give_reset(m_cut, b_d, p_sum, o, m):
    """Where m_cut, the gradient goes to the reset state's sum (None: to nobody); else it stays."""
    if p_sum is not None:
        m = m & m_cut
        tl.store(p_sum + o, load(p_sum, o, m, b_d.dtype) + b_d, mask=m)
    return tl.where(m_cut, 0.0, b_d)


@triton.jit
def store_inner(
    carry_c, ds, dreset, m_cut, o_b, o_h, m, B, H, S: tl.constexpr
):  # fmt: skip
    """What a step leaves of the inner states' gradients."""
    for n in tl.static_range(S - 1):
        o = (o_b + tl.cast(B, tl.int64) * n)[:, None] * H + o_h[None, :]
        b_d = ds[n + 1]
        if m_cut is not None:
            b_d = give_reset(m_cut, b_d, dreset[1], o, m)
        tl.store(carry_c + o, b_d, mask=m)
