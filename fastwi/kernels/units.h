// Products of matrices of float32 or, where the processor multiplies them, of bf16 in pairs. Sums are float32.

#pragma once

#include "storage.h"

namespace {

struct Single {
    typedef float element, unit;
    typedef vec column;
    static constexpr int64_t PER = 1;  // elements of a unit
    static column columns(const unit *p) { return load(p); }
    static void add(vec &sum, unit one, column other) {
        vec all = one - vec{};
        IN_REGISTER(all);
        sum += all * other;
    }
    static unit made(float first, float) { return first; }
};

template <typename T> struct Storage {
    typedef Single units;
};

#if defined(__AVX512BF16__) && defined(__AVX512F__)
struct Pair {
    typedef bf16 element;
    typedef uint32_t unit __attribute__((may_alias));  // activations are written one by one
    typedef __m512i column;
    static constexpr int64_t PER = 2;
    static column columns(const unit *p) { return _mm512_loadu_si512(p); }
    static void add(vec &sum, unit one, column other) {  // the products of both elements
        const __m512i all = _mm512_set1_epi32(static_cast<int>(one));
        sum = _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(all), reinterpret_cast<__m512bh>(other));
    }
    static unit made(bf16 first, bf16 second) { return first.bits | static_cast<uint32_t>(second.bits) << 16; }
};

template <> struct Storage<bf16> {
    typedef Pair units;
};
#endif

// sum[R, COLUMNS * LANES] = start + a b, over `segments` segments of `depth` units. Unit (r, i) of a segment of a lies
// at r * row + i * along; segments are a_next and b_next units apart.
template <typename U> struct Product {
    const typename U::unit *a;
    int64_t row, along, a_next;
    const typename U::unit *b;
    int64_t b_step, b_next, depth, segments;
    const float *start;  // or null: zeros
    int64_t start_step;
    float *sum;
    int64_t sum_step;
};

template <typename U, int R, int COLUMNS> void multiply(const Product<U> p) {
    vec held[R][COLUMNS];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (int j = 0; j < COLUMNS; ++j) held[r][j] = p.start ? load(p.start + r * p.start_step + j * LANES) : vec{};
    for (int64_t s = 0; s < p.segments; ++s) {
        const typename U::unit *a = p.a + s * p.a_next, *b = p.b + s * p.b_next;
        for (int64_t i = 0; i < p.depth; ++i, a += p.along, b += p.b_step) {
            typename U::column columns[COLUMNS];
#pragma GCC unroll 2
            for (int j = 0; j < COLUMNS; ++j) {
                columns[j] = U::columns(b + j * LANES);
                IN_REGISTER(columns[j]);
            }
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
                for (int j = 0; j < COLUMNS; ++j) U::add(held[r][j], a[r * p.row], columns[j]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (int j = 0; j < COLUMNS; ++j) store(p.sum + r * p.sum_step + j * LANES, held[r][j]);
}

}  // namespace
