// Direct 3 x 3 convolutions of stride 1 or 2, padding 1, for channels-last activations and weights: what Winograd's do
// not take.
//
//     y[h, w, k] = bias[k] + sum over i, j, c of  x[s h + i - 1, s w + j - 1, c]  weight[k, i, j, c]
//     dx[u, v, c] = sum over i, j, k of  dy[h, w, k]  weight[k, i, j, c],   2 h + i - 1 = u,  2 w + j - 1 = v  (s = 2)
//     dweight[k, i, j, c] = sum over n, h, w of  x[s h + i - 1, s w + j - 1, c]  dy[h, w, k]
//
// Images pass one by one through a copy in the cache with zeros around it. There the three neighbours of a place in a
// row, with all their channels, are 3 C values in a row of memory: forward and weight gradient are three products of
// matrices, one for each i. The places of dx fall into four phases by whether u and v are odd, each a product over
// one, two or four neighbours in dy.
//
// Products run on units: float32, or, where the processor multiplies them, pairs of bf16. Sums are in float32. Weight
// gradients are summed over a fixed number of chunks of images, so that they do not depend on the number of threads.

#include <cstdint>
#include <cstring>

#include "units.h"

namespace {

constexpr int64_t TAPS = 9, CHUNKS = 16, MOST_PLACES = 16;

// Places of a row that a product takes at once: as many sums as hide the latency of a sum, and fit into registers.
template <int COLUMNS> constexpr int PLACES = (LANES == 16 ? 16 : 12) / COLUMNS;
template <int COLUMNS> constexpr int FEWER = (LANES == 16 ? 16 : 8) / COLUMNS;  // for rows that they divide better

struct Geometry {
    int64_t N, H, W, C, K, stride, h, w, depth, rows, columns;
    // Elements of an image or a gradient, with zeros around it and what products read behind it.
    int64_t image() const { return (rows * columns + MOST_PLACES * stride) * depth + 16; }
    int64_t gradient() const { return ((h + 1) * (w + 1) + MOST_PLACES) * K + 16; }
    int64_t weights() const { return TAPS * depth * K; }
    int64_t each() const { return 2 * (image() + gradient()); }  // float32 values for each thread
};

inline int64_t up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// C channels become `depth`, and an image with zeros around it [rows, columns, depth].
template <typename U> Geometry geometry(int64_t N, int64_t H, int64_t W, int64_t C, int64_t K, int64_t stride) {
    const int64_t h = (H - 1) / stride + 1, w = (W - 1) / stride + 1;
    const int64_t rows = stride * (h - 1) + 3, columns = stride * (up(w, U::PER) - 1) + 3;
    return {N, H, W, C, K, stride, h, w, up(C, U::PER), rows, columns};
}

inline void convert(float from, float &to) { to = from; }
inline void convert(bf16 from, bf16 &to) { to = from; }
inline void convert(bf16 from, float &to) { to = value(from); }

template <typename T, typename E> inline void convert(const T *from, E *to, int64_t count) {
    int64_t f = 0;
    if (sizeof(T) != sizeof(E))
        for (; f + LANES <= count; f += LANES) store(to + f, load(from + f));
    else std::memcpy(to, from, count * sizeof(E)), f = count;
    for (; f < count; ++f) convert(from[f], to[f]);
}

// x[H, W, C] into padded[rows, columns, depth], whose border is zeros already.
template <typename T, typename E> void pad(const T *x, E *padded, const Geometry &g) {
    const int64_t height = g.H < g.rows - 1 ? g.H : g.rows - 1, width = g.W < g.columns - 1 ? g.W : g.columns - 1;
    for (int64_t u = 0; u < height; ++u) {
        const T *from = x + u * g.W * g.C;
        E *to = padded + ((u + 1) * g.columns + 1) * g.depth;
        if (g.C == g.depth) convert(from, to, width * g.C);
        else
            for (int64_t v = 0; v < width; ++v, from += g.C, to += g.depth)
                for (int64_t c = 0; c < g.C; ++c) convert(from[c], to[c]);
    }
}

// packed[outputs / width, rows, width]: units of U::PER elements along the rows of `weight(row, output)`.
template <typename U, typename Weight>
void pack(typename U::unit *packed, int64_t rows, int64_t outputs, int64_t width, Weight weight) {
    for (int64_t row = 0; row < rows; ++row)
        for (int64_t o = 0; o < outputs; ++o) {
            typename U::element first, last;
            convert(weight(row * U::PER, o), first);
            convert(weight(row * U::PER + U::PER - 1, o), last);
            packed[(o / width * rows + row) * width + o % width] = U::made(first, last);
        }
}

// A row of `places` places, each PLACES of them as `product` says: to `out`, whose places are `step` values apart.
template <typename U, int COLUMNS, typename T>
void multiply_row(Product<U> product, int64_t places, T *out, int64_t step) {
    constexpr int64_t MOST = PLACES<COLUMNS>, LESS = FEWER<COLUMNS>, width = COLUMNS * LANES;
    alignas(64) float sums[MOST * width];
    product.sum = sums, product.sum_step = width;
    for (int64_t at = 0, size; at < places; at += size, product.a += size * product.row) {
        const int64_t left = places - at;
        size = left > LESS && left != 2 * LESS ? MOST : LESS;
        if (size == MOST) multiply<U, MOST, COLUMNS>(product);
        else multiply<U, LESS, COLUMNS>(product);
        for (int64_t r = 0; r < size && r < left; ++r)
            for (int64_t f = 0; f < width; f += LANES) store(out + (at + r) * step + f, load(sums + r * width + f));
    }
}

template <typename T, typename U, int COLUMNS>
void forward(const T *x, const T *weight, const T *bias_K, T *y, const Geometry &g, float *work, int threads) {
    typedef typename U::unit Unit;
    constexpr int64_t width = COLUMNS * LANES;
    const int64_t rows = TAPS * g.depth / U::PER, pixel = g.depth / U::PER, line = g.columns * pixel;
    Unit *packed = reinterpret_cast<Unit *>(work);
    float *bias = work + g.weights(), *scratch = bias + g.K;
    if (bias_K) convert(bias_K, bias, g.K);
    pack<U>(packed, rows, g.K, width, [&](int64_t row, int64_t k) {
        const int64_t tap = row / g.depth, c = row % g.depth;
        return c < g.C ? weight[(k * TAPS + tap) * g.C + c] : T{};
    });
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int part = 0; part < threads; ++part) {
        Unit *image = reinterpret_cast<Unit *>(scratch + part * g.each());
        std::memset(image, 0, g.image() * sizeof(float));
        for (int64_t n = g.N * part / threads; n < g.N * (part + 1) / threads; ++n) {
            pad(x + n * g.H * g.W * g.C, reinterpret_cast<typename U::element *>(image), g);
            for (int64_t k = 0; k < g.K; k += width)
                for (int64_t h = 0; h < g.h; ++h) {
                    const Product<U> product = {image + g.stride * h * line, g.stride * pixel, 1, line,
                                                packed + k * rows, width, 3 * pixel * width, 3 * pixel, 3,
                                                bias_K ? bias + k : nullptr, 0, nullptr, 0};
                    multiply_row<U, COLUMNS>(product, g.w, y + (n * g.h + h) * g.w * g.K + k, g.K);
                }
        }
    }
}

