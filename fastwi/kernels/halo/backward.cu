// Both gradients of a 3 x 3 convolution with padding 1 and as many channels out as in, in one pass:
//
//     dx[n, h, w, i]     = sum over kh, kw, o of dy[n, h + 1 - kh, w + 1 - kw, o] weight[o, kh, kw, i]
//     dw[o, kh, kw, i]   = sum over n, h, w  of a[n, h, w, i] dy[n, h + 1 - kh, w + 1 - kw, o]
//
// Both read the same shifted dy, so a tile of it, with the rows and columns around it, goes into shared memory once.
// On the way there it passes the backward of the batch norm that read y (see fastwi.kernels.stacked_norm):
//
//     dy = scale (g - dbias / R - xhat dweight / R),   xhat = (y - mean) inv
//
// a is x, or act(x scale + shift). Behind dx: residual, the mask of the ReLU that made a, and partial sums of the
// result and of its product with xhat of another batch norm's input u.
//
// A CTA has TILES tiles of 256 places of one member, and SLICE of its input channels: it writes their dx, and a
// partial sum of their dw. A tile has whole rows of images that lie one below the other, and is worked on in blocks of
// 8 x 8 places: a row of a block is 8 rows of a fragment in dx, and 8 columns of it in dw, so that one ldmatrix serves
// all three kh.
//
// Constants: C channels; H, W height and width of an image (H a multiple of 8, W 8, 16 or 32); SLICE, TILES, THREADS;
// CTAS, the least on a multiprocessor.
#include "device.h"

struct Arguments {  // activations are [M, N, H, W, C]
    const bf16 *g, *y;                   // y null: g is dy
    const float *y_stats, *y_gradients;  // [M, 4, C]: mean, inv, scale, shift; [M, 2, C]: dbias, dweight
    int64_t y_rows;                      // R; 0: running statistics, which have no gradient
    const bf16* x;
    const float* x_stats;       // [M, 4, C], or null: a is x
    int64_t relu;               // whether a is a ReLU's output
    const bf16* weight;         // [M, C, 3, 3, C]
    int64_t weight_stride;      // values from a member to the next
    const bf16 *residual, *u;   // null: none, no sums
    const float* u_stats;
    bf16* dx;
    float *sums, *partial;      // [M, T, 2, C], [M, T, C, 3, 3, C], T groups of tiles
    int64_t rows;               // N H
};

constexpr int CHUNKS = C / 8, SLICE_CHUNKS = SLICE / 8;  // 16-byte pieces of a place
constexpr int WARPS = THREADS / 32;
constexpr int TILE_ROWS = 256 / W, STRIPS = W / 8, BLOCKS = 4;
constexpr int PITCH = (W + 2 + 8 / CHUNKS - 1) / (8 / CHUNKS) * (8 / CHUNKS);  // places of dy's row, whole 128 bytes
constexpr int ROW_BYTES = PITCH * C * 2;
// Shared memory, in bytes from its begin.
constexpr int DY = 0, A = DY + (TILE_ROWS + 2) * ROW_BYTES, WEIGHTS = A + 256 * SLICE * 2;
constexpr int CONSTANTS = WEIGHTS + 9 * C * SLICE * 2, SUMS = CONSTANTS + (4 * C + 2 * SLICE) * 4;
static_assert(SUMS + THREADS * 4 == SHARED_BYTES, "the caller's size is another");

constexpr int ROWS = C < 64 ? 8 : 4;  // of a block at a time, as registers allow
constexpr int GROUPS = SLICE / 16;  // dx: a warp has one block, and 16 input channels
constexpr int N_TILES = C < 64 ? 1 : 2, COLUMNS = SLICE / 8 / N_TILES, SHARES = WARPS / (C / 16 * COLUMNS);
// dw: a warp has 16 channels out and 8 N_TILES in, all taps, and BLOCKS / SHARES blocks.
static_assert(WARPS == BLOCKS * GROUPS && WARPS == C / 16 * COLUMNS * SHARES, "warps have equal work");

// Where a 16-byte chunk of a place lies: 8 neighbouring places have theirs in different banks.
template <int EACH>
DEVICE uint32_t swizzled(uint32_t place, uint32_t chunk) {
    return (place * EACH + (chunk ^ place / (8 / EACH) % EACH)) * 16;
}

