// y = conv(a, w), 3 x 3, stride 1, padding 1, of M networks: a is x, or act(x scale + shift + residual) with PROLOGUE,
// the residual with RESIDUAL alone; with STORED a is written to z.
//
//     y[m, n, h, w, o] = sum over kw, i, kh of a[m, n, h + kh - 1, w + kw - 1, i] w[m, o, kh, kw, i]
//
// A CTA keeps its member's weights in shared memory and passes tiles of IMAGES images x TILE_H x TILE_W places. A tile
// with its halo is read once, and changed once on its way to shared memory. The nine taps are products of shifted
// windows of it: a warp has 4 rows of 16 places x 32 channels (16 of C = 16), and each 16 places that it loads serve
// the three taps kh above each other. Sums are in float32, in the order kw, i in sixteens, kh.
//
// A pixel takes 2 C + 16 bytes of shared memory, and a row of weights as much modulo 128: eight in a row lie in
// different banks for every C here, which ldmatrix needs.
#include "device.h"

constexpr int ROWS = 4, STRIP = 16;            // places of a warp: rows x columns
constexpr int COLUMNS = C < 32 ? C : 32;       // and its channels out, in TILES products
constexpr int TILES = COLUMNS / 8;
constexpr int GROUPS = C / COLUMNS;            // warps that share their places
constexpr int STRIPS = IMAGES * TILE_W / STRIP;
constexpr int CHUNKS = C / 8;                  // 16-byte pieces of a pixel
constexpr int PIXEL = 2 * C + 16, LINE = (TILE_W + 2) * PIXEL, IMAGE = (TILE_H + 2) * LINE;
constexpr int WEIGHTS = 18 * C + 16;           // bytes of one channel out
constexpr int PARTIAL = 3 * COLUMNS * 4;       // bytes of a warp's moments
constexpr int BANDS = (H + TILE_H - 1) / TILE_H;
constexpr int LOADS = IMAGES * (TILE_H + 2) * TILE_W * CHUNKS / THREADS;  // pieces a thread
constexpr bool MASKED = !WHOLE_IMAGES || H % TILE_H || W < TILE_W;        // tiles reach beyond the images
static_assert(THREADS == 32 * (TILE_H / ROWS) * STRIPS * GROUPS && TILE_H % ROWS == 0 && W <= TILE_W);
static_assert(LOADS * THREADS == IMAGES * (TILE_H + 2) * TILE_W * CHUNKS && THREADS % CHUNKS == 0 && THREADS >= C);
static_assert(C * WEIGHTS + IMAGES * IMAGE + THREADS / 32 * PARTIAL <= SHARED_BYTES);

struct Arguments {
    const bf16* x;         // [M, N, H, W, C]
    const bf16* weight;    // [M, C, 3, 3, C], each member's values dense
    bf16* y;               // [M, N, H, W, C]
    const float* stats;    // [M, 4, C]: mean, inv, scale, shift; null without PROLOGUE
    float* moments;        // [M, T, 3, C]: count, sum, squares about the tile's own mean; null without STATISTICS
    const bf16* residual;  // as x, or null
    bf16* z;               // as x, or null
    int64_t member_stride; // of the weights
    int64_t images;        // N
};

// Of four lanes with four words each, lane t gets word t of each.
DEVICE void transpose(uint32_t (&w)[4]) {
    UNROLL for (int bit = 1; bit <= 2; bit *= 2) {
        bool upper = lane() & bit;
        UNROLL for (int i = 0; i < 4; i++) {
            if (i & bit) continue;
            uint32_t other = shuffle_xor(upper ? w[i] : w[i | bit], bit);
            if (upper) w[i] = other;
            else w[i | bit] = other;
        }
    }
}

// The sum over the eight lanes that hold other places of the same channels.
DEVICE float over_places(float x) {
    UNROLL for (int bit = 4; bit < 32; bit *= 2) x += shuffle_xor(x, bit);
    return x;
}