// The rows of a phase's weights begin behind those of the phases before it: one, two, two and four taps.
inline int64_t first_tap(int odd_u, int odd_v) { return odd_u ? 3 + 2 * odd_v : odd_v; }

template <typename T, typename U>
void pack_phases(typename U::unit *packed, const T *weight, const Geometry &g, int64_t width) {
    for (int odd_u = 0; odd_u < 2; ++odd_u)
        for (int odd_v = 0; odd_v < 2; ++odd_v) {
            const int64_t taps = (1 + odd_u) * (1 + odd_v), pixel = g.K / U::PER;
            typename U::unit *to = packed + first_tap(odd_u, odd_v) * pixel * g.C;
            pack<U>(to, taps * pixel, g.C, width, [&](int64_t row, int64_t c) {
                const int64_t k = row % g.K, right = row / g.K % (1 + odd_v), below = row / g.K / (1 + odd_v);
                const int64_t i = odd_u ? 2 - 2 * below : 1, j = odd_v ? 2 - 2 * right : 1;
                return weight[(k * TAPS + i * 3 + j) * g.C + c];
            });
        }
}

// The input gradient of one image, from gradient[h + 1, w + 1, K] with zeros at its ends.
template <typename T, typename U, int COLUMNS>
void input_gradient(const typename U::unit *gradient, const typename U::unit *packed, T *dx, const Geometry &g) {
    constexpr int64_t width = COLUMNS * LANES;
    const int64_t pixel = g.K / U::PER, line = (g.w + 1) * pixel;
    for (int64_t u = 0; u < g.H; ++u)
        for (int odd_v = 0; odd_v < 2; ++odd_v) {
            const int odd_u = u % 2;
            const int64_t depth = (1 + odd_v) * pixel, rows = (1 + odd_u) * depth;
            const typename U::unit *weights = packed + first_tap(odd_u, odd_v) * pixel * g.C;
            for (int64_t c = 0; c < g.C; c += width) {
                const Product<U> product = {gradient + u / 2 * line, pixel, 1, line, weights + c * rows, width,
                                            depth * width, depth, 1 + odd_u, nullptr, 0, nullptr, 0};
                multiply_row<U, COLUMNS>(product, (g.W + 1 - odd_v) / 2, dx + (u * g.W + odd_v) * g.C + c, 2 * g.C);
            }
        }
}

