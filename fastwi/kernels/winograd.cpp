// Winograd's convolution F(4 x 4, 3 x 3) for channels-last activations and weights (Lavin & Gray 2016, section 4), in
// float32 on float32 or bf16.
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
#include <type_traits>

#include "products.h"
#include "storage.h"
#include "transforms.h"

namespace {

constexpr int64_t POSITIONS = 36, TAPS = 9, LINE = 16;  // floats of a cache line

// Activations are walked in strips: a row of tiles, 4 rows of the image. The rows above and below a strip, and the
// columns beside it, are zeros where the image ends.
struct Strips {
    int64_t N, H, W, down, across, count;
    Strips(int64_t N, int64_t H, int64_t W)
        : N(N), H(H), W(W), down((H + 3) / 4), across((W + 3) / 4), count(N * down) {}
    int64_t columns(int around) const { return 4 * across + around; }
    // Strips of a block: some 24 tiles, or 12 where their channels would outgrow the second cache.
    int64_t block(int64_t channels) const {
        const int64_t tiles = channels < 128 ? 24 : 12;
        return across < tiles ? tiles / across : 1;
    }
};

typedef void Transform(const vec *, vec *);

// Asks for part `p` of `parts` of the rows of `size` strips, to be in the cache when the transforms come to them: those
// are bound by memory, products are not. Asking for what lies behind the last row is harmless. Always inline: gcc
// takes a call that does nothing else for one without effect, and drops it.
template <int WRITE, typename T>
__attribute__((always_inline)) inline void fetch(const T *x, int64_t C, const Strips &strips, int64_t strip,
                                                 int64_t size, int64_t p, int64_t parts) {
    const T *start = x + (strip / strips.down * strips.H + strip % strips.down * 4) * strips.W * C;
    const int64_t values = size * 4 * strips.W * C;
    const int64_t stop = values * (p + 1) / parts;
    constexpr int64_t line = LINE * 4 / static_cast<int64_t>(sizeof(T));
    for (int64_t f = values * p / parts; f < stop; f += line) __builtin_prefetch(start + f, WRITE, 2);
}

// The rows of a strip in float32, from the row before it to the one behind it (SIDE = 1) or its own 4 (SIDE = 0): zeros
// where the image ends. Strips come in order. Rows in bf16 are converted once, and two of them stay for the next strip.
template <typename T, int SIDE>
class Window {
    static constexpr int HEIGHT = 4 + 2 * SIDE;
    const T *x;
    const Strips &strips;
    const int64_t row;  // values of a row
    const float *zeros;
    float *room;
    int64_t image = -1, held = 0;  // rows of this image before `held` are in `room`, or no longer needed

  public:
    const float *at[HEIGHT];

    Window(const T *x, const Strips &strips, int64_t C, const float *zeros, float *room)
        : x(x), strips(strips), row(strips.W * C), zeros(zeros), room(room) {}

    void move(int64_t strip) {
        const int64_t n = strip / strips.down, top = strip % strips.down * 4 - SIDE;
        if (n != image) image = n, held = 0;
        for (int i = 0; i < HEIGHT; ++i) {
            const int64_t h = top + i;
            at[i] = h < 0 || h >= strips.H ? zeros : place(h);
        }
    }

