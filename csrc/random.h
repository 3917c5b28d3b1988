// The random numbers of a step, by counter: a pure function of (seed, t, b, unit, stream), so that
// backward draws again what forward drew, and nothing of it is stored. fusedrnn/random.py says the
// same in torch operators.
//
// A 64-bit key for each row of each step, by splitmix64's finaliser (Steele et al. 2014); 32 bits
// for each unit and stream from it, by two rounds of lowbias32 (Wellons 2018): integer maths that
// vectorises over units, 20 operations a number.
#pragma once
#include <cstdint>

#include "activations.h"

namespace fusedrnn {
inline namespace FRNN_ISA {

enum class Stream : uint32_t { drop, keep_h, keep_c, sequence };

FRNN_HD uint64_t splitmix64(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// One for row b of step t.
FRNN_HD uint64_t row_key(int64_t seed, int64_t t, int64_t b) {
  const uint64_t golden = 0x9e3779b97f4a7c15u;
  return splitmix64(splitmix64(uint64_t(seed) + golden * uint64_t(t + 1)) +
                    golden * uint64_t(b + 1));
}

template <class U>  // uint32_t, or a vector of it
FRNN_HD U lowbias32(U x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

// The bits of a unit in a stream.
template <class U>
FRNN_HD U random_bits(uint64_t key, Stream stream, U unit) {
  const U x = lowbias32((unit * 4u + uint32_t(stream)) ^ uint32_t(key));
  return lowbias32(x + uint32_t(key >> 32));
}

// What the bits must be below, with probability 1 - p.
FRNN_HD uint32_t bits_below(double p) {
  const double most = (1 - p) * 4294967296.0;
  return most >= 4294967295.0 ? 0xffffffffu : uint32_t(most);
}

// Dropout's factor of what is kept.
template <class A>
FRNN_HD A factor_of_kept(double p) {
  return p < 1 ? A(1 / (1 - p)) : A(0);
}

// Dropout's factor: 0 with probability p, else 1 / (1 - p).
template <class A>
FRNN_HD A factor_of(uint64_t key, Stream stream, int64_t unit, double p) {
  const bool kept = random_bits(key, stream, uint32_t(unit)) < bits_below(p);
  return kept && p < 1 ? A(1 / (1 - p)) : A(0);
}

// The key of a row's numbers that hold for all its steps, of the second of a sequence's seeds: by
// the factors of Stream::sequence h is multiplied where it meets W_hh.
FRNN_HD uint64_t sequence_key(int64_t seed, int64_t b) { return row_key(seed, -1, b); }

}  // namespace FRNN_ISA
}  // namespace fusedrnn