// What the products of a weight gradient read: units along the places of a row.
template <typename U> struct Along {
    const typename U::unit *image, *gradient;
    int64_t places, line;  // of a row, and units from a row of the gradient to the next
};

// Float32: the copies themselves.
inline Along<Single> along(const float *image, const float *gradient, float *, const Geometry &g) {
    return {image, gradient, g.w, (g.w + 1) * g.K};
}

#if defined(__AVX512BF16__) && defined(__AVX512F__)
// Neighbours in a row of the gradient, and the places that they are multiplied with.
inline Along<Pair> along(const bf16 *image, const bf16 *gradient, uint32_t *pairs, const Geometry &g) {
    uint32_t *to = pairs + g.image();
    const int64_t next = g.stride * g.depth, places = (g.w + 1) / 2;
    for (int64_t f = 0; f < g.rows * g.columns * g.depth; ++f) pairs[f] = Pair::made(image[f], image[f + next]);
    for (int64_t h = 0; h < g.h; ++h)
        for (int64_t p = 0; p < places; ++p) {
            const bf16 *from = gradient + (h * (g.w + 1) + 2 * p) * g.K;
            for (int64_t k = 0; k < g.K; ++k) to[(h * places + p) * g.K + k] = Pair::made(from[k], from[k + g.K]);
        }
    return {pairs, to, places, places * g.K};
}
#endif

// sums[3, 3 * depth, K] (+)= the products of one image, R rows at a time.
template <typename U, int R, int COLUMNS>
void add_products(const Along<U> &from, float *sums, const Geometry &g, bool add) {
    for (int64_t i = 0; i < 3; ++i)
        for (int64_t row = 0; row < 3 * g.depth; row += R)
            for (int64_t k = 0; k < g.K; k += COLUMNS * LANES) {
                float *sum = sums + (i * 3 * g.depth + row) * g.K + k;
                multiply<U, R, COLUMNS>({from.image + i * g.columns * g.depth + row, 1, U::PER * g.stride * g.depth,
                                         g.stride * g.columns * g.depth, from.gradient + k, g.K, from.line, from.places,
                                         g.h, add ? sum : nullptr, g.K, sum, g.K});
            }
}

template <typename U, int COLUMNS>
void add_image(const Along<U> &from, float *sums, const Geometry &g, bool add) {
    constexpr int MOST = LANES == 16 ? 12 : 6;
    if (3 * g.depth % MOST == 0) add_products<U, MOST, COLUMNS>(from, sums, g, add);
    else if (3 * g.depth % 9 == 0) add_products<U, 9, 1>(from, sums, g, add);  // images of three channels
    else add_products<U, 3, COLUMNS>(from, sums, g, add);
}

