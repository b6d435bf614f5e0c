// Activations as they lie in memory, float32 or bf16, and in registers: always float32.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512BF16__) && defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "products.h"

namespace {

struct bf16 {
    uint16_t bits;
};

typedef uint32_t bits_vec __attribute__((vector_size(LANES * 4)));
typedef uint16_t half_vec __attribute__((vector_size(LANES * 2)));
typedef uint16_t unaligned_half_vec __attribute__((vector_size(LANES * 2), aligned(2), may_alias));

inline float value(float x) { return x; }
inline float value(bf16 x) {
    const uint32_t u = static_cast<uint32_t>(x.bits) << 16;
    float f;
    std::memcpy(&f, &u, 4);
    return f;
}

inline vec load(const bf16 *p) {
    const half_vec half = *reinterpret_cast<const unaligned_half_vec *>(p);
    return reinterpret_cast<vec>(__builtin_convertvector(half, bits_vec) << 16);
}

// Rounds to nearest, ties to even; NaN stays NaN.
inline void store(bf16 *p, vec v) {
#if defined(__AVX512BF16__) && defined(__AVX512F__)
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v)));
#else
    const bits_vec u = reinterpret_cast<bits_vec>(v), nan = reinterpret_cast<bits_vec>(v != v);
    const bits_vec rounded = ((u + 0x7fff + ((u >> 16) & 1)) >> 16 & ~nan) | (nan & 0x7fc0);
    *reinterpret_cast<unaligned_half_vec *>(p) = __builtin_convertvector(rounded, half_vec);
#endif
}

inline void store(float *p, float f) { *p = f; }
inline void store(bf16 *p, float f) {
    uint32_t u;
    std::memcpy(&u, &f, 4);
    p->bits = static_cast<uint16_t>(f != f ? 0x7fc0u : (u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

}  // namespace
