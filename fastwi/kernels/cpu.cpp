// CPU kernels over channels-last activations: batch norm fused with ReLU and the residual sum, the option-A shortcut, and
// augmentation.
//
// An activation is a contiguous matrix x[R, C] of R = N * H * W rows. It is walked in lanes of 64 elements: where C
// divides 64, lane j holds channel j % C of 64 / C neighbouring rows; where 64 divides C, each block of 64
// channels is walked on its own. Sums run in float32 over short spans and in float64 over those, and the rows are
// cut into a fixed number of chunks, so that a result does not depend on the number of threads.
//
// Plain loops over fixed widths: the compiler makes vector code of them for whatever machine it runs on.

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

constexpr int LANES = 64;
constexpr int64_t CHUNKS = 64;  // of rows; fixed, see above
constexpr int64_t SPAN = 128;   // rows summed in float32 before they are added in float64

struct bf16 {
    uint16_t bits;
};

inline float load(const float *p) { return *p; }
inline float load(const bf16 *p) {
    const uint32_t u = static_cast<uint32_t>(p->bits) << 16;
    float f;
    std::memcpy(&f, &u, 4);
    return f;
}
inline void store(float *p, float f) { *p = f; }
inline void store(bf16 *p, float f) {  // to nearest, ties to even; not-a-number stays one
    uint32_t u;
    std::memcpy(&u, &f, 4);
    const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    p->bits = static_cast<uint16_t>(f != f ? 0x7fc0u : rounded);
}

// How [R, C] is walked: `rows` rows of 64 lanes, `stride` elements apart, in `blocks` blocks of channels.
struct Walk {
    int64_t rows, stride, blocks;
    int channels;  // that the 64 lanes of a block hold
};

inline Walk walk_of(int64_t R, int64_t C) {
    if (C <= LANES) return {R * C / LANES, LANES, 1, static_cast<int>(C)};
    return {R, C, C / LANES, LANES};
}

// acc0[c], acc1[c] = sums over rows of the two values that `each(offset, lane, channel base, v0, v1)` yields.
template <typename Each>
void reduce(int64_t R, int64_t C, int threads, double *partial, double *sum0, double *sum1, Each each) {
    const Walk w = walk_of(R, C);
    const int64_t pieces = CHUNKS * w.blocks;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t piece = 0; piece < pieces; ++piece) {
        const int64_t block = piece / CHUNKS, chunk = piece % CHUNKS;
        const int64_t first = w.rows * chunk / CHUNKS, last = w.rows * (chunk + 1) / CHUNKS;
        double d0[LANES] = {0}, d1[LANES] = {0};
        for (int64_t r0 = first; r0 < last; r0 += SPAN) {
            const int64_t r1 = r0 + SPAN < last ? r0 + SPAN : last;
            float f0[LANES] = {0}, f1[LANES] = {0};
            for (int64_t r = r0; r < r1; ++r) {
                const int64_t at = r * w.stride + block * LANES;
                each(at, block * LANES, f0, f1);
            }
            for (int j = 0; j < LANES; ++j) {
                d0[j] += f0[j];
                d1[j] += f1[j];
            }
        }
        double *out = partial + piece * 2 * LANES;
        for (int j = 0; j < LANES; ++j) {
            out[j] = d0[j];
            out[LANES + j] = d1[j];
        }
    }
    for (int64_t c = 0; c < C; ++c) sum0[c] = sum1[c] = 0;
    for (int64_t piece = 0; piece < pieces; ++piece) {
        const double *in = partial + piece * 2 * LANES;
        const int64_t base = (piece / CHUNKS) * LANES;
        for (int j = 0; j < LANES; ++j) {
            const int64_t c = base + j % w.channels;
            sum0[c] += in[j];
            sum1[c] += in[LANES + j];
        }
    }
}

// each(at, lane base) over all lanes of [R, C], in parallel.
template <typename Each>
void apply(int64_t R, int64_t C, int threads, Each each) {
    const Walk w = walk_of(R, C);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < w.rows; ++r)
        for (int64_t block = 0; block < w.blocks; ++block) each(r * w.stride + block * LANES, block * LANES);
}

// Per-channel coefficients repeated to the lanes of a block, so that inner loops need no modulus.
inline void tile(const float *in, float *out, int64_t C) {
    const int64_t lanes = C <= LANES ? LANES : C;
    for (int64_t j = 0; j < lanes; ++j) out[j] = in[j % C];
}

template <typename T>
void stats(const T *x, int64_t R, int64_t C, int threads, double *partial, double *sum, double *square) {
    reduce(R, C, threads, partial, sum, square, [=](int64_t at, int64_t, float *f0, float *f1) {
#pragma omp simd
        for (int j = 0; j < LANES; ++j) {
            const float v = load(x + at + j);
            f0[j] += v;
            f1[j] += v * v;
        }
    });
}

