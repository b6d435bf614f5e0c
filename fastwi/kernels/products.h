// Small products of float32 matrices that lie in the cache, on vectors of whatever machine it is.

#pragma once

#include <cstdint>

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, ROWS = 12, GRADIENT_ROWS = 8;
#elif defined(__AVX__)
constexpr int LANES = 8, ROWS = 6, GRADIENT_ROWS = 6;
#else
constexpr int LANES = 4, ROWS = 6, GRADIENT_ROWS = 6;
#endif
// The sums of a product live in registers: without this, gcc reads operands from memory again and again.
#if defined(__x86_64__)
#define IN_REGISTER(v) asm("" : "+x"(v))
#else
#define IN_REGISTER(v)
#endif

typedef float vec __attribute__((vector_size(LANES * 4), may_alias));
typedef float unaligned_vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

inline vec load(const float *p) { return *reinterpret_cast<const unaligned_vec *>(p); }
inline void store(float *p, vec v) { *reinterpret_cast<unaligned_vec *>(p) = v; }

// sum[R, COLUMNS * LANES] (+)= a[R, depth] b[depth, COLUMNS * LANES]; element (r, i) of a lies at r * row + i * along.
template <int R, int COLUMNS>
inline void product(const float *__restrict a, int64_t row, int64_t along, const float *__restrict b, int64_t b_step,
                    float *__restrict sum, int64_t sum_step, int64_t depth, bool add) {
    vec held[R][COLUMNS];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int j = 0; j < COLUMNS; ++j) held[r][j] = add ? load(sum + r * sum_step + j * LANES) : vec{};
    for (int64_t i = 0; i < depth; ++i) {
        vec columns[COLUMNS];
#pragma GCC unroll 4
        for (int j = 0; j < COLUMNS; ++j) {
            columns[j] = load(b + i * b_step + j * LANES);
            IN_REGISTER(columns[j]);
        }
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            vec one = a[r * row + i * along] - vec{};
            IN_REGISTER(one);
#pragma GCC unroll 4
            for (int j = 0; j < COLUMNS; ++j) held[r][j] += one * columns[j];
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int j = 0; j < COLUMNS; ++j) store(sum + r * sum_step + j * LANES, held[r][j]);
}

// products[C, K] (+)= in[tiles, C]^T out[tiles, K]
template <int COLUMNS>
void outer_products(const float *in, const float *out, float *products, int64_t C, int64_t K, int64_t count, bool add) {
    const int64_t groups = (C + GRADIENT_ROWS - 1) / GRADIENT_ROWS;
    for (int64_t k = 0; k < K; k += COLUMNS * LANES)
        for (int64_t group = 0; group < groups; ++group) {
            const int64_t c = C * group / groups, rows = C * (group + 1) / groups - c;
            float *sum = products + c * K + k;
#define PRODUCT(R) product<R, COLUMNS>(in + c, 1, C, out + k, K, sum, K, count, add)
            if (rows == 8) PRODUCT(8);
            else if (rows == 6) PRODUCT(6);
            else PRODUCT(5);  // multiples of 16 channels cut into groups of at most 6 have no other
#undef PRODUCT
        }
}

}  // namespace