// Constants of the channels, one kind after the other, each [2, EACH, 4]: a chunk has two times four of them.
template <int EACH>
DEVICE int constant_at(int channel) {
    return (channel % 8 / 4 * (EACH * 4) + channel / 8 * 4 + channel % 4) * 4;
}
template <int EACH, int KINDS>
DEVICE void load_constants(Vec16 (&values)[KINDS], Shared constants, int chunk, int half) {
    UNROLL
    for (int kind = 0; kind < KINDS; kind++)
        values[kind] = shared_load16(constants + ((kind * 2 + half) * EACH + chunk) * 16);
}

DEVICE float low_or_high(uint32_t packed, int which) { return which ? high_bf16(packed) : low_bf16(packed); }

// dy of the tile and of the rows above and below it that belong to its images: [TILE_ROWS + 2, PITCH, C].
DEVICE void load_dy(const Arguments& p, Shared dy, Shared constants, int64_t member_at, int first, int rows) {
    constexpr int ROW_CHUNKS = W * CHUNKS, STEP = THREADS / ROW_CHUNKS, BATCH = C == 16 ? 5 : C == 32 ? 4 : 2;
    static_assert(THREADS % ROW_CHUNKS == 0, "a thread has one column");
    uint32_t t = opaque(thread()), place = t % ROW_CHUNKS, chunk = t % CHUNKS;
    int begin = first % H == 0, end = TILE_ROWS + 1 + ((first + TILE_ROWS) % H != 0);
    if (end > rows - first + 1) end = rows - first + 1;
    int64_t at = member_at + (first - 1) * (W * C) + place * 8;
    Shared to = dy + swizzled<CHUNKS>(place / CHUNKS + 1, chunk);
    ROLLED
    for (int r = begin + t / ROW_CHUNKS; r < end; r += BATCH * STEP) {
        Vec16 g[BATCH] = {}, y[BATCH] = {};
        UNROLL
        for (int b = 0; b < BATCH; b++) {  // all loads are on their way before the first is waited for
            int own = r + b * STEP;
            if (own < end) g[b] = load16(p.g + at + own * (W * C));
            if (own < end && p.y) y[b] = load16(p.y + at + own * (W * C));
        }
        UNROLL
        for (int half = 0; p.y && half < 2; half++) {
            Vec16 k[4];  // of dy = k[3] g + (k[1] (y - k[0]) + k[2])
            load_constants<CHUNKS>(k, constants, chunk, half);
            UNROLL
            for (int e = 0; e < BATCH * 2; e++) {
                uint32_t &two = g[e / 2].v[2 * half + e % 2], input = y[e / 2].v[2 * half + e % 2];
                float value[2];
                UNROLL
                for (int j = 0; j < 2; j++) {
                    int i = e % 2 * 2 + j;
                    float centred = low_or_high(input, j) - as_float(k[0].v[i]);
                    float rest = multiply_add(centred, as_float(k[1].v[i]), as_float(k[2].v[i]));
                    value[j] = multiply_add(low_or_high(two, j), as_float(k[3].v[i]), rest);
                }
                two = pack_bf16(value[0], value[1]);
            }
        }
        UNROLL
        for (int b = 0; b < BATCH; b++)
            if (r + b * STEP < end) shared_store16(to + (r + b * STEP) * ROW_BYTES, g[b]);
    }
}