template <typename T, bool RELU, bool RESIDUAL>
void normalise(const T *x, const T *residual, T *y, const float *scale, const float *shift, int64_t R, int64_t C,
               int threads) {
    apply(R, C, threads, [=](int64_t at, int64_t lane) {
#pragma omp simd
        for (int j = 0; j < LANES; ++j) {
            float v = load(x + at + j) * scale[lane + j] + shift[lane + j];
            if (RESIDUAL) v += load(residual + at + j);
            if (RELU) v = v > 0 ? v : (v != v ? v : 0.0f);
            store(y + at + j, v);
        }
    });
}

template <typename T>
void write_output(const T *x, const T *residual, T *y, int relu, const float *scale, const float *shift, int64_t R,
                  int64_t C, int threads) {
    if (residual) {
        if (relu) normalise<T, true, true>(x, residual, y, scale, shift, R, C, threads);
        else normalise<T, false, true>(x, residual, y, scale, shift, R, C, threads);
    } else if (relu) normalise<T, true, false>(x, residual, y, scale, shift, R, C, threads);
    else normalise<T, false, false>(x, residual, y, scale, shift, R, C, threads);
}

// Where the gradient passes the ReLU: everywhere; where y > 0; or where the y that x gives is > 0, which saves reading y
// and is possible where no residual was added.
enum Mask { NONE, FROM_Y, FROM_X };

// Per-lane coefficients of the backward pass.
struct Lanes {
    float *mean, *a, *b, *c, *scale, *shift;
};

template <typename T, Mask MASK>
inline float pass(float v, const T *y, const T *x, int64_t at, const Lanes &l, int64_t lane) {
    if (MASK == FROM_Y) return load(y + at) > 0 ? v : 0.0f;
    if (MASK == FROM_X) return load(x + at) * l.scale[lane] + l.shift[lane] > 0 ? v : 0.0f;
    return v;
}

// sum0 = sum of g, sum1 = sum of g * (x - mean), where g is dy (+ dy2) behind the mask. g is kept where KEEP.
template <typename T, Mask MASK, bool TWO, bool KEEP>
void backward_sums(const T *dy, const T *dy2, const T *y, const T *x, T *g, const Lanes l, int64_t R, int64_t C,
                   int threads, double *partial, double *sum0, double *sum1) {
    reduce(R, C, threads, partial, sum0, sum1, [=](int64_t at, int64_t lane, float *f0, float *f1) {
#pragma omp simd
        for (int j = 0; j < LANES; ++j) {
            float v = load(dy + at + j);
            if (TWO) v += load(dy2 + at + j);
            v = pass<T, MASK>(v, y, x, at + j, l, lane + j);
            if (KEEP) store(g + at + j, v);
            f0[j] += v;
            f1[j] += v * (load(x + at + j) - l.mean[lane + j]);
        }
    });
}

// dx = a * g + b * x + c, per channel.
template <typename T, Mask MASK>
void backward_apply(const T *dy, const T *y, const T *x, T *dx, const Lanes l, int64_t R, int64_t C, int threads) {
    apply(R, C, threads, [=](int64_t at, int64_t lane) {
#pragma omp simd
        for (int j = 0; j < LANES; ++j) {
            const float v = pass<T, MASK>(load(dy + at + j), y, x, at + j, l, lane + j);
            store(dx + at + j, l.a[lane + j] * v + l.b[lane + j] * load(x + at + j) + l.c[lane + j]);
        }
    });
}

// Batch norm as y = scale * x + shift. Forward and backward both call this, on the same float32 values: the mask that
// the backward pass takes from x is then that of the y that was written.
inline void fold(float weight, float bias, float mean, float inv, float *scale, float *shift) {
    *scale = weight * inv;
    *shift = bias - mean * *scale;
}

// Training: batch statistics, normalisation, running statistics. mean_C, inv_C are kept for the backward pass.
template <typename T>
void forward_train(const T *x, const T *residual, T *y, int relu, const float *weight, const float *bias, float *mean_C,
                   float *inv_C, float *running_mean, float *running_var, double factor, double eps, double *work,
                   float *tiles, int64_t R, int64_t C, int threads) {
    double *sum = work, *square = work + C, *partial = work + 2 * C;
    stats(x, R, C, threads, partial, sum, square);
    const int64_t lanes = C <= LANES ? LANES : C;
    float *scale = tiles, *shift = tiles + lanes;
    for (int64_t c = 0; c < C; ++c) {
        const double mean = sum[c] / R, raw = square[c] / R - mean * mean, var = raw > 0 ? raw : (raw != raw ? raw : 0);
        const double inv = 1 / std::sqrt(var + eps);
        mean_C[c] = static_cast<float>(mean);
        inv_C[c] = static_cast<float>(inv);
        running_mean[c] = static_cast<float>((1 - factor) * running_mean[c] + factor * mean);
        running_var[c] = static_cast<float>((1 - factor) * running_var[c] + factor * var * R / (R - 1));
        fold(weight[c], bias[c], mean_C[c], inv_C[c], scale + c, shift + c);
    }
    for (int64_t j = C; j < lanes; ++j) scale[j] = scale[j % C], shift[j] = shift[j % C];
    write_output(x, residual, y, relu, scale, shift, R, C, threads);
}

