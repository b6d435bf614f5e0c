// Winograd's convolution F(4 x 4, 3 x 3) in float32 for channels-last activations (Lavin & Gray 2016, section 4).
//
// 3 x 3 kernels, stride 1, padding 1. The output is cut into tiles of 4 x 4, each from 6 x 6 of the input d:
//
//     Y = A^T [ sum over c of (G g G^T) * (B^T d B) ] A        36 products for 16 outputs, where the sum takes 144
//
// The 36 positions are 36 products of matrices, [tiles, C] by [C, K]. A block of tiles passes through all three stages
// while it lies in the cache. The input gradient is the same with flipped kernels; the weight gradient is
// G^T [ sum over tiles of (B^T d B)^T (A dY A^T) ] G. Tiles are cut into a fixed number of chunks, so that a
// result does not depend on the number of threads.

#include <cstdint>
#include <cstring>

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

constexpr int64_t POSITIONS = 36, TAPS = 9, MOST_CHANNELS = 512, LINE = 16;  // floats of a cache line
const float ZEROS[MOST_CHANNELS] = {0};

inline vec load(const float *p) { return *reinterpret_cast<const unaligned_vec *>(p); }
inline void store(float *p, vec v) { *reinterpret_cast<unaligned_vec *>(p) = v; }

// One dimension of each transform.
inline void input_1d(const vec d[6], vec t[6]) {  // B^T
    const vec even = d[4] - 4 * d[2], odd = d[3] - 4 * d[1], near = d[4] - d[2], far = 2 * (d[3] - d[1]);
    t[0] = 4 * d[0] - 5 * d[2] + d[4];
    t[1] = even + odd;
    t[2] = even - odd;
    t[3] = near + far;
    t[4] = near - far;
    t[5] = 4 * d[1] - 5 * d[3] + d[5];
}
inline void output_1d(const vec m[6], vec y[4]) {  // A^T
    const vec sum = m[1] + m[2], difference = m[1] - m[2], sum2 = m[3] + m[4], difference2 = m[3] - m[4];
    y[0] = m[0] + sum + sum2;
    y[1] = difference + 2 * difference2;
    y[2] = sum + 4 * sum2;
    y[3] = difference + 8 * difference2 + m[5];
}
inline void gradient_1d(const vec y[4], vec m[6]) {  // A
    const vec even = y[0] + y[2], odd = y[1] + y[3], even2 = y[0] + 4 * y[2], odd2 = 2 * y[1] + 8 * y[3];
    m[0] = y[0];
    m[1] = even + odd;
    m[2] = even - odd;
    m[3] = even2 + odd2;
    m[4] = even2 - odd2;
    m[5] = y[3];
}
inline void kernel_1d(const vec g[3], vec u[6]) {  // G
    const vec even = g[0] + g[2], even2 = g[0] * (1 / 24.0f) + g[2] * (1 / 6.0f), odd2 = g[1] * (1 / 12.0f);
    u[0] = g[0] * 0.25f;
    u[1] = (even + g[1]) * (-1 / 6.0f);
    u[2] = (even - g[1]) * (-1 / 6.0f);
    u[3] = even2 + odd2;
    u[4] = even2 - odd2;
    u[5] = g[2];
}
inline void taps_1d(const vec u[6], vec g[3]) {  // G^T
    const vec sum = (u[1] + u[2]) * (-1 / 6.0f), sum2 = u[3] + u[4];
    g[0] = u[0] * 0.25f + sum + sum2 * (1 / 24.0f);
    g[1] = (u[2] - u[1]) * (1 / 6.0f) + (u[3] - u[4]) * (1 / 12.0f);
    g[2] = sum + sum2 * (1 / 6.0f) + u[5];
}

struct Tiles {
    int64_t N, H, W, down, across, count;
    Tiles(int64_t N, int64_t H, int64_t W)
        : N(N), H(H), W(W), down((H + 3) / 4), across((W + 3) / 4), count(N * down * across) {}
    // Where the `side` x `side` values from row 4 * i - before, column 4 * j - before of tile (n, i, j) lie in x[N, H, W, C].
    template <int side, int before>
    void pointers(const float *x, int64_t C, int64_t tile, const float **at) const {
        const int64_t n = tile / (down * across), in_image = tile % (down * across);
        const int64_t top = in_image / across * 4 - before, left = in_image % across * 4 - before;
        for (int i = 0; i < side; ++i)
            for (int j = 0; j < side; ++j) {
                const int64_t h = top + i, w = left + j;
                const bool inside = h >= 0 && h < H && w >= 0 && w < W;
                at[i * side + j] = inside ? x + ((n * H + h) * W + w) * C : ZEROS;
            }
    }
};