// A tile with its halo into shared memory: zeros outside the images. The columns beside it are zeros already.
DEVICE void load_tile(Shared tile, const Arguments& arguments, int first_image, int first_row) {
    constexpr int BATCH = RESIDUAL ? (LOADS + 1) / 2 : LOADS;  // pieces on their way at a time
    const int64_t member = block_y() * arguments.images * (H * W * C);
    const int chunk = thread() % CHUNKS;
    float scale[8], shift[8];
    if (PROLOGUE) {
        const float* stats = arguments.stats + block_y() * 4 * C + chunk * 8;
        UNROLL for (int j = 0; j < 8; j++) {
            scale[j] = load_float(stats + 2 * C + j);
            shift[j] = load_float(stats + 3 * C + j);
        }
    }
    UNROLL for (int begin = 0; begin < LOADS; begin += BATCH) {
        Vec16 loaded[BATCH], more[BATCH];
        bool exists[BATCH];
        int from[BATCH];
        UNROLL for (int i = 0; i < BATCH && begin + i < LOADS; i++) {
            int place = (thread() + (begin + i) * THREADS) / CHUNKS, column = place % TILE_W, line = place / TILE_W;
            int image = first_image + line / (TILE_H + 2), row = first_row + line % (TILE_H + 2) - 1;
            exists[i] = row >= 0 && row < H;
            row = row < 0 ? 0 : row < H ? row : H - 1;  // without branches: what does not exist is read elsewhere
            if (MASKED) {
                exists[i] = exists[i] && image < arguments.images && column < W;
                image = image < arguments.images ? image : first_image;
                column = column < W ? column : 0;
            }
            from[i] = ((image * H + row) * W + column) * C + chunk * 8;  // a member has less than 2^31 values
            loaded[i] = load16(arguments.x + member + from[i]);
            if (RESIDUAL) more[i] = load16(arguments.residual + member + from[i]);
        }
        UNROLL for (int i = 0; i < BATCH && begin + i < LOADS; i++) {
            int place = (thread() + (begin + i) * THREADS) / CHUNKS, column = place % TILE_W, line = place / TILE_W;
            UNROLL for (int j = 0; j < 4; j++) {
                uint32_t packed = loaded[i].v[j];
                if (PROLOGUE) {
                    float low = multiply_add(low_bf16(packed), scale[2 * j], shift[2 * j]);
                    float high = multiply_add(high_bf16(packed), scale[2 * j + 1], shift[2 * j + 1]);
                    if (RESIDUAL) low += low_bf16(more[i].v[j]), high += high_bf16(more[i].v[j]);
                    packed = pack_bf16(low, high);
                    if (RELU) packed = relu_bf16(packed);
                }
                loaded[i].v[j] = exists[i] ? packed : 0;
            }
            shared_store16(tile + line * LINE + (column + 1) * PIXEL + chunk * 16, loaded[i]);
            int own = line % (TILE_H + 2);  // the halo's rows are other tiles' to store
            if (STORED && exists[i] && own > 0 && own <= TILE_H) store16(arguments.z + member + from[i], loaded[i]);
        }
    }
}

// The products of a warp: its 4 rows of 16 places from address a on, times its channels of the weights.
DEVICE void multiply(float (&sums)[ROWS][TILES][4], Shared a, Shared weights) {
    UNROLL for (int kw = 0; kw < 3; kw++) {
        UNROLL for (int depth = 0; depth < 2 * C; depth += 32) {  // bytes of 16 channels in
            uint32_t b[3][TILES][2];
            UNROLL for (int kh = 0; kh < 3; kh++) {
                UNROLL for (int t = 0; t < TILES; t += 2) {
                    uint32_t two[4];
                    ldmatrix_x4(two, weights + t * 8 * WEIGHTS + (kh * 3 + kw) * 2 * C + depth);
                    b[kh][t][0] = two[0], b[kh][t][1] = two[1];
                    b[kh][t + 1][0] = two[2], b[kh][t + 1][1] = two[3];
                }
            }
            UNROLL for (int line = 0; line < ROWS + 2; line++) {
                uint32_t window[4];
                ldmatrix_x4(window, a + line * LINE + kw * PIXEL + depth);
                UNROLL for (int kh = 0; kh < 3; kh++) {
                    if (line < kh || line - kh >= ROWS) continue;
                    UNROLL for (int t = 0; t < TILES; t++) mma_bf16(sums[line - kh][t], window, b[kh][t]);
                }
            }
        }
    }
}

// Count, sum and squares about the warp's own mean of its channels, to shared memory [COLUMNS, 3].
DEVICE void warp_moments(const uint32_t (&y)[ROWS][2 * TILES], const bool (&exists)[ROWS][2], Shared partial) {
    float count = ROWS * STRIP;
    if (MASKED) {
        count = 0;
        for (int row = 0; row < ROWS; row++) count += (exists[row][0] ? 1 : 0) + (exists[row][1] ? 1 : 0);
        count = over_places(count);
    }
    const float share = MASKED ? 1 / (count == 0 ? 1 : count) : 1.0f / (ROWS * STRIP);
    UNROLL for (int t = 0; t < TILES; t++) {
        float total[2] = {}, squares[2] = {};
        UNROLL for (int row = 0; row < ROWS; row++) {
            UNROLL for (int half = 0; half < 2; half++) {
                uint32_t packed = exists[row][half] ? y[row][half * TILES + t] : 0;
                total[0] += low_bf16(packed);
                total[1] += high_bf16(packed);
            }
        }
        UNROLL for (int c = 0; c < 2; c++) total[c] = over_places(total[c]);
        UNROLL for (int row = 0; row < ROWS; row++) {
            UNROLL for (int half = 0; half < 2; half++) {
                uint32_t packed = y[row][half * TILES + t];
                float low = low_bf16(packed) - total[0] * share, high = high_bf16(packed) - total[1] * share;
                squares[0] = multiply_add(low, exists[row][half] ? low : 0, squares[0]);
                squares[1] = multiply_add(high, exists[row][half] ? high : 0, squares[1]);
            }
        }
        UNROLL for (int c = 0; c < 2; c++) {
            squares[c] = over_places(squares[c]);
            if (lane() >= 4) continue;
            Shared own = partial + (t * 8 + lane() * 2 + c) * 12;
            shared_store_float(own, count);
            shared_store_float(own + 4, total[c]);
            shared_store_float(own + 8, squares[c]);
        }
    }
}

