"""The Triton kernels that score all words: csrc/cuda/softmax_whole.cuh, its maths.

A program takes whole tokens, and passes its own results on through memory, behind barriers. What it
needs of the tree ``softmax_links`` has written down before, seen from nodes and from rows:

    parent, into [M]       the node above each node (-1: the root has none), and the branch there
    row_node [R]           the node of each row of the weight ...
    row_branch [R]         ... and its branch; of a sigmoid -1 less the first of its two
    word [V]               of each leaf
"""

import triton
import triton.language as tl

from .softmax_kernels import first_above, log1p


@triton.jit(do_not_specialize=["V", "M", "E", "steps"])
def softmax_links(
    parent, into, row_node, row_branch, word, leaf_rank, node_rows, node_branches, branch_node,
    V, M, E, steps, BE: tl.constexpr,
):  # fmt: skip
    """Grid: blocks of branches; there are more of them than words, nodes or rows."""
    e = tl.program_id(0).to(tl.int64) * BE + tl.arange(0, BE)
    rank = tl.load(leaf_rank + e, mask=e < V, other=0)
    tl.store(word + rank, e.to(tl.int32), mask=e < V)
    m = e < E
    node = tl.where(m, first_above(node_branches, tl.zeros_like(e), M + 1, e, steps) - 1, 0)
    index = e - tl.load(node_branches + node)
    first = tl.load(node_rows + node)
    single = tl.load(node_rows + node + 1) - first == 1
    row = first + tl.where(single, 0, index)
    m_row = m & ((single == 0) | (index == 0))
    tl.store(row_node + row, node.to(tl.int32), mask=m_row)
    tl.store(row_branch + row, tl.where(single, -1 - e, e).to(tl.int32), mask=m_row)
    child = tl.load(branch_node + e, mask=m, other=-1)
    tl.store(parent + child, node.to(tl.int32), mask=child >= 0)
    tl.store(into + child, e.to(tl.int32), mask=child >= 0)
    tl.store(parent + e, tl.full([BE], -1, tl.int32), mask=e == 0)
    tl.store(into + e, tl.zeros([BE], tl.int32), mask=e == 0)


@triton.jit(do_not_specialize=["M", "steps"])
def softmax_ends(
    end, low, node_branches, branch_leaf, branch_node, M, steps, BE: tl.constexpr
):  # fmt: skip
    """One past the last node below each node. Grid: blocks of nodes. ``low``: their first ranks."""
    o_n = tl.program_id(0).to(tl.int64) * BE + tl.arange(0, BE)
    m = o_n < M
    node, last = tl.where(m, o_n, -1), tl.zeros_like(o_n)
    while tl.max(node, 0) >= 0:  # the last branch, the last branch of what it leads to, ...
        on = node >= 0
        last = tl.where(on, tl.load(node_branches + node + 1, mask=on, other=1) - 1, last)
        node = tl.where(on, tl.load(branch_node + last, mask=on, other=-1), -1)
    rank = tl.load(branch_leaf + last, mask=m, other=0)
    above = first_above(low, tl.zeros_like(o_n), M, rank, steps)
    tl.store(end + o_n, above.to(tl.int32), mask=m)


@triton.jit
def log_sigmoid(v):
    """Also where v or -v is large."""
    return tl.minimum(v, 0.0) - log1p(tl.exp(-tl.abs(v)))


@triton.jit
def node_sums(
    z, top, total, node_rows, M,
    ACC: tl.constexpr, SN: tl.constexpr, SC: tl.constexpr, LOG: tl.constexpr,
):  # fmt: skip
    """Of each node's logits the largest and the sum of exp(z - top), or its logarithm."""
    for n in range(0, M, SN):
        node = n + tl.arange(0, SN)
        m = node < M
        row = tl.load(node_rows + node, mask=m, other=0)
        k = tl.load(node_rows + node + 1, mask=m, other=0) - row
        k = tl.where(k > 1, k, 0).to(tl.int32)  # a sigmoid needs no sum
        b_top, b_sum = tl.full([SN, SC], -float("inf"), ACC), tl.zeros([SN, SC], ACC)
        for c in range(0, tl.max(k, 0), SC):
            o_c = c + tl.arange(0, SC)
            m_z = o_c[None, :] < k[:, None]
            b_z = tl.load(z + row[:, None] + o_c[None, :], mask=m_z, other=-float("inf"))
            new = tl.maximum(b_top, b_z)
            shift = tl.where(new == -float("inf"), 0.0, new)
            b_sum = b_sum * tl.exp(b_top - shift) + tl.exp(b_z - shift)
            b_top = new
        most = tl.max(b_top, 1)
        b_sum = tl.sum(tl.where(b_sum == 0, 0.0, b_sum * tl.exp(b_top - most[:, None])), 1)
        tl.store(top + node, most, mask=m)
        tl.store(total + node, tl.log(b_sum) if LOG else b_sum, mask=m)