// a of the tile: [256, SLICE].
DEVICE void load_a(const Arguments& p, Shared a, Shared constants, int64_t member_at, int first, int rows) {
    constexpr int ROW_CHUNKS = W * SLICE_CHUNKS, STEP = THREADS / ROW_CHUNKS, BATCH = TILE_ROWS / STEP;
    static_assert(THREADS % ROW_CHUNKS == 0, "a thread has one column");
    uint32_t t = opaque(thread()), place = t / SLICE_CHUNKS, chunk = t % SLICE_CHUNKS;
    const bf16* x_at = p.x + member_at + block_y() * SLICE + (first * W + place) * C + chunk * 8;
    Shared to = a + swizzled<SLICE_CHUNKS>(place, chunk);
    int count = rows - first - static_cast<int>(t) / ROW_CHUNKS;
    Vec16 x[BATCH] = {};
    UNROLL
    for (int b = 0; b < BATCH; b++)
        if (b * STEP < count) x[b] = load16(x_at + b * STEP * (W * C));
    UNROLL
    for (int half = 0; p.x_stats && half < 2; half++) {
        Vec16 k[2];  // scale and shift
        load_constants<SLICE_CHUNKS>(k, constants, chunk, half);
        UNROLL
        for (int e = 0; e < BATCH * 2; e++) {
            uint32_t& two = x[e / 2].v[2 * half + e % 2];
            int i = e % 2 * 2;
            float low = multiply_add(low_bf16(two), as_float(k[0].v[i]), as_float(k[1].v[i]));
            float high = multiply_add(high_bf16(two), as_float(k[0].v[i + 1]), as_float(k[1].v[i + 1]));
            two = pack_bf16(low, high);
            if (p.relu) two = relu_bf16(two);
        }
    }
    UNROLL
    for (int b = 0; b < BATCH; b++)
        if (b * STEP < count) shared_store16(to + b * STEP * W * SLICE * 2, x[b]);
}

// dy of rows -1 .. ROWS of a piece of a block, 8 places and 16 channels of each, as fragments: two rows in each.
struct Rows {
    uint32_t q[ROWS / 2 + 1][4];
};

// The lane's address for load_rows, from the first row and column of the piece, for tap column kw and the first 16
// channels. The next have it with other bits 5 and 6.
template <bool TRANS>
DEVICE Shared row_address(Shared dy, int row, int column, int kw) {
    uint32_t l = opaque(lane()), row_l = TRANS ? l / 16 : l / 8 % 2, chunk_l = TRANS ? l / 8 % 2 : l / 16;
    return dy + (row + row_l) * ROW_BYTES + swizzled<CHUNKS>(column + 2 - kw + l % 8, chunk_l);
}

// For dx rows of dy are rows of the fragment, for dw (`trans`) its columns. Rows of other images are zero.
template <bool TRANS>
DEVICE void load_rows(Rows& r, Shared from, bool top, bool bottom) {
    UNROLL
    for (int i = 0; i < ROWS / 2 + 1; i++) {
        if (TRANS)
            ldmatrix_x4_trans(r.q[i], from + 2 * i * ROW_BYTES);
        else
            ldmatrix_x4(r.q[i], from + 2 * i * ROW_BYTES);
    }
    if (top) r.q[0][0] = r.q[0][TRANS ? 1 : 2] = 0;
    if (bottom) r.q[ROWS / 2][TRANS ? 2 : 1] = r.q[ROWS / 2][3] = 0;
}

// dx of ROWS rows of 8 places and 16 channels. Lane t of a place has channels 4 t .. 4 t + 3: two in each product.
DEVICE void product_dx(float (&d)[ROWS / 2][2][4], Shared dy, Shared weights, int row, int column, int group, bool top,
                       bool bottom) {
    uint32_t l = opaque(lane());
    Shared lane_weights = weights + swizzled<SLICE_CHUNKS>(l % 16, group * 2 + l / 16);
    ROLLED
    for (int kw = 0; kw < 3; kw++) {
        Shared from = row_address<false>(dy, row, column, kw);
        UNROLL
        for (int k = 0; k < C / 16; k++) {
            Rows r;
            load_rows<false>(r, from ^ 32 * k, top, bottom);
            UNROLL
            for (int kh = 0; kh < 3; kh++) {
                uint32_t w[4];
                ldmatrix_x4_trans(w, lane_weights + ((kh * 3 + kw) * C + 16 * k) * SLICE * 2);
                const uint32_t b0[2] = {w[0], w[1]}, b1[2] = {w[2], w[3]};
                UNROLL
                for (int i = 0; i < ROWS / 2; i++) {
                    int above = 2 * i + 2 - kh, odd = above % 2;
                    const uint32_t(&q)[4] = r.q[above / 2], (&next)[4] = r.q[(above + 1) / 2];
                    const uint32_t a[4] = {q[odd], next[1 - odd], q[2 + odd], next[3 - odd]};
                    mma_bf16(d[i][0], a, b0);
                    mma_bf16(d[i][1], a, b1);
                }
            }
        }
    }
}