// A block of transformed tiles [36, tiles, C]; the line between positions keeps them out of each other's cache sets.
inline int64_t block_tiles(int64_t C, int64_t K) { return C + K <= 128 ? 24 : 12; }
inline int64_t between(int64_t tiles, int64_t C) { return tiles * C + LINE; }

template <int FROM, void (*transform)(const vec *, vec *)>
inline void transform_tile(const float *const *at, float *out, int64_t step, int64_t C) {
    for (int64_t c = 0; c < C; c += LANES) {
        vec half[6][FROM];
        for (int j = 0; j < FROM; ++j) {
            vec in[FROM], column[6];
            for (int i = 0; i < FROM; ++i) in[i] = load(at[i * FROM + j] + c);
            transform(in, column);
            for (int i = 0; i < 6; ++i) half[i][j] = column[i];
        }
        for (int i = 0; i < 6; ++i) {
            vec row[6];
            transform(half[i], row);
            for (int j = 0; j < 6; ++j) store(out + (i * 6 + j) * step + c, row[j]);
        }
    }
}

void output_tile(const float *products, int64_t step, const Tiles &tiles, int64_t tile, float *y, int64_t K) {
    const int64_t n = tile / (tiles.down * tiles.across), in_image = tile % (tiles.down * tiles.across);
    const int64_t top = in_image / tiles.across * 4, left = in_image % tiles.across * 4;
    const int64_t height = tiles.H - top < 4 ? tiles.H - top : 4, width = tiles.W - left < 4 ? tiles.W - left : 4;
    float *corner = y + ((n * tiles.H + top) * tiles.W + left) * K;
    for (int64_t k = 0; k < K; k += LANES) {
        vec half[4][6];
        for (int j = 0; j < 6; ++j) {
            vec in[6], column[4];
            for (int i = 0; i < 6; ++i) in[i] = load(products + (i * 6 + j) * step + k);
            output_1d(in, column);
            for (int i = 0; i < 4; ++i) half[i][j] = column[i];
        }
        for (int64_t i = 0; i < height; ++i) {
            vec row[4];
            output_1d(half[i], row);
            for (int64_t j = 0; j < width; ++j) store(corner + (i * tiles.W + j) * K + k, row[j]);
        }
    }
}

// sum[R, COLUMNS * LANES] (+)= a[R, depth] b[depth, COLUMNS * LANES], where element (r, i) of a lies at r * row + i * along.
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

// U[36, K / width, C, width] = G g G^T of w[K, C, 3, 3]; flipped: of the kernels that the input gradient convolves with,
// where C and K are those of that convolution and w is [C, K, 3, 3].
void transform_kernels(const float *w, float *U, int64_t C, int64_t K, int64_t width, bool flipped, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t c = 0; c < C; ++c)
        for (int64_t k = 0; k < K; k += LANES) {
            vec half[6][3];
            for (int j = 0; j < 3; ++j) {
                vec taps[3], column[6];
                for (int i = 0; i < 3; ++i)
                    for (int l = 0; l < LANES; ++l)
                        taps[i][l] = flipped ? w[(c * K + k + l) * TAPS + 8 - (i * 3 + j)] : w[((k + l) * C + c) * TAPS + i * 3 + j];
                kernel_1d(taps, column);
                for (int i = 0; i < 6; ++i) half[i][j] = column[i];
            }
            float *out = U + ((k / width) * C + c) * width + k % width;
            for (int i = 0; i < 6; ++i) {
                vec row[6];
                kernel_1d(half[i], row);
                for (int j = 0; j < 6; ++j) store(out + (i * 6 + j) * C * K, row[j]);
            }
        }
}

template <int COLUMNS>
void convolve(const float *x, const float *w, float *y, const Tiles &tiles, int64_t C, int64_t K, bool flipped, float *work,
              int threads) {
    constexpr int64_t width = COLUMNS * LANES;
    const int64_t size = block_tiles(C, K), in_step = between(size, C), out_step = between(size, K);
    const int64_t blocks = (tiles.count + size - 1) / size;
    float *U = work, *scratch = work + POSITIONS * C * K;
    transform_kernels(w, U, C, K, width, flipped, threads);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int part = 0; part < threads; ++part) {
        float *in = scratch + part * POSITIONS * (in_step + out_step), *out = in + POSITIONS * in_step;
        for (int64_t block = blocks * part / threads; block < blocks * (part + 1) / threads; ++block) {
            const int64_t first = block * size, count = tiles.count - first < size ? tiles.count - first : size;
            const float *at[36];
            for (int64_t t = 0; t < count; ++t) {
                tiles.pointers<6, 1>(x, C, first + t, at);
                transform_tile<6, input_1d>(at, in + t * C, in_step, C);
            }
            for (int64_t t = count; t % ROWS; ++t)  // rows that the products take with them
                for (int64_t p = 0; p < POSITIONS; ++p) std::memset(in + p * in_step + t * C, 0, C * sizeof(float));
            for (int64_t p = 0; p < POSITIONS; ++p)
                for (int64_t k = 0; k < K; k += width)
                    for (int64_t t = 0; t < count; t += ROWS)
                        product<ROWS, COLUMNS>(in + p * in_step + t * C, C, 1, U + p * C * K + k * C, width,
                                               out + p * out_step + t * K + k, K, C, false);
            for (int64_t t = 0; t < count; ++t) output_tile(out + t * K, out_step, tiles, first + t, y, K);
        }
    }
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