@triton.jit(do_not_specialize=["N", "V", "M", "R"])
def softmax_whole_forward(
    logits, out, scratch, parent, into, row_node, row_branch, word,
    node_rows, node_branches, branch_leaf, branch_node, N, V, M, R,
    ACC: tl.constexpr, SN: tl.constexpr, SC: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Grid: as many programs as have scratch memory, [3, M] each: top, log sum and log p of nodes.

    Of BN nodes in preorder log p is the sum along links to nodes before them, whose strides double.
    """
    top = scratch + tl.program_id(0).to(tl.int64) * 3 * M
    log_sum, base = top + M, top + 2 * M
    for t in range(tl.program_id(0), N, tl.num_programs(0)):
        z, p_out = logits + tl.cast(t, tl.int64) * R, out + tl.cast(t, tl.int64) * V
        node_sums(z, top, log_sum, node_rows, M, ACC, SN, SC, True)
        tl.debug_barrier()
        for n in range(0, M, BN):
            node = n + tl.arange(0, BN)
            up = tl.load(parent + node, mask=node < M, other=-1)
            m = up >= 0
            first = tl.load(node_rows + up, mask=m, other=0)
            single = tl.load(node_rows + up + 1, mask=m, other=0) - first == 1
            index = tl.load(into + node, mask=m, other=0)
            index -= tl.load(node_branches + up, mask=m, other=0)
            b_z = tl.load(z + first + tl.where(single, 0, index), mask=m, other=0.0)
            value = b_z - tl.load(top + up, mask=m, other=0.0)
            value -= tl.load(log_sum + up, mask=m, other=0.0)
            value = tl.where(single, log_sigmoid(tl.where(index == 0, b_z, -b_z)), value)
            value = tl.where(m, value, 0.0) + tl.load(base + up, mask=m & (up < n), other=0.0)
            link = tl.where(up >= n, up - n, -1)
            while tl.max(link, 0) >= 0:
                to = tl.maximum(link, 0)
                value += tl.where(link >= 0, tl.gather(value, to, 0), 0.0)
                link = tl.where(link >= 0, tl.gather(link, to, 0), -1)
            tl.store(base + node, value, mask=node < M)
            tl.debug_barrier()
        for r in range(0, R, BN):
            o_r = r + tl.arange(0, BN)
            m = o_r < R
            node = tl.load(row_node + o_r, mask=m, other=0)
            branch = tl.load(row_branch + o_r, mask=m, other=0)
            single = branch < 0
            branch = tl.where(single, -1 - branch, branch)
            b_z = tl.load(z + o_r, mask=m, other=0.0)
            b_base = tl.load(base + node)
            value = (b_z - tl.load(top + node)) - tl.load(log_sum + node)
            value = b_base + tl.where(single, log_sigmoid(b_z), value)
            m_0 = m & (tl.load(branch_node + branch, mask=m, other=0) < 0)
            leaf = tl.load(branch_leaf + branch, mask=m_0, other=0)
            tl.store(p_out + tl.load(word + leaf, mask=m_0, other=0), value, mask=m_0)
            m_1 = m & single
            m_1 = m_1 & (tl.load(branch_node + branch + 1, mask=m_1, other=0) < 0)
            leaf = tl.load(branch_leaf + branch + 1, mask=m_1, other=0)
            value = b_base + log_sigmoid(-b_z)
            tl.store(p_out + tl.load(word + leaf, mask=m_1, other=0), value, mask=m_1)
        tl.debug_barrier()  # all has been read before the next token's is written


@triton.jit
def below(branch, m, grad, G, word, branch_leaf, branch_node, INNER: tl.constexpr):
    """Sums of grad below branches: of a leaf its own, of what leads to a node, if INNER, G."""
    child = tl.load(branch_node + branch, mask=m, other=0)
    leaf = tl.load(branch_leaf + branch, mask=m & (child < 0), other=0)
    at = tl.load(word + leaf, mask=m & (child < 0), other=0)
    b = tl.load(grad + at, mask=m & (child < 0), other=0.0)
    if INNER:
        b += tl.load(G + child, mask=m & (child >= 0), other=0.0)
    return b


@triton.jit(do_not_specialize=["N", "V", "M", "R"])
def softmax_whole_backward(
    logits, grad, out, scratch, running, end, row_node, row_branch, word,
    node_rows, node_branches, branch_leaf, branch_node, N, V, M, R,
    ACC: tl.constexpr, SN: tl.constexpr, SC: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Grid: as above; scratch memory is top, the sum, then G over the sum, and G of nodes.

    Nodes below a node are neighbours in preorder, so that G is the difference of two running sums
    over nodes of the gradients of their own leaves: ``running``, [M + 1] a program, in float64.
    """
    top = scratch + tl.program_id(0).to(tl.int64) * 3 * M
    total, G = top + M, top + 2 * M
    running += tl.program_id(0).to(tl.int64) * (M + 1)
    for t in range(tl.program_id(0), N, tl.num_programs(0)):
        z, p_out = logits + tl.cast(t, tl.int64) * R, out + tl.cast(t, tl.int64) * R
        p_grad = grad + tl.cast(t, tl.int64) * V
        node_sums(z, top, total, node_rows, M, ACC, SN, SC, False)
        before = tl.cast(0.0, tl.float64)
        for n in range(0, M, SN):
            node = n + tl.arange(0, SN)
            m = node < M
            first = tl.load(node_branches + node, mask=m, other=0)
            k = (tl.load(node_branches + node + 1, mask=m, other=0) - first).to(tl.int32)
            own = tl.zeros([SN, SC], ACC)
            for c in range(0, tl.max(k, 0), SC):
                o_c = c + tl.arange(0, SC)
                branch, m_c = first[:, None] + o_c[None, :], o_c[None, :] < k[:, None]
                own += below(branch, m_c, p_grad, G, word, branch_leaf, branch_node, False)
            sums = tl.sum(own, 1).to(tl.float64)
            tl.store(running + node, before + tl.cumsum(sums, 0) - sums, mask=m)
            before += tl.sum(sums, 0)
        tl.store(running + M, before)
        tl.debug_barrier()
        for n in range(0, M, BN):
            node = n + tl.arange(0, BN)
            m = node < M
            after = tl.load(running + tl.load(end + node, mask=m, other=0), mask=m, other=0.0)
            b_G = (after - tl.load(running + node, mask=m, other=0.0)).to(ACC)
            tl.store(G + node, b_G, mask=m)
            tl.store(total + node, b_G / tl.load(total + node, mask=m, other=1.0), mask=m)
        tl.debug_barrier()
        for r in range(0, R, BN):
            o_r = r + tl.arange(0, BN)
            m = o_r < R
            node = tl.load(row_node + o_r, mask=m, other=0)
            branch = tl.load(row_branch + o_r, mask=m, other=0)
            single = branch < 0
            branch = tl.where(single, -1 - branch, branch)
            m_1 = m & single
            b_0 = below(branch, m, p_grad, G, word, branch_leaf, branch_node, True)
            b_1 = below(branch + 1, m_1, p_grad, G, word, branch_leaf, branch_node, True)
            b_z = tl.load(z + o_r, mask=m, other=0.0)
            power = tl.exp(-tl.abs(b_z))
            large = 1 / (1 + power)
            small = power * large
            of_pair = b_0 * tl.where(b_z < 0, large, small)
            of_pair -= b_1 * tl.where(b_z < 0, small, large)
            slope = b_0 - tl.exp(b_z - tl.load(top + node)) * tl.load(total + node)
            tl.store(p_out + o_r, tl.where(single, of_pair, slope), mask=m)
        tl.debug_barrier()
