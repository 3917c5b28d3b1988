"""The Triton kernels of the hierarchical softmax: the plan of csrc/cuda/softmax_plan.cu, its maths.

Sorted tokens in blocks of BT; ``saved`` [N, path_rows] has a row for each of them. A block meets
rows of the weight, each counted once in ``prefix``: running sums over its (token, level) pairs.
"""

import triton
import triton.language as tl

from ._tiles import dot


@triton.jit
def first_above(p, o_low, n, x, steps):
    """For each of x the first of p[o_low ..][0 .. n) that is above it, or n: as an offset."""
    low, high = tl.zeros_like(x) + o_low, tl.zeros_like(x) + o_low + n
    for _ in range(steps):
        open = low < high
        middle = (low + high) // 2
        above = tl.load(p + middle, mask=open, other=0).to(x.dtype) > x
        high = tl.where(open & above, middle, high)
        low = tl.where(open & (above == 0), middle + 1, low)
    return low - o_low


@triton.jit(do_not_specialize=["N", "V", "depth", "steps"])
def softmax_walk(
    rank, path, branch, begin, end, column, node_rows, node_branches, branch_leaf, branch_node,
    N, V, depth, steps, BT: tl.constexpr,
):  # fmt: skip
    """Grid: blocks of tokens, each down its path. A node's first and last token say so."""
    t = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    m = t < N
    b_rank = tl.load(rank + t, mask=m, other=0).to(tl.int64)
    before = tl.load(rank + t - 1, mask=m & (t > 0), other=-1).to(tl.int64)
    after = tl.load(rank + t + 1, mask=m & (t + 1 < N), other=0).to(tl.int64)
    after = tl.where(t + 1 < N, after, V)
    node = tl.where(m & (b_rank < V), 0, -1).to(tl.int64)
    low, high, col = tl.zeros_like(t), tl.zeros_like(t) + V, tl.zeros_like(t)
    for level in range(depth):
        on = node >= 0
        tl.store(path + t * depth + level, node.to(tl.int32), mask=m)
        opens = on & (before < low)
        tl.store(begin + node, t.to(tl.int32), mask=opens)
        tl.store(column + node, col.to(tl.int32), mask=opens)
        tl.store(end + node, (t + 1).to(tl.int32), mask=on & (after >= high))
        rows = tl.load(node_rows + node + 1, mask=on, other=0) - tl.load(
            node_rows + node, mask=on, other=0
        )
        col += rows
        first = tl.load(node_branches + node, mask=on, other=0)
        count = tl.load(node_branches + node + 1, mask=on, other=0) - first
        next = first_above(branch_leaf, first, count, b_rank, steps)
        tl.store(branch + t * depth + level, (next - 1).to(tl.int32), mask=on)
        low = tl.load(branch_leaf + first + next - 1, mask=on, other=0)
        high = tl.where(
            on & (next < count),
            tl.load(branch_leaf + first + next, mask=on & (next < count), other=0),
            high,
        )
        node = tl.load(branch_node + first + next - 1, mask=on, other=-1)


@triton.jit
def met_rows(path, prefix, begin, end, column, node_rows, o_entry, entries, o_k, steps):
    """Of the rows o_k that a block meets: row (-1: there is none), column, first and last token."""
    at = first_above(prefix + o_entry, tl.zeros_like(o_k), entries, o_k, steps)
    m = at < entries
    node = tl.load(path + o_entry + at, mask=m, other=0).to(tl.int64)
    first = tl.load(node_rows + node, mask=m, other=0)
    left = tl.load(prefix + o_entry + at, mask=m, other=0).to(tl.int64) - o_k
    row = tl.load(node_rows + node + 1, mask=m, other=0) - left
    b_column = tl.load(column + node, mask=m, other=0) + row - first
    t_begin = tl.load(begin + node, mask=m, other=0)
    t_end = tl.load(end + node, mask=m, other=0)
    return tl.where(m, row, -1), b_column, t_begin, t_end