// dx where it is given, and dweight where it is.
template <typename T, typename U, int K_COLUMNS, int C_COLUMNS>
void backward(const T *x, const T *weight, const T *dy, T *dx, T *dweight, const Geometry &g, float *work,
              int threads) {
    typedef typename U::unit Unit;
    typedef typename U::element Element;
    Unit *packed = reinterpret_cast<Unit *>(work);
    float *sums = work + g.weights(), *scratch = sums + CHUNKS * g.weights();
    if (dx) pack_phases<T, U>(packed, weight, g, C_COLUMNS * LANES);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int part = 0; part < threads; ++part) {
        float *own = scratch + part * g.each();
        Element *image = reinterpret_cast<Element *>(own), *gradient = reinterpret_cast<Element *>(own + g.image());
        Unit *units = reinterpret_cast<Unit *>(own + g.image() + g.gradient());
        std::memset(own, 0, (g.image() + g.gradient()) * sizeof(float));
        for (int64_t chunk = CHUNKS * part / threads; chunk < CHUNKS * (part + 1) / threads; ++chunk) {
            const int64_t start = g.N * chunk / CHUNKS, stop = g.N * (chunk + 1) / CHUNKS;
            float *sum = sums + chunk * g.weights();
            if (dweight && start == stop) std::memset(sum, 0, g.weights() * sizeof(float));
            for (int64_t n = start; n < stop; ++n) {
                for (int64_t h = 0; h < g.h; ++h)
                    convert(dy + (n * g.h + h) * g.w * g.K, gradient + h * (g.w + 1) * g.K, g.w * g.K);
                if (dx)
                    input_gradient<T, U, C_COLUMNS>(reinterpret_cast<Unit *>(gradient), packed,
                                                    dx + n * g.H * g.W * g.C, g);
                if (!dweight) continue;
                pad(x + n * g.H * g.W * g.C, image, g);
                add_image<U, K_COLUMNS>(along(image, gradient, units, g), sum, g, n > start);
            }
        }
    }
    if (!dweight) return;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < TAPS * g.depth; ++row)
        for (int64_t k = 0; k < g.K && row % g.depth < g.C; k += LANES) {
            vec sum{};
            for (int64_t chunk = 0; chunk < CHUNKS; ++chunk) sum += load(sums + chunk * g.weights() + row * g.K + k);
            for (int l = 0; l < LANES; ++l)
                store(dweight + ((k + l) * TAPS + row / g.depth) * g.C + row % g.depth, sum[l]);
        }
}

template <typename T>
void any_forward(const T *x, const T *weight, const T *bias, T *y, int64_t N, int64_t H, int64_t W, int64_t C,
                 int64_t K, int64_t stride, float *work, int threads) {
    typedef typename Storage<T>::units U;
    const Geometry g = geometry<U>(N, H, W, C, K, stride);
    if (K % (2 * LANES) == 0) forward<T, U, 2>(x, weight, bias, y, g, work, threads);
    else forward<T, U, 1>(x, weight, bias, y, g, work, threads);
}

template <typename T>
void any_backward(const T *x, const T *weight, const T *dy, T *dx, T *dweight, int64_t N, int64_t H, int64_t W,
                  int64_t C, int64_t K, int64_t stride, float *work, int threads) {
    typedef typename Storage<T>::units U;
    const Geometry g = geometry<U>(N, H, W, C, K, stride);
    const bool two = C % (2 * LANES) == 0;
    if (K % (2 * LANES) == 0) {
        if (two) backward<T, U, 2, 2>(x, weight, dy, dx, dweight, g, work, threads);
        else backward<T, U, 2, 1>(x, weight, dy, dx, dweight, g, work, threads);
    } else if (two) backward<T, U, 1, 2>(x, weight, dy, dx, dweight, g, work, threads);
    else backward<T, U, 1, 1>(x, weight, dy, dx, dweight, g, work, threads);
}

}  // namespace

#define INSTANTIATE(NAME, T)                                                                                          \
    extern "C" void direct_forward_##NAME(const T *x, const T *weight, const T *bias, T *y, int64_t N, int64_t H,     \
                                          int64_t W, int64_t C, int64_t K, int64_t stride, float *work,               \
                                          int threads) {                                                              \
        any_forward(x, weight, bias, y, N, H, W, C, K, stride, work, threads);                                        \
    }                                                                                                                 \
    extern "C" void direct_backward_##NAME(const T *x, const T *weight, const T *dy, T *dx, T *dweight, int64_t N,    \
                                           int64_t H, int64_t W, int64_t C, int64_t K, int64_t stride, float *work,   \
                                           int threads) {                                                             \
        any_backward(x, weight, dy, dx, dweight, N, H, W, C, K, stride, work, threads);                               \
    }

INSTANTIATE(bf16, bf16)
INSTANTIATE(fp32, float)

// Float32 values of work space that either call needs.
extern "C" int64_t direct_floats(int64_t H, int64_t W, int64_t C, int64_t K, int64_t stride, int threads) {
    const Geometry g = geometry<Storage<bf16>::units>(1, H, W, C, K, stride);
    return (CHUNKS + 1) * g.weights() + K + threads * g.each();
}
