// What a unit has of its own at a step (PerUnit, csrc/cell.h), and where h meets W_hh.
#pragma once
#include "../cell.h"
#include "factors.h"
#include "units.h"

namespace fusedrnn {
inline namespace FRNN_ISA {

// 32 bits for each lane of a vector of A.
typedef uint32_t FloatBits __attribute__((vector_size(kVectorBytes)));
typedef uint32_t DoubleBits __attribute__((vector_size(kVectorBytes / 2)));
template <class A>
using LaneBits = std::conditional_t<sizeof(A) == 4, FloatBits, DoubleBits>;

// 1 where a unit's bits say that it is kept, with probability 1 - p; 0 elsewhere.
template <class A>
inline FRNN_INLINE Lanes<A> drawn(const Pair<A>& units, const uint64_t (&keys)[2], Stream stream,
                                  double p) {
  const Units<A>* const of[] = {&units.first, &units.second};
  Lanes<A> x;
  each<2>([&](auto i) FRNN_INLINE {
    LaneBits<A> unit;
    for (int l = 0; l < Vector<A>::lanes; ++l) unit[l] = uint32_t(of[i]->j) + l;
    const LaneBits<A> bits = random_bits(keys[i], stream, unit);
    const uint32_t below = bits_below(p);
    for (int l = 0; l < Vector<A>::lanes; ++l) x.v[i][l] = bits[l] < below ? A(1) : A(0);
  });
  return x;
}

// Shares of what is new: zoneout's and dropout's.
template <class A>
struct Shares {
  Lanes<A> h, c, drop;
};

// Not inline: most calls draw nothing, and inline it takes the compiler as long as all else.
template <class A>
[[gnu::noinline]] Shares<A> shares_of(const CellOptions& options, const int64_t* seed, int64_t t,
                                      Pair<A> units) {
  const double h = options.zoneout_h, c = options.zoneout_c, drop = options.dropout;
  Shares<A> x{Lanes<A>(A(1 - h)), Lanes<A>(A(1 - c)), Lanes<A>(A(1))};
  if (!seed) return x;
  const int64_t b = units.first.b, other = units.second.b;
  const uint64_t key = row_key(seed[0], t, b),
                 keys[] = {key, other == b ? key : row_key(seed[0], t, other)};
  if (h > 0) x.h = drawn(units, keys, Stream::keep_h, h);
  if (c > 0) x.c = drawn(units, keys, Stream::keep_c, c);
  if (drop > 0) x.drop = Lanes<A>(factor_of_kept<A>(drop)) * drawn(units, keys, Stream::drop, drop);
  return x;
}

// What the units have of their own at step t: D is the tensors' type.
template <class Cell, class D, class Args>
inline FRNN_INLINE PerUnit<Lanes<State<D>>> own_values(const Args& a, int64_t t,
                                                       const Pair<State<D>>& units) {
  using A = State<D>;
  const CellOptions& options = a.n.options;
  PerUnit<Lanes<A>> own;
  const int weights = Cell::weights(options);
  if (weights > 0) {
    each<3>([&](auto k) FRNN_INLINE {
      const D* row = static_cast<const D*>(a.weight_unit) + (k < weights ? k : 0) * a.n.H;
      own.weight[k] = gather(units, [=](const Units<A>& u) FRNN_INLINE { return row + u.j; });
    });
  }
  if (options.shares()) {
    const Shares<A> shares = shares_of<A>(options, a.seed, t, units);
    own.keep_h = shares.h, own.keep_c = shares.c, own.drop = shares.drop;
  }
  return own;
}

// Factors of h where it meets W_hh, [B, P]; empty where there are none.
template <class A>
class Meeting {
 public:
  template <class Args>
  FRNN_COLD explicit Meeting(const Args& a)
      : there(a.n.options.variational > 0 && a.seed),
        factors_(there ? a.n.B * a.n.P : 0),
        P_(a.n.P) {
    if (there && factors_)
      sequence_factors(a.seed[1], a.n.B, P_, a.n.options.variational, factors_.get());
  }
  explicit operator bool() const { return bool(factors_); }
  const bool there;
  FRNN_INLINE Lanes<A> met(const Pair<A>& p, const Lanes<A>& h) const {
    return there ? h * gather(p, in_rows(factors_.get(), P_)) : h;
  }
  A met(int64_t b, int64_t j, A h) const { return there ? h * factors_.get()[b * P_ + j] : h; }

 private:
  Buffer<A> factors_;
  const int64_t P_;
};

}  // namespace FRNN_ISA
}  // namespace fusedrnn
