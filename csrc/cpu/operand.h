// What meets the weights in a product: an operand's rows of numbers, which the kernel takes a word
// at a time. A word is one number of the state's type; or, for bfloat16 where the instruction set
// has a dot product of pairs (FRNN_BF16_DOT), two numbers that are neighbours along k, in bfloat16
// as they were stored. Rows are as long as whole words need, with zeros at their ends.
#pragma once
#include "lanes.h"

namespace fusedrnn {
inline namespace FRNN_ISA {

// What the rows hold where the weights are of type D.
#ifdef FRNN_BF16_DOT
template <class D>
using Operand = std::conditional_t<std::is_same_v<D, bf16>, bf16, State<D>>;
#else
template <class D>
using Operand = State<D>;
#endif

template <class O>
struct WordOf {
  using type = O;
};
template <>
struct WordOf<bf16> {
  using type = uint32_t;  // the lower half is the number that comes first
};
template <class O>
using Word = typename WordOf<O>::type;

// Numbers in a word.
template <class O>
constexpr int kDepth = sizeof(Word<O>) / sizeof(O);

// Word k of a row.
template <class O>
inline FRNN_INLINE Word<O> word_of(const O* row, int64_t k) {
  if constexpr (kDepth<O> == 1) {
    return row[k];
  } else {
    Word<O> word;
    std::memcpy(&word, row + k * kDepth<O>, sizeof(word));
    return word;
  }
}

// Every lane of sum plus a word times that lane's word of the weights.
template <class A>
inline FRNN_INLINE typename Vector<A>::type multiply_add(typename Vector<A>::type sum, A word,
                                                         typename Vector<A>::type weights) {
  return sum + word * weights;
}

// The first n numbers at p, along k, as a vector of words, zeros after.
template <class O, class D>
inline FRNN_INLINE typename Vector<Word<O>>::type words_along(const D* p, int n) {
  return load_vector(p, n);
}

// A word for each of n units, zeros after: the `depth` numbers along k that there are, a word's or,
// at the end, fewer, are `stride` apart at p.
template <class O, class D>
inline FRNN_INLINE typename Vector<Word<O>>::type words_across(const D* p, int64_t, int, int n) {
  return load_vector(p, n);
}

#ifdef FRNN_BF16_DOT
using Floats = Vector<float>::type;
using Words = Vector<uint32_t>::type;

// VDPBF16PS. Of each pair the upper numbers are multiplied and added first, then the lower ones;
// both are fused multiply-adds that round to nearest even, take subnormal numbers as zero and leave
// none. (Intel, Architecture Instruction Set Extensions Programming Reference, May 2019, and
// Software Developer's Manual, volume 2.) Where the compiler may not use the instruction the same
// is done by two multiply-adds: tests then run these kernels on machines without it.
inline FRNN_INLINE Floats multiply_add(Floats sum, uint32_t word, Words weights) {
#ifdef __AVX512BF16__
  const __m512i broadcast = _mm512_set1_epi32(int(word));
  return _mm512_dpbf16_ps(sum, (__m512bh)weights, (__m512bh)broadcast);
#else
  const auto flushed = [](Floats x) FRNN_INLINE {
    const Words bits = bits_of(x), sign = bits & 0x80000000u;
    return (Floats)((bits & 0x7f800000u) == 0 ? sign : bits);
  };
  const auto add = [&](uint32_t a, Words w) FRNN_INLINE {
    const Floats factor = flushed((Floats)(a - Words{}));
    sum = flushed(_mm512_fmadd_ps(factor, flushed((Floats)w), flushed(sum)));
  };
  add(word & 0xffff0000u, weights & 0xffff0000u);
  add(word << 16, weights << 16);
  return sum;
#endif
}

template <>
inline FRNN_INLINE Words words_along<bf16>(const bf16* p, int n) {
  return (Words)_mm512_maskz_loadu_epi16(__mmask32((uint64_t(1) << n) - 1), p);
}

template <>
inline FRNN_INLINE Words words_across<bf16>(const bf16* p, int64_t stride, int depth, int n) {
  const __mmask16 units = __mmask16((1u << n) - 1);
  const auto load_row = [=](const bf16* row) FRNN_INLINE {
    return (Words)_mm512_maskz_cvtepu16_epi32(units, _mm256_maskz_loadu_epi16(units, row));
  };
  const Words first = load_row(p);
  return depth == 1 ? first : first | load_row(p + stride) << 16;
}
#endif

}  // namespace FRNN_ISA
}  // namespace fusedrnn