inline int64_t chunks_of(int64_t C, int64_t K) { return C * K <= 1024 ? 16 : 8; }  // a chunk has sums [36, C, K]

template <int COLUMNS>
void weight_gradient(const float *x, const float *dy, float *dw, const Tiles &tiles, int64_t C, int64_t K, float *work,
                     int threads) {
    const int64_t size = block_tiles(C, K), in_step = between(size, C), out_step = between(size, K);
    const int64_t blocks = (tiles.count + size - 1) / size, most = chunks_of(C, K), chunks = blocks < most ? blocks : most;
    float *sums = work, *scratch = work + most * POSITIONS * C * K;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int part = 0; part < threads; ++part) {
        float *in = scratch + part * POSITIONS * (in_step + out_step), *out = in + POSITIONS * in_step;
        for (int64_t chunk = chunks * part / threads; chunk < chunks * (part + 1) / threads; ++chunk) {
            const int64_t start = blocks * chunk / chunks, stop = blocks * (chunk + 1) / chunks;
            for (int64_t block = start; block < stop; ++block) {
                const int64_t first = block * size, count = tiles.count - first < size ? tiles.count - first : size;
                const float *at[36];
                for (int64_t t = 0; t < count; ++t) {
                    tiles.pointers<6, 1>(x, C, first + t, at);
                    transform_tile<6, input_1d>(at, in + t * C, in_step, C);
                    tiles.pointers<4, 0>(dy, K, first + t, at);
                    transform_tile<4, gradient_1d>(at, out + t * K, out_step, K);
                }
                for (int64_t p = 0; p < POSITIONS; ++p)
                    outer_products<COLUMNS>(in + p * in_step, out + p * out_step, sums + (chunk * POSITIONS + p) * C * K,
                                            C, K, count, block > start);
            }
        }
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t c = 0; c < C; ++c)
        for (int64_t k = 0; k < K; k += LANES) {
            vec half[3][6];
            for (int j = 0; j < 6; ++j) {
                vec column[6], taps[3];
                for (int i = 0; i < 6; ++i) {
                    column[i] = vec{};
                    for (int64_t chunk = 0; chunk < chunks; ++chunk)
                        column[i] += load(sums + ((chunk * POSITIONS + i * 6 + j) * C + c) * K + k);
                }
                taps_1d(column, taps);
                for (int i = 0; i < 3; ++i) half[i][j] = taps[i];
            }
            for (int i = 0; i < 3; ++i) {
                vec row[3];
                taps_1d(half[i], row);
                for (int j = 0; j < 3; ++j)
                    for (int l = 0; l < LANES; ++l) dw[((k + l) * C + c) * TAPS + i * 3 + j] = row[j][l];
            }
        }
}

}  // namespace

// x[N, H, W, C] and w[K, C, 3, 3] to y[N, H, W, K]; flipped: w is [C, K, 3, 3] and y the gradient of its input from x.
extern "C" void winograd_convolve(const float *x, const float *w, float *y, int64_t N, int64_t H, int64_t W, int64_t C,
                                  int64_t K, int flipped, float *work, int threads) {
    const Tiles tiles(N, H, W);
    if (K % (2 * LANES) == 0) convolve<2>(x, w, y, tiles, C, K, flipped, work, threads);
    else convolve<1>(x, w, y, tiles, C, K, flipped, work, threads);
}

// dw[K, C, 3, 3] of x[N, H, W, C] and dy[N, H, W, K].
extern "C" void winograd_weight_gradient(const float *x, const float *dy, float *dw, int64_t N, int64_t H, int64_t W,
                                         int64_t C, int64_t K, float *work, int threads) {
    const Tiles tiles(N, H, W);
    if (K % (2 * LANES) == 0) weight_gradient<2>(x, dy, dw, tiles, C, K, work, threads);
    else weight_gradient<1>(x, dy, dw, tiles, C, K, work, threads);
}

// Floats of work space that either call needs.
extern "C" int64_t winograd_floats(int64_t C, int64_t K, int threads) {
    const int64_t size = block_tiles(C, K);
    return POSITIONS * (chunks_of(C, K) * C * K + threads * (between(size, C) + between(size, K)));
}