// Those of the tile, from its warps' (Chan, Golub & LeVeque 1983): the thread's own channel.
DEVICE void tile_moments(Shared partials, float* moments_3C) {
    constexpr int OWN = THREADS / 32 / GROUPS;  // warps with the same channels: GROUPS apart
    const Shared own = partials + thread() / COLUMNS * PARTIAL + thread() % COLUMNS * 12;
    float count = 0, total = 0, squares = 0;
    UNROLL for (int w = 0; w < OWN; w++) {
        count += shared_load_float(own + w * GROUPS * PARTIAL);
        total += shared_load_float(own + w * GROUPS * PARTIAL + 4);
    }
    if (!MASKED) count = OWN * ROWS * STRIP;
    UNROLL for (int w = 0; w < OWN; w++) {
        float number = MASKED ? shared_load_float(own + w * GROUPS * PARTIAL) : ROWS * STRIP;
        float sum = shared_load_float(own + w * GROUPS * PARTIAL + 4);
        float apart = number == 0 ? 0 : sum * (1 / number) - total * (1 / count);
        squares += multiply_add(number * apart, apart, shared_load_float(own + w * GROUPS * PARTIAL + 8));
    }
    store_float(moments_3C + thread(), count);
    store_float(moments_3C + C + thread(), total);
    store_float(moments_3C + 2 * C + thread(), squares);
}

KERNEL(forward, Arguments, THREADS, CTAS) {
    const Shared weights = shared_base(), tile = weights + C * WEIGHTS, partials = tile + IMAGES * IMAGE;
    const bf16* weight = arguments.weight + block_y() * arguments.member_stride;
    for (int i = thread(); i < C * 9 * C / 4; i += THREADS)
        copy_async8(weights + i / (9 * C / 4) * WEIGHTS + i % (9 * C / 4) * 8, weight + i * 4);
    copy_commit();
    for (int i = thread(); i < IMAGES * (TILE_H + 2) * 2 * CHUNKS; i += THREADS) {
        int side = i / CHUNKS;
        shared_store16(tile + side / 2 * LINE + side % 2 * (TILE_W + 1) * PIXEL + i % CHUNKS * 16, Vec16{});
    }

    // The warp's channels, strip of 16 columns (of one image or side by side) and first row; the lane's addresses.
    const int group = warp() % GROUPS, strip = warp() / GROUPS % STRIPS, first = warp() / (GROUPS * STRIPS) * ROWS;
    const int column = strip * STRIP + lane() % 16;
    const Shared a = tile + column / TILE_W * IMAGE + first * LINE + column % TILE_W * PIXEL + lane() / 16 * 16;
    const Shared b = weights + (group * COLUMNS + lane() / 16 * 8 + lane() % 8) * WEIGHTS + lane() / 8 % 2 * 16;

    const int images = int(arguments.images), tiles = (images + IMAGES - 1) / IMAGES * BANDS;
    copy_wait<0>();
    for (int at = block_x(); at < tiles; at += grid_x()) {
        const int first_image = at / BANDS * IMAGES, first_row = at % BANDS * TILE_H + first;
        load_tile(tile, arguments, first_image, at % BANDS * TILE_H);
        sync_cta();
        float sums[ROWS][TILES][4] = {};
        multiply(sums, a, b);

        // A lane has two places of each row, 8 apart, and two channels of each product.
        bool exists[ROWS][2];
        uint32_t y[ROWS][2 * TILES];
        UNROLL for (int row = 0; row < ROWS; row++) {
            UNROLL for (int half = 0; half < 2; half++) {
                int place = strip * STRIP + half * 8 + lane() / 4;
                exists[row][half] = !MASKED || (first_image + place / TILE_W < images && place % TILE_W < W &&
                                                first_row + row < H);
                UNROLL for (int t = 0; t < TILES; t++)
                    y[row][half * TILES + t] = pack_bf16(sums[row][t][2 * half], sums[row][t][2 * half + 1]);
            }
        }
        if (STATISTICS) warp_moments(y, exists, partials + warp() * PARTIAL);
        UNROLL for (int row = 0; row < ROWS; row++) {
            UNROLL for (int word = 0; word < 2 * TILES; word += 4) {
                uint32_t words[4] = {y[row][word], y[row][word + 1], y[row][word + 2], y[row][word + 3]};
                transpose(words);  // now 8 channels of one place
                int own = word + lane() % 4, half = own / TILES, place = strip * STRIP + half * 8 + lane() / 4;
                int64_t image = block_y() * arguments.images + first_image + place / TILE_W;
                int64_t pixel = (image * H + first_row + row) * W + place % TILE_W;
                if (half ? exists[row][1] : exists[row][0])
                    store16(arguments.y + pixel * C + group * COLUMNS + own % TILES * 8,
                            {{words[0], words[1], words[2], words[3]}});
            }
        }
        sync_cta();
        if (STATISTICS && thread() < C)
            tile_moments(partials, arguments.moments + (int64_t(block_y()) * tiles + at) * (3 * C));
    }
}