  private:
    const float *place(int64_t h) {
        const T *from = x + (image * strips.H + h) * row;
        if constexpr (std::is_same<T, float>::value) return from;
        else {
            float *to = room + (h + SIDE) % HEIGHT * row;
            if (h >= held) {
                for (int64_t f = 0; f < row; f += LANES) store(to + f, load(from + f));
                held = h + 1;
            }
            return to;
        }
    }
};

// Both transforms of a strip, down its columns and then along the rows of each tile, for the rows FIRST ... of the 6 x
// 6 positions: out[position, tile, C], positions `step` apart. `half` holds what lies between; its columns outside the
// image are zeros already. FROM values make 6: 6 of the input, from the column before the tile (SIDE = 1), or 4 of the
// gradient.
template <int FROM, int SIDE, Transform transform, int FIRST, int ROWS_OUT>
void transform_strip(const float *const *at, int64_t C, const Strips &strips, float *half, float *out, int64_t step) {
    const int64_t length = strips.columns(2 * SIDE) * C;
    for (int64_t f = 0; f < strips.W * C; f += LANES) {
        vec in[FROM], column[6];
        for (int i = 0; i < FROM; ++i) in[i] = load(at[i] + f);
        transform(in, column);
        for (int i = 0; i < ROWS_OUT; ++i) store(half + i * length + SIDE * C + f, column[FIRST + i]);
    }
    for (int64_t t = 0; t < strips.across; ++t)
        for (int64_t c = 0; c < C; c += LANES)
            for (int i = 0; i < ROWS_OUT; ++i) {
                const float *from = half + i * length + t * 4 * C + c;
                vec in[FROM], row[6];
                for (int j = 0; j < FROM; ++j) in[j] = load(from + j * C);
                transform(in, row);
                for (int j = 0; j < 6; ++j) store(out + (i * 6 + j) * step + t * C + c, row[j]);
            }
}

// `bias`: a row of it, [W, K].
template <typename T>
void output_strip(const float *products, int64_t step, const Strips &strips, int64_t strip, const float *bias,
                  float *half, T *y, int64_t K) {
    const int64_t length = strips.columns(0) * K, n = strip / strips.down, top = strip % strips.down * 4;
    for (int64_t t = 0; t < strips.across; ++t)
        for (int64_t k = 0; k < K; k += LANES)
            for (int i = 0; i < 6; ++i) {
                vec in[6], row[4];
                for (int j = 0; j < 6; ++j) in[j] = load(products + (i * 6 + j) * step + t * K + k);
                output_1d(in, row);
                for (int j = 0; j < 4; ++j) store(half + i * length + (t * 4 + j) * K + k, row[j]);
            }
    const int64_t rows = strips.H - top < 4 ? strips.H - top : 4, width = strips.W * K;
    T *out = y + (n * strips.H + top) * width;
    for (int64_t f = 0; f < width; f += LANES) {
        vec in[6], column[4];
        for (int i = 0; i < 6; ++i) in[i] = load(half + i * length + f);
        output_1d(in, column);
        const vec added = load(bias + f);
        store(out + f, column[0] + added);
        if (rows > 1) store(out + width + f, column[1] + added);
        if (rows > 2) store(out + 2 * width + f, column[2] + added);
        if (rows > 3) store(out + 3 * width + f, column[3] + added);
    }
}

// Positions are `step` floats apart; the line between them keeps them out of each other's cache sets.
inline int64_t step_of(int64_t tiles, int64_t C) { return tiles * C + LINE; }
inline int64_t rounded(int64_t tiles) { return (tiles + ROWS - 1) / ROWS * ROWS; }  // products take groups of rows
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Floats that one thread needs: rows of zeros, of the bias and of two windows, two strips halfway through their
// transforms, all positions of a block.
inline int64_t scratch_floats(const Strips &strips, int64_t C, int64_t K) {
    const int64_t tiles = rounded(strips.block(C + K) * strips.across);
    const int64_t rows = 14 * strips.W + 12 * strips.columns(2);
    return rows * larger(C, K) + (POSITIONS + 1) * (step_of(tiles, C) + step_of(tiles, K));
}

// U[36, K / width, C, width] = G g G^T of w[K, 3, 3, C]; flipped: of the kernels that the input gradient convolves
// with, where C and K are those of that convolution and w is [C, 3, 3, K].
template <typename T>
void transform_kernels(const T *w, float *U, int64_t C, int64_t K, int64_t width, bool flipped, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t c = 0; c < C; ++c)
        for (int64_t k = 0; k < K; k += LANES) {
            vec half[6][3];
            for (int j = 0; j < 3; ++j) {
                vec taps[3], column[6];
                for (int i = 0; i < 3; ++i) {
                    const int tap = i * 3 + j;
                    if (flipped) taps[i] = load(w + (c * TAPS + 8 - tap) * K + k);
                    else for (int l = 0; l < LANES; ++l) taps[i][l] = value(w[((k + l) * TAPS + tap) * C + c]);
                }
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

// The products of position p are written where the input of position p - 1 lay: a block takes half the room.
template <int COLUMNS, typename T>
void convolve(const T *x, const T *w, const T *bias_K, T *y, const Strips &strips, int64_t C, int64_t K,
              bool flipped, float *work, int threads) {
    constexpr int64_t width = COLUMNS * LANES;
    const int64_t size = strips.block(C + K), step = step_of(rounded(size * strips.across), larger(C, K));
    const int64_t blocks = (strips.count + size - 1) / size, each = scratch_floats(strips, C, K);
    float *U = work, *scratch = work + POSITIONS * C * K;
    transform_kernels(w, U, C, K, width, flipped, threads);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int part = 0; part < threads; ++part) {
        float *zeros = scratch + part * each, *room = zeros + strips.W * C, *half = room + 6 * strips.W * C;
        float *bias = half + 6 * strips.columns(2) * C, *half_out = bias + strips.W * K;
        float *out = half_out + 6 * strips.columns(0) * K, *in = out + step;
        std::memset(zeros, 0, (half_out - zeros) * sizeof(float));
        for (int64_t i = 0; bias_K && i < strips.W * K; ++i) bias[i] = value(bias_K[i % K]);
        Window<T, 1> window(x, strips, C, zeros, room);
        for (int64_t block = blocks * part / threads; block < blocks * (part + 1) / threads; ++block) {
            const int64_t first = block * size, last = first + size < strips.count ? first + size : strips.count;
            const int64_t count = (last - first) * strips.across;
            for (int64_t strip = first; strip < last; ++strip) {
                window.move(strip);
                transform_strip<6, 1, input_1d, 0, 6>(window.at, C, strips, half,
                                                      in + (strip - first) * strips.across * C, step);
            }
            for (int64_t p = 0; p < POSITIONS; ++p) {
                fetch<0>(x, C, strips, first + size, size, p, POSITIONS);
                fetch<1>(y, K, strips, first, size, p, POSITIONS);
                std::memset(in + p * step + count * C, 0, (rounded(count) - count) * C * sizeof(float));
                for (int64_t k = 0; k < K; k += width)
                    for (int64_t t = 0; t < count; t += ROWS)
                        product<ROWS, COLUMNS>(in + p * step + t * C, C, 1, U + p * C * K + k * C, width,
                                               out + p * step + t * K + k, K, C, false);
            }
            for (int64_t strip = first; strip < last; ++strip)
                output_strip(out + (strip - first) * strips.across * K, step, strips, strip, bias, half_out, y, K);
        }
    }
}

// The sums [36, C, K] of a chunk of strips are taken for all positions at once or, where they would outgrow the second
// cache, for 2 rows of 6 positions after the other. Few chunks: their sums must be added. Chunks times pairs of rows
// can run in parallel.
inline bool by_rows(int64_t C, int64_t K) { return C * K > 1024; }
inline int64_t chunks_of(int64_t C, int64_t K) { return by_rows(C, K) ? 2 : 8; }

template <typename T>
struct Gradient {
    const T *x, *dy;
    int64_t C, K;
    const Strips &strips;
};

// The sums over the strips start ... stop, for ROWS_OUT of the 6 rows of positions.
template <int COLUMNS, int FIRST, int ROWS_OUT, typename T>
void sum_products(const Gradient<T> &g, int64_t start, int64_t stop, float *scratch, float *sums) {
    const Strips &strips = g.strips;
    const int64_t C = g.C, K = g.K, size = strips.block(by_rows(C, K) ? 0 : C + K);
    const int64_t tiles = rounded(size * strips.across);
    const int64_t in_step = step_of(tiles, C), out_step = step_of(tiles, K);
    float *zeros = scratch, *room = zeros + strips.W * larger(C, K), *room_out = room + 6 * strips.W * C;
    float *half = room_out + 4 * strips.W * K, *half_out = half + 6 * strips.columns(2) * C;
    float *in = half_out + 6 * strips.columns(0) * K, *out = in + ROWS_OUT * 6 * in_step;
    std::memset(zeros, 0, (in - zeros) * sizeof(float));
    Window<T, 1> window(g.x, strips, C, zeros, room);
    Window<T, 0> window_out(g.dy, strips, K, zeros, room_out);
    for (int64_t first = start; first < stop; first += size) {
        const int64_t last = first + size < stop ? first + size : stop;
        for (int64_t strip = first; strip < last; ++strip) {
            const int64_t tile = (strip - first) * strips.across;
            window.move(strip);
            window_out.move(strip);
            transform_strip<6, 1, input_1d, FIRST, ROWS_OUT>(window.at, C, strips, half, in + tile * C, in_step);
            transform_strip<4, 0, gradient_1d, FIRST, ROWS_OUT>(window_out.at, K, strips, half_out, out + tile * K,
                                                                out_step);
        }
        for (int p = 0; p < ROWS_OUT * 6; ++p) {
            fetch<0>(g.x, C, strips, first + size, size, p, ROWS_OUT * 6);
            fetch<0>(g.dy, K, strips, first + size, size, p, ROWS_OUT * 6);
            outer_products<COLUMNS>(in + p * in_step, out + p * out_step, sums + (FIRST * 6 + p) * C * K, C, K,
                                    (last - first) * strips.across, first > start);
        }
    }
}

template <int COLUMNS, typename T>
void sum_rows(int64_t pair, const Gradient<T> &g, int64_t start, int64_t stop, float *scratch, float *sums) {
    if (pair == 0) sum_products<COLUMNS, 0, 2>(g, start, stop, scratch, sums);
    else if (pair == 1) sum_products<COLUMNS, 2, 2>(g, start, stop, scratch, sums);
    else sum_products<COLUMNS, 4, 2>(g, start, stop, scratch, sums);
}

template <int COLUMNS, typename T>
void weight_gradient(const T *x, const T *dy, T *dw, const Strips &strips, int64_t C, int64_t K,
                     float *work, int threads) {
    const int64_t most = chunks_of(C, K), chunks = strips.count < most ? strips.count : most;
    const int64_t each = scratch_floats(strips, C, K);
    float *sums = work, *scratch = work + most * POSITIONS * C * K;
    const Gradient<T> gradient = {x, dy, C, K, strips};
    const int64_t pairs = by_rows(C, K) ? 3 : 1, tasks = chunks * pairs;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int part = 0; part < threads; ++part)
        for (int64_t task = tasks * part / threads; task < tasks * (part + 1) / threads; ++task) {
            const int64_t chunk = task / pairs;
            const int64_t start = strips.count * chunk / chunks, stop = strips.count * (chunk + 1) / chunks;
            float *own = scratch + part * each, *to = sums + chunk * POSITIONS * C * K;
            if (pairs == 1) sum_products<COLUMNS, 0, 6>(gradient, start, stop, own, to);
            else sum_rows<COLUMNS>(task % pairs, gradient, start, stop, own, to);
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
                    for (int l = 0; l < LANES; ++l)
                        store(dw + ((k + l) * TAPS + i * 3 + j) * C + c, static_cast<float>(row[j][l]));
            }
        }
}

}  // namespace

