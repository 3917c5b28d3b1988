"""What the sequence kernels are made of: loads, stores and products of [rows, units] tiles.

Names as in flash-linear-attention: ``o_`` offsets, ``m_`` masks, ``b_`` tiles. Tuples hold one tile
for each gate, state, saved value or gradient vector. Offsets of rows are int64, since T * B * K * H
may pass 2^31. ``reset`` is None or (mask [T, B], h [B, P], c [S-1, B, H]), h and c None for zeros.
Y is the distance of the rows of y, in which both directions lie.
"""

import triton
import triton.language as tl

from ._random import meeting


@triton.jit
def load(p, o, m, ACC: tl.constexpr):
    """A tile in the accumulators' type; zero where masked."""
    return tl.load(p + o, mask=m, other=0.0).to(ACC)


@triton.jit
def load_vectors(
    p, o_r, o_h, m, H, FIRST: tl.constexpr, LAST: tl.constexpr, N: tl.constexpr, ACC: tl.constexpr
):
    """Vectors FIRST..LAST-1 of a [rows, N, H] tensor."""
    tiles = ()
    for n in tl.static_range(FIRST, LAST):
        tiles = tiles + (load(p, (o_r * N + n)[:, None] * H + o_h[None, :], m, ACC),)
    return tiles


@triton.jit
def store_vectors(p, tiles, o_r, o_h, m, H, N: tl.constexpr):
    """All N vectors of a [rows, N, H] tensor."""
    for n in tl.static_range(N):
        tl.store(p + (o_r * N + n)[:, None] * H + o_h[None, :], tiles[n], mask=m)


@triton.jit
def load_planes(p, o_r, o_h, m, B, H, N: tl.constexpr, ACC: tl.constexpr):
    """All N planes of an [N, B, H] tensor."""
    tiles = ()
    for n in tl.static_range(N):
        o_n = o_r + tl.cast(B, tl.int64) * n
        tiles = tiles + (load(p, o_n[:, None] * H + o_h[None, :], m, ACC),)
    return tiles


@triton.jit
def store_planes(p, tiles, o_r, o_h, m, B, H, N: tl.constexpr):
    """All N planes of an [N, B, H] tensor."""
    for n in tl.static_range(N):
        o_n = o_r + tl.cast(B, tl.int64) * n
        tl.store(p + o_n[:, None] * H + o_h[None, :], tiles[n], mask=m)


@triton.jit
def select(m, new, old, N: tl.constexpr):
    """For each of N tiles, new where m, else old."""
    tiles = ()
    for n in tl.static_range(N):
        tiles = tiles + (tl.where(m, new[n], old[n]),)
    return tiles


@triton.jit
def add(a, b, N: tl.constexpr):
    """Tile by tile."""
    tiles = ()
    for n in tl.static_range(N):
        tiles = tiles + (a[n] + b[n],)
    return tiles


@triton.jit
def zeros(BB: tl.constexpr, BH: tl.constexpr, N: tl.constexpr, ACC: tl.constexpr):
    """N tiles of zeros."""
    tiles = ()
    for _ in tl.static_range(N):
        tiles = tiles + (tl.zeros([BB, BH], ACC),)
    return tiles