template <typename T>
void forward_eval(const T *x, const T *residual, T *y, int relu, const float *scale_C, const float *shift_C,
                  float *tiles, int64_t R, int64_t C, int threads) {
    const int64_t lanes = C <= LANES ? LANES : C;
    float *scale = tiles, *shift = tiles + lanes;
    tile(scale_C, scale, C);
    tile(shift_C, shift, C);
    write_output(x, residual, y, relu, scale, shift, R, C, threads);
}

// g is given where the residual needs its gradient, or y has two users (dy2): the masked sum of their gradients,
// written once and read in the second pass. Without y (a ReLU, but no residual) the mask comes from x.
template <typename T>
void backward(const T *dy, const T *dy2, const T *y, const T *x, T *g, T *dx, int relu, const float *weight,
              const float *bias, const float *mean_C, const float *inv_C, float *dweight, float *dbias, double *work,
              float *tiles, int64_t R, int64_t C, int threads) {
    double *sum0 = work, *sum1 = work + C, *partial = work + 2 * C;
    const int64_t n = C <= LANES ? LANES : C;
    const Lanes l = {tiles, tiles + n, tiles + 2 * n, tiles + 3 * n, tiles + 4 * n, tiles + 5 * n};
    for (int64_t j = 0; j < n; ++j) {
        const int64_t c = j % C;
        l.mean[j] = mean_C[c];
        fold(weight[c], bias[c], mean_C[c], inv_C[c], l.scale + j, l.shift + j);
    }
    const Mask mask = !relu ? NONE : y ? FROM_Y : FROM_X;
#define SUMS(MASK, TWO, KEEP) \
    backward_sums<T, MASK, TWO, KEEP>(dy, dy2, y, x, g, l, R, C, threads, partial, sum0, sum1)
    if (dy2) {
        if (mask == NONE) SUMS(NONE, true, true);
        else if (mask == FROM_Y) SUMS(FROM_Y, true, true);
        else SUMS(FROM_X, true, true);
    } else if (g) {
        if (mask == FROM_Y) SUMS(FROM_Y, false, true);
        else SUMS(FROM_X, false, true);
    } else {
        if (mask == NONE) SUMS(NONE, false, false);
        else if (mask == FROM_Y) SUMS(FROM_Y, false, false);
        else SUMS(FROM_X, false, false);
    }
#undef SUMS
    for (int64_t c = 0; c < C; ++c) {
        const double inv = inv_C[c], scale = weight[c] * inv, slope = -scale * inv * inv * sum1[c] / R;
        dbias[c] = static_cast<float>(sum0[c]);
        dweight[c] = static_cast<float>(sum1[c] * inv);
        l.a[c] = static_cast<float>(scale);
        l.b[c] = static_cast<float>(slope);
        l.c[c] = static_cast<float>(-scale * sum0[c] / R - slope * mean_C[c]);
    }
    for (int64_t j = C; j < n; ++j) l.a[j] = l.a[j % C], l.b[j] = l.b[j % C], l.c[j] = l.c[j % C];
    if (g) backward_apply<T, NONE>(g, y, x, dx, l, R, C, threads);
    else if (mask == NONE) backward_apply<T, NONE>(dy, y, x, dx, l, R, C, threads);
    else if (mask == FROM_Y) backward_apply<T, FROM_Y>(dy, y, x, dx, l, R, C, threads);
    else backward_apply<T, FROM_X>(dy, y, x, dx, l, R, C, threads);
}

// out[n, h, w, c] = table[c, image[order[n]][h + top - padding, w' + left - padding, c]], 0 outside; w' = mirrored w.
template <typename T>
void augment(const uint8_t *images, const int64_t *order, const int64_t *offset, const uint8_t *flip, const T *table,
             T *out, int64_t N, int64_t H, int64_t W, int64_t C, int64_t padding, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t n = 0; n < N; ++n) {
        const uint8_t *image = images + order[n] * H * W * C;
        const int64_t top = offset ? offset[2 * n] - padding : 0, left = offset ? offset[2 * n + 1] - padding : 0;
        const bool mirrored = flip && flip[n];
        for (int64_t h = 0; h < H; ++h) {
            const int64_t y = h + top;
            T *row = out + ((n * H + h) * W) * C;
            for (int64_t w = 0; w < W; ++w) {
                const int64_t x = (mirrored ? W - 1 - w : w) + left;
                const bool inside = y >= 0 && y < H && x >= 0 && x < W;
                const uint8_t *pixel = image + (y * W + x) * C;
                for (int64_t c = 0; c < C; ++c) row[w * C + c] = table[c * 256 + (inside ? pixel[c] : 0)];
            }
        }
    }
}