// winograd_convolve: x[N, H, W, C] and w[K, 3, 3, C] to y[N, H, W, K], with bias[K] where there is one; flipped: w is
// [C, 3, 3, K], and y the gradient of its input where x is that of its output.
// winograd_weight_gradient: dw[K, 3, 3, C] of x[N, H, W, C] and dy[N, H, W, K].
#define INSTANTIATE(NAME, T)                                                                                          \
    extern "C" void winograd_convolve_##NAME(const T *x, const T *w, const T *bias, T *y, int64_t N, int64_t H,       \
                                             int64_t W, int64_t C, int64_t K, int flipped, float *work,               \
                                             int threads) {                                                           \
        const Strips strips(N, H, W);                                                                                 \
        if (K % (2 * LANES) == 0) convolve<2>(x, w, bias, y, strips, C, K, flipped, work, threads);                   \
        else convolve<1>(x, w, bias, y, strips, C, K, flipped, work, threads);                                        \
    }                                                                                                                 \
    extern "C" void winograd_weight_gradient_##NAME(const T *x, const T *dy, T *dw, int64_t N, int64_t H, int64_t W,  \
                                                    int64_t C, int64_t K, float *work, int threads) {                 \
        const Strips strips(N, H, W);                                                                                 \
        if (K % (2 * LANES) == 0) weight_gradient<2>(x, dy, dw, strips, C, K, work, threads);                         \
        else weight_gradient<1>(x, dy, dw, strips, C, K, work, threads);                                              \
    }

INSTANTIATE(bf16, bf16)
INSTANTIATE(fp32, float)

// Floats of work space that either call needs.
extern "C" int64_t winograd_floats(int64_t H, int64_t W, int64_t C, int64_t K, int threads) {
    return POSITIONS * chunks_of(C, K) * C * K + threads * scratch_floats(Strips(1, H, W), C, K);
}