@triton.jit
def dot(b_a, b_w, b_acc, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """b_acc + b_a b_w: b_a is rounded to the weights' type, sums are in the accumulators' type."""
    b_a = b_a.to(b_w.dtype)
    if UPCAST:  # Triton's interpreter multiplies bfloat16 as if it were an integer
        b_a, b_w = b_a.to(b_acc.dtype), b_w.to(b_acc.dtype)
    return tl.dot(b_a, b_w, b_acc, input_precision=PRECISION, out_dtype=b_acc.dtype)


@triton.jit
def row_lengths(lengths, o_b, m_b, T):
    """How many steps each row takes part in."""
    if lengths is None:
        return tl.zeros_like(o_b) + T
    else:
        # Lengths on a GPU are not checked, for that would mean to wait: none may lead past the end.
        return tl.minimum(tl.load(lengths + o_b, mask=m_b, other=0), T)


@triton.jit
def is_reset(reset, b_len, t, o_b, B, REVERSE: tl.constexpr):
    """Whether each row begins step t with the reset state: [BB, 1]. No step is outside 0..T-1."""
    o_t = t + 1 if REVERSE else t  # the mask's row, between two steps
    m = (o_b < B) & (o_b * 0 + t >= 0) & (o_b * 0 + o_t < b_len)
    return tl.load(reset[0] + o_t * B + o_b, mask=m, other=0).to(tl.int1)[:, None]


@triton.jit
def reset_states(
    reset, o_b, o_h, m, B, H, S: tl.constexpr, PROJECTED: tl.constexpr, ACC: tl.constexpr
):
    """What rows begin anew with; zeros stand for an h that is not H wide."""
    if reset[1] is None:
        return zeros(o_b.shape[0], o_h.shape[0], S, ACC)
    elif PROJECTED:
        h = zeros(o_b.shape[0], o_h.shape[0], 1, ACC)
        return h + load_planes(reset[2], o_b, o_h, m, B, H, S - 1, ACC)
    else:
        h = load_planes(reset[1], o_b, o_h, m, B, H, 1, ACC)
        return h + load_planes(reset[2], o_b, o_h, m, B, H, S - 1, ACC)


@triton.jit
def states_before(
    y, h0, cells, c0, reset, m_cut, b_len, t, o_b, o_h, m, B, H, Y, S: tl.constexpr,
    REVERSE: tl.constexpr, PROJECTED: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The states that step t began with: of the step before it, of a row's beginning, or reset.

    ``m_cut``: ``is_reset`` of the step. With a projection no cell sees h itself, which is not H
    wide: zeros stand for it.
    """
    t_before = t + 1 if REVERSE else t - 1
    m_begin = (o_b * 0 + t_before == (b_len if REVERSE else -1))[:, None]
    m_begun = m & (o_b * 0 + t < b_len)[:, None] & (m_begin == 0)
    if PROJECTED:
        h = zeros(o_b.shape[0], o_h.shape[0], 1, ACC)
    else:
        o_y = (t_before * B + o_b)[:, None] * Y + o_h[None, :]
        h = (load(y, o_y, m_begun, ACC),)
        h = select(m_begin, load_vectors(h0, o_b, o_h, m, H, 0, 1, 1, ACC), h, 1)
    c = load_planes(cells, t_before * (S - 1) * B + o_b, o_h, m_begun, B, H, S - 1, ACC)
    s = h + select(m_begin, load_planes(c0, o_b, o_h, m, B, H, S - 1, ACC), c, S - 1)
    if reset is not None:
        anew = reset_states(reset, o_b, o_h, m & m_cut, B, H, S, PROJECTED, ACC)
        s = select(m_cut, anew, s, S)
    return s


@triton.jit
def states_after(
    y, cells, t, o_b, o_h, m, B, H, Y, S: tl.constexpr, PROJECTED: tl.constexpr, ACC: tl.constexpr
):
    """The states that step t left."""
    if PROJECTED:
        h = zeros(o_b.shape[0], o_h.shape[0], 1, ACC)
    else:
        h = (load(y, (t * B + o_b)[:, None] * Y + o_h[None, :], m, ACC),)
    return h + load_planes(cells, t * (S - 1) * B + o_b, o_h, m, B, H, S - 1, ACC)


@triton.jit
def load_rows(p, o_h, H, FIRST: tl.constexpr, LAST: tl.constexpr, ACC: tl.constexpr):
    """Rows FIRST..LAST-1 of an [N, H] parameter, each a [1, BH] tile; zeros where there is none."""
    tiles = ()
    for g in tl.static_range(FIRST, LAST):
        if p is None:
            tiles = tiles + (tl.zeros([1, o_h.shape[0]], ACC),)
        else:
            tiles = tiles + (load(p, (g * H + o_h)[None, :], (o_h < H)[None, :], ACC),)
    return tiles


@triton.jit
def unit_weights(p, o_h, H, V: tl.constexpr, ACC: tl.constexpr):
    """What a unit weighs of its own states, as twins take it; None where it has no such weights."""
    if V == 0:
        return None
    else:
        return load_rows(p, o_h, H, 0, V, ACC)


@triton.jit
def products(
    p_v, p_w, o_r, o_h, m_r, H, P, W, seed, FIRST: tl.constexpr, LAST: tl.constexpr,
    CHANCES: tl.constexpr, ACC: tl.constexpr, BB: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """W_g v for gates FIRST..LAST-1: v is [rows, P], W_hh P columns, both read in tiles of BK.

    W: the distance of the rows of W_hh. With a seed v is h, of which not all may meet W_hh.
    """
    acc = zeros(BB, BH, LAST - FIRST, ACC)
    for k in range(0, P, BK):
        o_k = k + tl.arange(0, BK)
        m_k = o_k < P
        b_v = load(p_v, o_r[:, None] * P + o_k[None, :], m_r[:, None] & m_k[None, :], ACC)
        b_met = meeting(seed, o_r, o_k, CHANCES, ACC)
        if b_met is not None:
            b_v = b_v * b_met
        m_w = m_k[:, None] & (o_h < H)[None, :]
        o_w = o_h[None, :] * W + o_k[:, None]  # int32: H * W < 2^31
        new = ()
        for g in tl.static_range(FIRST, LAST):
            p_g = p_w + tl.cast(g * H, tl.int64) * W
            b_w = tl.load(p_g + o_w, mask=m_w, other=0.0)  # [BK, BH]
            new = new + (dot(b_v, b_w, acc[g - FIRST], PRECISION, UPCAST),)
        acc = new
    return acc


@triton.jit
def transposed_product(
    p_d, p_w, b_acc, o_r, o_p, m_r, H, P, W, FIRST: tl.constexpr, LAST: tl.constexpr,
    VECTOR: tl.constexpr, D: tl.constexpr, ACC: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """b_acc + sum over gates of W_g^T d[VECTOR[g]]: d is [rows, D, H], of W_hh P columns.

    W: the distance of the rows of W_hh.
    """
    for k in range(0, H, BK):
        o_k = k + tl.arange(0, BK)
        m_k = o_k < H
        m_d = m_r[:, None] & m_k[None, :]
        m_w = m_k[:, None] & (o_p < P)[None, :]
        o_w = o_k[:, None] * W + o_p[None, :]  # int32: H * W < 2^31
        for g in tl.static_range(FIRST, LAST):
            b_d = load(p_d, (o_r * D + VECTOR[g])[:, None] * H + o_k[None, :], m_d, ACC)
            p_g = p_w + tl.cast(g * H, tl.int64) * W
            b_w = tl.load(p_g + o_w, mask=m_w, other=0.0)  # [BK, BP]
            b_acc = dot(b_d, b_w, b_acc, PRECISION, UPCAST)
    return b_acc