// dw of the warp's channels += that of ROWS rows of 8 places.
DEVICE void product_dw(float (&d)[9][N_TILES][4], Shared dy, Shared a, int row, int column, int out, int in, bool top,
                       bool bottom) {
    uint32_t l = opaque(lane()), b[ROWS / 2][N_TILES][2];
    Shared a_lane = a + swizzled<SLICE_CHUNKS>((row + l / 8) * W + column + l % 8, in);
    UNROLL
    for (int i = 0; i < ROWS; i += 4) {
        UNROLL
        for (int n = 0; n < N_TILES; n++) {
            uint32_t q[4];
            ldmatrix_x4_trans(q, (a_lane ^ 16 * n) + i * (W * SLICE * 2));
            b[i / 2][n][0] = q[0], b[i / 2][n][1] = q[1], b[i / 2 + 1][n][0] = q[2], b[i / 2 + 1][n][1] = q[3];
        }
    }
    UNROLL
    for (int kw = 0; kw < 3; kw++) {
        Rows r;
        load_rows<true>(r, row_address<true>(dy, row, column, kw) ^ 32 * out, top, bottom);
        UNROLL
        for (int i = 0; i < ROWS / 2; i++) {
            const uint32_t between[4] = {r.q[i][2], r.q[i][3], r.q[i + 1][0], r.q[i + 1][1]};
            UNROLL
            for (int n = 0; n < N_TILES; n++) {
                mma_bf16(d[kw][n], r.q[i + 1], b[i][n]);
                mma_bf16(d[3 + kw][n], between, b[i][n]);
                mma_bf16(d[6 + kw][n], r.q[i], b[i][n]);
            }
        }
    }
}

// Residual, mask, sums and store of ROWS rows of 8 places, 4 channels a lane. `at` is the tile's first value.
DEVICE void finish(const Arguments& p, float (&d)[ROWS / 2][2][4], Shared a, int64_t member_at, int at, int row,
                   int column, int group, Shared sums) {
    uint32_t l = opaque(lane()), g = l / 4, t = l % 4, channel = block_y() * SLICE + group * 16 + 4 * t;
    int64_t here = member_at + at + (row * W + column + g) * C + channel;
    Vec8 input[ROWS] = {}, made[ROWS];
    auto value = [&](int i, int j) -> float& { return d[i / 2][j / 2][i % 2 * 2 + j % 2]; };
    auto load_input = [&] {
        UNROLL
        for (int i = 0; i < ROWS; i++) input[i] = load8(p.u + here + i * W * C);
    };
    if (C < 64 && p.u) load_input();
    if (p.residual) {
        Vec8 more[ROWS];
        UNROLL
        for (int i = 0; i < ROWS; i++) more[i] = load8(p.residual + here + i * W * C);
        UNROLL
        for (int e = 0; e < ROWS * 4; e++) value(e / 4, e % 4) += low_or_high(more[e / 4].v[e / 2 % 2], e % 2);
    }
    if (p.relu) {
        Shared from = a + swizzled<SLICE_CHUNKS>(row * W + column + g, group * 2 + t / 2) + t % 2 * 8;
        UNROLL
        for (int i = 0; i < ROWS; i++) {
            Vec8 shown = shared_load8(from + i * (W * SLICE * 2));
            UNROLL
            for (int j = 0; j < 4; j++) value(i, j) = low_or_high(shown.v[j / 2], j % 2) > 0 ? value(i, j) : 0;
        }
    }
    UNROLL
    for (int i = 0; i < ROWS; i++) {
        made[i] = {{pack_bf16(value(i, 0), value(i, 1)), pack_bf16(value(i, 2), value(i, 3))}};
        store8(p.dx + here + i * W * C, made[i]);
    }
    if (!p.u) return;
    if (C == 64) load_input();  // no registers to have it earlier
    Vec16 mean = load16(p.u_stats + int64_t(block_z()) * 4 * C + channel);
    float own[8] = {};  // sums of 4 channels, then of their products
    UNROLL
    for (int e = 0; e < ROWS * 4; e++) {
        float rounded = low_or_high(made[e / 4].v[e / 2 % 2], e % 2);
        float centred = low_or_high(input[e / 4].v[e / 2 % 2], e % 2) - as_float(mean.v[e % 4]);
        own[e % 4] += rounded;
        own[4 + e % 4] = multiply_add(rounded, centred, own[4 + e % 4]);
    }
    UNROLL
    for (int half = 4; half > 0; half /= 2) {  // 8 lanes share the channels: each ends with one sum over them
        bool upper = l & 4 * half;
        UNROLL
        for (int i = 0; i < half; i++) {
            float more = shuffle_xor(upper ? own[i] : own[i + half], 4 * half);
            own[i] = (upper ? own[i + half] : own[i]) + more;
        }
    }
    Shared to = sums + thread() * 4;
    shared_store_float(to, shared_load_float(to) + own[0]);
}

