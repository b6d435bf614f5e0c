// Copies and sums of weighted rows: result[l, p] = sum over the terms t of sum l of weight[t] * row_t[p], in float64, rounded once.
//
// Each product and each sum is rounded, and terms are added in their order: the result is that of the reference, to the
// bit. The work is bound by memory: 4 bytes a term and 4 for the result, which is written past the cache, so that what
// was there before is not read.

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#pragma GCC optimize("fp-contract=off")  // by the library's flags, products would go into sums without being rounded

namespace {

constexpr int STEP = 16;            // columns whose sums are in registers
constexpr int64_t PIECE = 131072;  // columns that a thread takes at a time
// Columns between a load and what it asks for, four small pages on. The processor follows a load through one row by
// itself, but not into the next page, nor through many rows in turn.
constexpr int64_t AHEAD = 4096;
constexpr int64_t PAGE = 1024;  // columns in a small page

void add(double *total, const float *x, double weight) {
    __builtin_prefetch(x + AHEAD);
    for (int j = 0; j < STEP; ++j) total[j] += x[j] * weight;
}

void store(float *to, const double *total) {
    float rounded[STEP];
    for (int j = 0; j < STEP; ++j) rounded[j] = static_cast<float>(total[j]);
#if defined(__x86_64__)
    for (int j = 0; j < STEP; j += 4) _mm_stream_ps(to + j, _mm_loadu_ps(rounded + j));
#else
    std::memcpy(to, rounded, sizeof rounded);
#endif
}

// Columns first ... last - 1 of one sum.
void combine(float *result, const float *const *rows, const double *weights, int64_t terms, int64_t first, int64_t last) {
    int64_t p = first;
    const auto one = [&] {
        double total = 0;
        for (int64_t t = 0; t < terms; ++t) total += rows[t][p] * weights[t];
        result[p] = static_cast<float>(total);
    };
    for (; p < last && reinterpret_cast<uintptr_t>(result + p) % 64; ++p) one();
    for (; p + STEP <= last; p += STEP) {
        if (p % PAGE < STEP) __builtin_prefetch(result + p + AHEAD);  // for the address of its page
        double total[STEP] = {};
        int64_t t = 0;
        for (; t + 2 <= terms; t += 2) {  // a load for each of two rows: the processor follows one row a load
            add(total, rows[t] + p, weights[t]);
            add(total, rows[t + 1] + p, weights[t + 1]);
        }
        if (t < terms) add(total, rows[t] + p, weights[t]);
        store(result + p, total);
    }
    for (; p < last; ++p) one();
}

}  // namespace

// Sum l has the terms starts[l] ... starts[l + 1] - 1.
extern "C" void combine_rows(float *const *results, const float *const *rows, const double *weights,
                             const int64_t *starts, int64_t L, int64_t P, int threads) {
    const int64_t pieces = (P + PIECE - 1) / PIECE;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(dynamic)
        for (int64_t piece = 0; piece < L * pieces; ++piece) {
            const int64_t l = piece / pieces, start = starts[l], first = piece % pieces * PIECE;
            const int64_t last = first + PIECE < P ? first + PIECE : P;
            combine(results[l], rows + start, weights + start, starts[l + 1] - start, first, last);
        }
#if defined(__x86_64__)
        _mm_sfence();  // before the threads meet, so that each then sees what the others wrote
#endif
    }
}

// Row l of `bytes` bytes becomes a copy of rows[l].
extern "C" void copy_rows(char *const *results, const char *const *rows, int64_t L, int64_t bytes, int threads) {
    const int64_t piece_bytes = PIECE * 4, pieces = (bytes + piece_bytes - 1) / piece_bytes;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t piece = 0; piece < L * pieces; ++piece) {
        const int64_t l = piece / pieces, first = piece % pieces * piece_bytes;
        std::memcpy(results[l] + first, rows[l] + first, first + piece_bytes < bytes ? piece_bytes : bytes - first);
    }
}