// Doubles at the start of the work space: sums. Coefficients in float32 follow.
inline int64_t norm_doubles(int64_t C) { return 2 * C + CHUNKS * (C <= LANES ? 1 : C / LANES) * 2 * LANES; }
inline float *tiles_of(double *work, int64_t C) { return reinterpret_cast<float *>(work + norm_doubles(C)); }

}  // namespace

#define INSTANTIATE(NAME, T)                                                                                         \
    extern "C" void forward_train_##NAME(const T *x, const T *residual, T *y, int relu, const float *weight,         \
                                         const float *bias, float *mean, float *inv, float *running_mean,            \
                                         float *running_var, double factor, double eps, double *work,                \
                                         int64_t R, int64_t C, int threads) {                                        \
        forward_train(x, residual, y, relu, weight, bias, mean, inv, running_mean, running_var, factor, eps, work,   \
                      tiles_of(work, C), R, C, threads);                                                             \
    }                                                                                                                \
    extern "C" void forward_eval_##NAME(const T *x, const T *residual, T *y, int relu, const float *scale,           \
                                        const float *shift, double *work, int64_t R, int64_t C, int threads) {       \
        forward_eval(x, residual, y, relu, scale, shift, tiles_of(work, C), R, C, threads);                          \
    }                                                                                                                \
    extern "C" void backward_##NAME(const T *dy, const T *dy2, const T *y, const T *x, T *g, T *dx, int relu,        \
                                    const float *weight, const float *bias, const float *mean, const float *inv,     \
                                    float *dweight, float *dbias, double *work, int64_t R, int64_t C, int threads) { \
        backward(dy, dy2, y, x, g, dx, relu, weight, bias, mean, inv, dweight, dbias, work, tiles_of(work, C), R, C, \
                 threads);                                                                                           \
    }                                                                                                                \
    extern "C" void augment_##NAME(const uint8_t *images, const int64_t *order, const int64_t *offset,               \
                                   const uint8_t *flip, const T *table, T *out, int64_t N, int64_t H, int64_t W,     \
                                   int64_t C, int64_t padding, int threads) {                                        \
        augment(images, order, offset, flip, table, out, N, H, W, C, padding, threads);                              \
    }

INSTANTIATE(bf16, bf16)
INSTANTIATE(fp32, float)

// The option-A shortcut: y[n, h, w, before + c] = x[n, h * stride, w * stride, c], other channels 0; size bytes a value.
extern "C" void shortcut_forward(const char *x, char *y, int64_t N, int64_t H, int64_t W, int64_t C, int64_t stride,
                                 int64_t before, int64_t channels, int64_t size, int threads) {
    const int64_t h2 = (H + stride - 1) / stride, w2 = (W + stride - 1) / stride, after = channels - before - C;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < N * h2; ++row) {
        const char *in = x + (row / h2 * H + row % h2 * stride) * W * C * size;
        char *out = y + row * w2 * channels * size;
        for (int64_t w = 0; w < w2; ++w, in += stride * C * size, out += channels * size) {
            std::memset(out, 0, before * size);
            std::memcpy(out + before * size, in, C * size);
            std::memset(out + (before + C) * size, 0, after * size);
        }
    }
}

// Its gradient: dx = dy where x was read, else 0.
extern "C" void shortcut_backward(const char *dy, char *dx, int64_t N, int64_t H, int64_t W, int64_t C, int64_t stride,
                                  int64_t before, int64_t channels, int64_t size, int threads) {
    const int64_t h2 = (H + stride - 1) / stride, w2 = (W + stride - 1) / stride;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < N * H; ++row) {
        const int64_t n = row / H, h = row % H;
        char *out = dx + row * W * C * size;
        if (h % stride) {
            std::memset(out, 0, W * C * size);
            continue;
        }
        const char *in = dy + ((n * h2 + h / stride) * w2 * channels + before) * size;
        for (int64_t w = 0; w < W; ++w, out += C * size) {
            if (w % stride) std::memset(out, 0, C * size);
            else std::memcpy(out, in + w / stride * channels * size, C * size);
        }
    }
}

// Floats of work space that a call of batch norm needs.
extern "C" int64_t norm_floats(int64_t C, int) { return 2 * norm_doubles(C) + 6 * (C <= LANES ? LANES : C); }