@triton.jit(do_not_specialize=["N", "depth", "path_rows", "shares", "steps"])
def softmax_logits(
    input, weight, bias, saved, order, path, prefix, begin, end, column, node_rows,
    N, H, depth, path_rows, shares, steps,
    ACC: tl.constexpr, BT: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """saved[t, column] = W x + b. Grid: blocks of tokens x shares of the rows they meet."""
    block, share = tl.program_id(0).to(tl.int64) // shares, tl.program_id(0) % shares
    t = block * BT + tl.arange(0, BT)
    m_t = t < N
    token = tl.load(order + t, mask=m_t, other=0).to(tl.int64)
    o_entry = block * BT * depth
    entries = (tl.minimum(block * BT + BT, N) - block * BT) * depth
    total = tl.load(prefix + o_entry + entries - 1)
    for k in range(share * BR, total, shares * BR):
        o_k = (k + tl.arange(0, BR)).to(tl.int64)
        row, col, t_begin, t_end = met_rows(
            path, prefix, begin, end, column, node_rows, o_entry, entries, o_k, steps
        )
        m_r = row >= 0
        acc = tl.zeros([BT, BR], ACC)
        for h in range(0, H, BK):
            o_h = h + tl.arange(0, BK)
            m_h = o_h < H
            p_x = input + token[:, None] * H + o_h[None, :]
            b_x = tl.load(p_x, mask=m_t[:, None] & m_h[None, :], other=0.0)
            p_w = weight + row[None, :] * H + o_h[:, None]
            b_w = tl.load(p_w, mask=m_r[None, :] & m_h[:, None], other=0.0)  # [BK, BR]
            acc = dot(b_x, b_w, acc, PRECISION, UPCAST)
        if bias is not None:
            acc += tl.load(bias + row, mask=m_r, other=0.0).to(ACC)[None, :]
        meets = m_r[None, :] & (t[:, None] >= t_begin[None, :]) & (t[:, None] < t_end[None, :])
        tl.store(saved + t[:, None] * path_rows + col[None, :], acc, mask=meets)


@triton.jit
def log1p(x):
    """log(1 + x) for x in [0, 1], exact where it is small: log w x / (w - 1) with w = 1 + x."""
    w = 1 + x
    return tl.where(w == 1, x, tl.log(w) * (x / tl.where(w == 1, 1, w - 1)))


@triton.jit(do_not_specialize=["depth", "path_rows"])
def softmax_paths(
    saved, output, objective, order, path, branch, column, node_rows, depth, path_rows,
    SMOOTHING: tl.constexpr, Z_LOSS: tl.constexpr, ACC: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Grid: tokens. Logits become derivatives of the objective; log p and the objective.

    The coefficients are constants because arguments would reach a kernel as float32.
    """
    t = tl.program_id(0).to(tl.int64)
    zero = tl.cast(0.0, ACC)
    log_p, goal = zero, zero
    for level in range(depth):
        node = tl.load(path + t * depth + level).to(tl.int64)
        if node >= 0:
            k = (tl.load(node_rows + node + 1) - tl.load(node_rows + node)).to(tl.int32)
            j_target = tl.load(branch + t * depth + level)
            p_z = saved + t * path_rows + tl.load(column + node)
            if k == 1:
                sign = tl.where(j_target == 0, zero + 1, zero - 1)
                v = sign * tl.load(p_z)
                power = tl.exp(-tl.abs(v))
                own = tl.minimum(v, 0.0) - log1p(power)
                log_p += own
                goal += own - v * (SMOOTHING / 2)
                slope = tl.where(v < 0, zero + 1, power) / (1 + power) - SMOOTHING / 2
                tl.debug_barrier()  # every warp has read the logit
                tl.store(p_z, sign * slope)
            else:
                top = tl.full([BC], -float("inf"), ACC)
                sums = tl.zeros([BC], ACC)
                for c in range(0, k, BC):
                    o_c = c + tl.arange(0, BC)
                    z = tl.load(p_z + o_c, mask=o_c < k, other=-float("inf"))
                    new = tl.maximum(top, z)
                    shift = tl.where(new == -float("inf"), 0.0, new)
                    sums = sums * tl.exp(top - shift) + tl.exp(z - shift)
                    top = new
                M = tl.max(top, 0)
                S = tl.sum(tl.where(sums == 0, 0.0, sums * tl.exp(top - M)), 0)
                lse = M + tl.log(S)
                own = tl.load(p_z + j_target) - M - tl.log(S)
                scale = (1 + lse * (2 * Z_LOSS)) / S
                share = (zero + SMOOTHING) / k.to(ACC)
                means = tl.zeros([BC], ACC)
                tl.debug_barrier()  # every warp has read the target's logit
                for c in range(0, k, BC):
                    o_c = c + tl.arange(0, BC)
                    z = tl.where(o_c < k, tl.load(p_z + o_c, mask=o_c < k, other=0.0) - M, 0.0)
                    means += z / k.to(ACC)
                    slope = share - tl.exp(z) * scale
                    slope += tl.where(o_c == j_target, zero + (1 - SMOOTHING), zero)
                    tl.store(p_z + o_c, slope, mask=o_c < k)
                log_p += own
                goal += own - lse * lse * Z_LOSS
                if SMOOTHING != 0:
                    goal += (tl.sum(means, 0) - tl.log(S) - own) * SMOOTHING
    token = tl.load(order + t).to(tl.int64)
    tl.store(output + token, log_p)
    if objective is not None:
        tl.store(objective + token, goal)


@triton.jit(do_not_specialize=["N", "V", "depth", "path_rows", "steps"])
def softmax_input_grad(
    grad, weight, saved, dinput, order, rank, path, prefix, begin, end, column, node_rows,
    N, V, H, depth, path_rows, steps,
    ACC: tl.constexpr, BT: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """dx_t = d_t sum_r G[t, r] w_r. Grid: blocks of tokens x columns."""
    across = tl.cdiv(H, BH)
    block = tl.program_id(0).to(tl.int64) // across
    t = block * BT + tl.arange(0, BT)
    m_t = t < N
    o_h = tl.program_id(0) % across * BH + tl.arange(0, BH)
    m_h = o_h < H
    o_entry = block * BT * depth
    entries = (tl.minimum(block * BT + BT, N) - block * BT) * depth
    total = tl.load(prefix + o_entry + entries - 1)
    acc = tl.zeros([BT, BH], ACC)
    for k in range(0, total, BK):
        o_k = (k + tl.arange(0, BK)).to(tl.int64)
        row, col, t_begin, t_end = met_rows(
            path, prefix, begin, end, column, node_rows, o_entry, entries, o_k, steps
        )
        meets = (t[:, None] >= t_begin[None, :]) & (t[:, None] < t_end[None, :])
        b_g = tl.load(
            saved + t[:, None] * path_rows + col[None, :],
            mask=meets & (row >= 0)[None, :],
            other=0.0,
        )
        p_w = weight + row[:, None] * H + o_h[None, :]
        b_w = tl.load(p_w, mask=(row >= 0)[:, None] & m_h[None, :], other=0.0)  # [BK, BH]
        acc = dot(b_g, b_w, acc, PRECISION, UPCAST)
    token = tl.load(order + t, mask=m_t, other=0).to(tl.int64)
    used = m_t & (tl.load(rank + t, mask=m_t, other=0) < V)
    d = tl.load(grad + token, mask=used, other=0.0)
    acc = tl.where(used[:, None], acc * d[:, None], 0.0)
    p_dx = dinput + token[:, None] * H + o_h[None, :]
    tl.store(p_dx, acc.to(dinput.dtype.element_ty), mask=m_t[:, None] & m_h[None, :])


@triton.jit(do_not_specialize=["R", "path_rows"])
def softmax_weight_grad(
    grad, input, saved, dweight, dbias, order, begin, end, column, node_rows, owner, met,
    R, H, path_rows,
    ACC: tl.constexpr, BR: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """dw_r = sum_t G[t, r] d_t x_t, db_r = sum_t G[t, r] d_t. Grid: blocks of rows x columns.

    ``owner`` is the node of each row of the weight, ``met`` [R] which rows these are (None: all).
    Either result may be None.
    """
    across = tl.cdiv(H, BH) if dweight is not None else 1
    o_r = tl.program_id(0).to(tl.int64) // across * BR + tl.arange(0, BR)
    m_r = o_r < R
    row = o_r
    if met is not None:
        row = tl.load(met + o_r, mask=m_r, other=0)
    o_h = tl.program_id(0) % across * BH + tl.arange(0, BH)
    m_h = o_h < H
    node = tl.load(owner + row, mask=m_r, other=0)
    t_begin = tl.load(begin + node, mask=m_r, other=0)
    t_end = tl.load(end + node, mask=m_r, other=0)
    first = tl.load(node_rows + node, mask=m_r, other=0)
    col = tl.load(column + node, mask=m_r, other=0) + row - first
    some = t_begin < t_end
    t_last = tl.max(tl.where(some, t_end, 0), 0)
    # A multiple of BK: how sums group the tokens does not depend on what other rows there are.
    t_first = tl.min(tl.where(some, t_begin, t_last), 0) // BK * BK
    acc = tl.zeros([BR, BH], ACC)
    sums = tl.zeros([BR], ACC)
    for k in range(t_first, t_last, BK):
        t = (k + tl.arange(0, BK)).to(tl.int64)
        m_t = t < t_last
        token = tl.load(order + t, mask=m_t, other=0).to(tl.int64)
        d = tl.load(grad + token, mask=m_t, other=0.0)
        meets = m_r[:, None] & (t[None, :] >= t_begin[:, None]) & (t[None, :] < t_end[:, None])
        b_g = tl.load(saved + t[None, :] * path_rows + col[:, None], mask=meets, other=0.0)
        b_g = tl.where(meets, b_g * d[None, :], 0.0)  # [BR, BK]
        if dbias is not None:
            sums += tl.sum(b_g, 1)
        if dweight is not None:
            p_x = input + token[:, None] * H + o_h[None, :]
            b_x = tl.load(p_x, mask=m_t[:, None] & m_h[None, :], other=0.0)  # [BK, BH]
            acc = dot(b_g, b_x, acc, PRECISION, UPCAST)
    if dweight is not None:
        p_dw = dweight + o_r[:, None] * H + o_h[None, :]
        tl.store(p_dw, acc.to(dweight.dtype.element_ty), mask=m_r[:, None] & m_h[None, :])
    if dbias is not None:
        m_b = m_r & (tl.program_id(0) % across == 0)
        tl.store(dbias + o_r, sums.to(dbias.dtype.element_ty), mask=m_b)
