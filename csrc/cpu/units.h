// Vectors of units, two at a time: how the epilogue of a product walks over a tile, and where a
// unit's numbers lie in memory. What is not inlined takes Units and Pair by value, so that nothing
// needs their address.
#pragma once
#include "../sequence.h"
#include "product.h"

namespace fusedrnn {
inline namespace FRNN_ISA {

// One vector of a tile's result: units [j, j + n) of row b; c points at its first gate, the others
// follow `stride` apart.
template <class A>
struct Units {
  int64_t b, j;
  int n;
  const A* c;
  int64_t stride;
};

// Two of them: what the cell's maths is done on at a time.
template <class A>
struct Pair {
  Units<A> first, second;
};

// f(Pair) for all of a tile; an odd last one comes as both.
template <int N, class A, class F>
inline FRNN_INLINE void each_pair(const Tile<A>& tile, int64_t units, F f) {
  constexpr int lanes = Vector<A>::lanes;
  const int64_t stride = tile.vectors * lanes;
  const A* c = tile.c;
  int64_t b = tile.b, j = tile.first * lanes;
  int v = 0;
  const auto next = [&]() FRNN_INLINE {
    const Units<A> u{b, j, int(units - j < lanes ? units - j : lanes), c, stride};
    j += lanes, c += lanes;
    if (++v == tile.vectors) v = 0, ++b, j = tile.first * lanes, c += (N - 1) * stride;
    return u;
  };
  for (int left = tile.rows * tile.vectors; left > 0; left -= 2) {
    const Units<A> u = next();
    f(Pair<A>{u, left > 1 ? next() : u});
  }
}

// f(Pair) of the rows that take part in step t, past(Units) for those beyond their end. One call
// of f, so that all rows meet the same instructions.
template <class A, class F, class G>
inline FRNN_INLINE void where_alive(const int64_t* lengths, int64_t t, Pair<A> p, F f, G past) {
  if (lengths) {
    const bool first = t < lengths[p.first.b], second = t < lengths[p.second.b];
    if (!first) past(p.first);
    if (!second && p.second.c != p.first.c) past(p.second);
    if (!first && !second) return;
    if (!first) p.first = p.second;
    if (!second) p.second = p.first;
  }
  f(p);
}

// Whether row b begins anew at step t (csrc/sequence.h).
template <class Args>
inline FRNN_INLINE bool begins_anew(const Args& a, int64_t t, int64_t b) {
  const int64_t boundary = a.n.reverse ? t + 1 : t;
  return a.reset && boundary < a.n.T && (!a.lengths || boundary < a.lengths[b]) &&
         a.reset[boundary * a.n.B + b];
}

// Lanes from or to memory: at(unit) is where a unit's numbers lie.
template <class A, class F>
inline FRNN_INLINE Lanes<A> gather(const Pair<A>& p, F at) {
  Lanes<A> x;
  x.v[0] = load_vector(at(p.first), p.first.n);
  x.v[1] = load_vector(at(p.second), p.second.n);
  return x;
}
template <class A, class F>
inline FRNN_INLINE void scatter(const Pair<A>& p, const Lanes<A>& x, F at) {
  store_vector(at(p.first), p.first.n, x.v[0]);
  store_vector(at(p.second), p.second.n, x.v[1]);
}

// Where the numbers of some units lie in rows that are `row` apart.
template <class E>
inline FRNN_INLINE auto in_rows(E* rows, int64_t row) {
  return [=](const Units<State<std::remove_const_t<E>>>& u)
             FRNN_INLINE { return rows + u.b * row + u.j; };
}

}  // namespace FRNN_ISA
}  // namespace fusedrnn