// What is the same for all tiles: weights [9, C, SLICE], constants of the norms, zeros left and right of dy. Of 16
// input channels, 4 t and 4 t + 1 are columns 2 t and 2 t + 1 of the first product, and the next two of the second.
DEVICE void load_constant_parts(const Arguments& p, Shared base) {
    int64_t member = block_z();
    const bf16* weight = p.weight + member * p.weight_stride + block_y() * SLICE;
    ROLLED
    for (int e = thread(); e < 9 * C * (SLICE / 2); e += THREADS) {
        int row = e / (SLICE / 2), pair = e % (SLICE / 2), out = row % C, tap = row / C;
        int chunk = pair / 8 * 2 + pair % 2, word = pair % 8 / 2;
        uint32_t two = load4(weight + (out * 9 + tap) * C + 2 * pair);
        shared_store4(base + WEIGHTS + swizzled<SLICE_CHUNKS>(row, chunk) + word * 4, two);
    }
    ROLLED
    for (int c = thread(); p.y && c < C; c += THREADS) {
        const float *stats = p.y_stats + member * 4 * C + c, *gradients = p.y_gradients + member * 2 * C + c;
        float scale = load_float(stats + 2 * C), share = p.y_rows ? scale / p.y_rows : 0;
        Shared at = base + CONSTANTS + constant_at<CHUNKS>(c);
        shared_store_float(at, load_float(stats));
        shared_store_float(at + C * 4, -share * load_float(gradients + C) * load_float(stats + C));
        shared_store_float(at + C * 8, -share * load_float(gradients));
        shared_store_float(at + C * 12, scale);
    }
    for (int c = thread(); p.x_stats && c < SLICE; c += THREADS) {
        const float* stats = p.x_stats + member * 4 * C + block_y() * SLICE + c;
        Shared at = base + CONSTANTS + C * 16 + constant_at<SLICE_CHUNKS>(c);
        shared_store_float(at, load_float(stats + 2 * C));
        shared_store_float(at + SLICE * 4, load_float(stats + 3 * C));
    }
    Vec16 none = {{0, 0, 0, 0}};
    shared_store_float(base + SUMS + thread() * 4, 0);
    ROLLED
    for (int e = thread(); e < (TILE_ROWS + 2) * 2 * CHUNKS; e += THREADS) {
        int column = e / CHUNKS % 2 * (W + 1);
        shared_store16(base + DY + e / (2 * CHUNKS) * ROW_BYTES + swizzled<CHUNKS>(column, e % CHUNKS), none);
    }
}

// The CTA's sums over places, [2, C], from those of its threads.
DEVICE void store_sums(const Arguments& p, Shared sums) {
    ROLLED
    for (int e = thread(); e < 2 * SLICE; e += THREADS) {
        int kind = e / SLICE, channel = e % SLICE;
        float sum = 0;
        for (int w = channel / 16; w < WARPS; w += GROUPS)
            sum += shared_load_float(sums + (w * 32 + kind * 16 + channel % 4 * 4 + channel % 16 / 4) * 4);
        if (kind == 1) sum *= load_float(p.u_stats + (int64_t(block_z()) * 4 + 1) * C + block_y() * SLICE + channel);
        int64_t at = ((int64_t(block_z()) * grid_x() + block_x()) * 2 + kind) * C;
        store_float(p.sums + at + block_y() * SLICE + channel, sum);
    }
}

// The CTA's sum of dw: the shares of places added, then [C, 3, 3, SLICE] of [C, 3, 3, C].
DEVICE void store_dw(const Arguments& p, float (&dw)[9][N_TILES][4], Shared scratch, int out, int in, int share) {
    if (SHARES == 2) {
        static_assert(SHARES == 1 || WARPS / 2 * 9 * N_TILES * 4 * 128 <= A, "room for half of the warps");
        Shared at = scratch + (warp() % (WARPS / 2) * 9 * N_TILES * 4 * 32 + lane()) * 4;
        UNROLL
        for (int e = 0; e < 9 * N_TILES * 4; e++)
            if (share == 1) shared_store_float(at + e * 128, dw[e / (4 * N_TILES)][e / 4 % N_TILES][e % 4]);
        sync_cta();
        if (share == 1) return;
        UNROLL
        for (int e = 0; e < 9 * N_TILES * 4; e++)
            dw[e / (4 * N_TILES)][e / 4 % N_TILES][e % 4] += shared_load_float(at + e * 128);
    }
    int g = lane() / 4, t = lane() % 4;
    float* to = p.partial + (int64_t(block_z()) * grid_x() + block_x()) * (C * 9 * C) + block_y() * SLICE;
    UNROLL
    for (int e = 0; e < 9 * N_TILES * 2; e++) {
        int tap = e / (2 * N_TILES), n = e / 2 % N_TILES, half = e % 2;
        const float(&own)[4] = dw[tap][n];
        int at = ((out * 16 + g + 8 * half) * 9 + tap) * C + (in + n) * 8 + 2 * t;
        store8(to + at, {{as_bits(own[2 * half]), as_bits(own[2 * half + 1])}});
    }
}

// Grid: groups of TILES tiles, slices of input channels, members.
KERNEL(backward, Arguments, THREADS, CTAS) {
    const Arguments& p = arguments;
    Shared base = shared_base();
    int rows = p.rows, start = block_x() * TILES * TILE_ROWS;
    int end = start + TILES * TILE_ROWS < rows ? start + TILES * TILE_ROWS : rows;
    int64_t member_at = block_z() * p.rows * (W * C);
    int group = warp() % GROUPS, block = warp() / GROUPS;  // of dx
    int out = warp() % (C / 16), in = warp() / (C / 16) % COLUMNS * N_TILES;  // of dw
    int share = warp() / (C / 16 * COLUMNS);
    float dw[9][N_TILES][4] = {};
    load_constant_parts(p, base);
    sync_cta();
    ROLLED
    for (int first = start; first < end; first += TILE_ROWS) {
        base = opaque(base);
        load_dy(p, base + DY, base + CONSTANTS, member_at, first, rows);
        load_a(p, base + A, base + CONSTANTS + C * 16, member_at, first, rows);
        sync_cta();
        ROLLED
        for (int part = 0; part < 8; part += ROWS) {
            int row = block / STRIPS * 8 + part, column = block % STRIPS * 8;
            if (first + row >= rows) break;
            bool top = (first + row) % H == 0, bottom = (first + row + ROWS) % H == 0;
            float d[ROWS / 2][2][4] = {};
            product_dx(d, base + DY, base + WEIGHTS, row, column, group, top, bottom);
            finish(p, d, base + A, member_at, first * (W * C), row, column, group, base + SUMS);
        }
        ROLLED
        for (int part = 0; part < BLOCKS / SHARES * 8; part += ROWS) {
            int own = share * (BLOCKS / SHARES) + part / 8;
            int row = own / STRIPS * 8 + part % 8, column = own % STRIPS * 8;
            if (first + row >= rows) break;
            bool top = (first + row) % H == 0, bottom = (first + row + ROWS) % H == 0;
            product_dw(dw, base + DY, base + A, row, column, out, in, top, bottom);
        }
        sync_cta();
    }
    if (p.u) store_sums(p, base + SUMS);
    store_dw(p, dw, base + DY, out, in, share);
}
