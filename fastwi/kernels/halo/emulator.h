// What device.h declares, on a CPU: a CTA's threads are contexts that take turns on one core, and meet in collectives.
//
// A launch ends with a message, and computes nothing more, where the GPU would be wrong or undefined: lanes of a warp
// or threads of a CTA in different collectives, accesses outside the launch's memory or without alignment, copies
// that nobody waited for, and two warps at one word of shared memory without a sync_cta between, if one writes.
// Shared memory holds NaN before each CTA, and a copy in the background arrives when it is waited for, no sooner.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#define DEVICE inline
#define UNROLL
#define ROLLED
#define KERNEL(name, Arguments, threads, ctas)                                                                   \
    static void name(const Arguments& arguments);                                                                \
    extern "C" int name##_on_host(const void* arguments, const emulator::Launch* launch, char* message) {        \
        return emulator::run(                                                                                    \
            [](const void* given) { name(*static_cast<const Arguments*>(given)); }, arguments,                   \
            sizeof(Arguments), threads, *launch, message);                                                       \
    }                                                                                                            \
    static void name(const Arguments& arguments)

namespace emulator {

struct Launch {  // as Python passes it
    int grid[3];
    int shared_bytes;
    int argument_bytes;
    int ranges;                // pairs of addresses, begin and end, of memory that the kernel may touch
    const uintptr_t* allowed;  // [2 * ranges]
};

constexpr int WARP = 32;
constexpr size_t STACK = 64 << 10;

struct Copy {
    Shared to;
    const void* from;  // nullptr: zeros
    int bytes;
};

struct Thread {
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[STACK]};
    const char* waits_in;  // a collective, or nullptr
    bool done;
    const void* in;  // of the collective
    void* out;
    std::vector<std::vector<Copy>> groups;  // copies in the background; the last group is open
};

struct Word {  // of shared memory: the warps that used it since the last sync_cta, a bit for each
    uint32_t writers, readers;
};

struct State {
    void (*kernel)(const void*);
    const void* arguments;
    const Launch* launch;
    int block[3];
    std::vector<Thread> threads;
    int now;  // the thread that runs
    std::vector<unsigned char> shared;
    std::vector<Word> words;
    ucontext_t home;
    std::string error;
};
inline State*& state() {
    static thread_local State* current;
    return current;
}
inline Thread& self() { return state()->threads[state()->now]; }

[[noreturn]] inline void fail(const std::string& what) {
    State& s = *state();
    s.error = what + ", in thread " + std::to_string(s.now) + " of CTA (" + std::to_string(s.block[0]) + ", " +
              std::to_string(s.block[1]) + ", " + std::to_string(s.block[2]) + ")";
    setcontext(&s.home);
    __builtin_unreachable();
}

// Let a thread that does not wait go on, of the own warp if there is one. Else all wait and none can ever go on.
inline void yield() {
    State& s = *state();
    int from = s.now, count = s.threads.size();
    for (bool own_warp : {true, false}) {
        for (int next = 0; next < count; next++) {
            if (s.threads[next].done || s.threads[next].waits_in || (own_warp && next / WARP != from / WARP)) continue;
            s.now = next;
            if (next != from) swapcontext(&s.threads[from].context, &s.threads[next].context);
            return;
        }
    }
    std::string where;
    for (int i = 0; i < count; i++)
        if (s.threads[i].waits_in && where.empty())
            where = "thread " + std::to_string(i) + " waits for ever in " + s.threads[i].waits_in;
    if (!where.empty()) fail(where);
    setcontext(&s.home);  // all are done
}

// Meet the other threads first .. first + count - 1 in the collective `name`; the last to come does `work` for all.
template <typename Work>
inline void meet(const char* name, int first, int count, const void* in, void* out, Work work) {
    State& s = *state();
    Thread& own = self();
    own.waits_in = name, own.in = in, own.out = out;
    bool all = true;
    for (int i = first; i < first + count; i++) {
        const char* there = s.threads[i].waits_in;
        bool here = there && strcmp(there, name) == 0;
        if (there && !here && i / WARP == s.now / WARP)
            fail("thread " + std::to_string(i) + " of the warp is in " + there + " and not in " + name);
        all = all && here;
    }
    if (!all) return yield();
    work(&s.threads[first]);
    for (int i = first; i < first + count; i++) s.threads[i].waits_in = nullptr;
}
template <typename Work>
inline void meet_warp(const char* name, const void* in, void* out, Work work) {
    meet(name, state()->now / WARP * WARP, WARP, in, out, work);
}

inline void start() {
    state()->kernel(state()->arguments);
    Thread& own = self();
    if (own.groups.size() > 1 || !own.groups[0].empty()) fail("copies that were not waited for");
    own.done = true;
    yield();
}

inline int run(void (*kernel)(const void*), const void* arguments, int bytes, int threads, const Launch& launch,
               char* message) {
    if (launch.argument_bytes != bytes) {
        snprintf(message, 512, "%d bytes of arguments and not %d", launch.argument_bytes, bytes);
        return 1;
    }
    State s;
    s.kernel = kernel, s.arguments = arguments, s.launch = &launch, state() = &s;
    s.threads = std::vector<Thread>(threads);
    for (s.block[2] = 0; s.block[2] < launch.grid[2]; s.block[2]++)
        for (s.block[1] = 0; s.block[1] < launch.grid[1]; s.block[1]++)
            for (s.block[0] = 0; s.block[0] < launch.grid[0]; s.block[0]++) {
                s.shared.assign(launch.shared_bytes, 0xff);
                s.words.assign(launch.shared_bytes / 4, {});
                for (Thread& each : s.threads) {
                    getcontext(&each.context);
                    each.context.uc_stack.ss_sp = each.stack.get(), each.context.uc_stack.ss_size = STACK;
                    each.context.uc_link = nullptr, each.waits_in = nullptr, each.done = false;
                    each.groups.assign(1, {});
                    makecontext(&each.context, start, 0);
                }
                s.now = 0;
                swapcontext(&s.home, &s.threads[0].context);
                if (!s.error.empty()) {
                    snprintf(message, 512, "%s", s.error.c_str());
                    return 1;
                }
            }
    return 0;
}

// The place of a read or of a write by the thread that runs.
inline void* shared(Shared address, unsigned bytes, bool writes = false) {
    State& s = *state();
    auto named = [&] { return "shared address " + std::to_string(address); };
    if (address % bytes) fail(named() + " is not aligned to " + std::to_string(bytes));
    if (address + bytes > s.shared.size()) fail(named() + " is out of bounds");
    const uint32_t own = 1u << s.now / WARP;
    for (unsigned i = address / 4; i < (address + bytes) / 4; i++) {
        Word& word = s.words[i];
        if ((word.writers | (writes ? word.readers : 0)) & ~own) fail(named() + " is another warp's until sync_cta");
        (writes ? word.writers : word.readers) |= own;
    }
    return &s.shared[address];
}
template <typename T>
inline T* global(T* pointer, unsigned bytes) {
    const Launch& launch = *state()->launch;
    uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
    if (address % bytes) fail("a global address is not aligned to " + std::to_string(bytes));
    for (int i = 0; i < launch.ranges; i++)
        if (launch.allowed[2 * i] <= address && address + bytes <= launch.allowed[2 * i + 1]) return pointer;
    fail("a global address is outside the tensors");
}

inline float of_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
inline uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}
inline uint32_t rounded_bf16(float x) {
    uint32_t bits = bits_of(x);
    return std::isnan(x) ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

}  // namespace emulator

inline int thread() { return emulator::state()->now; }
inline int lane() { return thread() % 32; }
inline int warp() { return thread() / 32; }
inline int block_x() { return emulator::state()->block[0]; }
inline int block_y() { return emulator::state()->block[1]; }
inline int block_z() { return emulator::state()->block[2]; }
inline int grid_x() { return emulator::state()->launch->grid[0]; }
inline int grid_y() { return emulator::state()->launch->grid[1]; }

inline void sync_cta() {
    emulator::State& s = *emulator::state();
    emulator::meet("sync_cta", 0, s.threads.size(), nullptr, nullptr,
                   [&](emulator::Thread*) { s.words.assign(s.words.size(), {}); });
}
inline void sync_warp() {
    emulator::meet_warp("sync_warp", nullptr, nullptr, [](emulator::Thread*) {});
}
inline uint32_t shuffle_xor(uint32_t x, int mask) {
    struct In {
        uint32_t x;
        int mask;
    } in{x, mask};
    uint32_t out;
    emulator::meet_warp("shuffle_xor", &in, &out, [](emulator::Thread* lanes) {
        for (int i = 0; i < 32; i++) {
            int from = i ^ static_cast<const In*>(lanes[i].in)->mask;
            *static_cast<uint32_t*>(lanes[i].out) = static_cast<const In*>(lanes[from].in)->x;
        }
    });
    return out;
}
inline float shuffle_xor(float x, int mask) { return emulator::of_bits(shuffle_xor(emulator::bits_of(x), mask)); }

inline float multiply_add(float a, float b, float c) { return std::fma(a, b, c); }
inline uint32_t pack_bf16(float low, float high) {
    return emulator::rounded_bf16(low) | emulator::rounded_bf16(high) << 16;
}
inline uint32_t relu_bf16(uint32_t packed) {
    float low = emulator::of_bits(packed << 16), high = emulator::of_bits(packed & 0xffff0000u);
    return pack_bf16(low > 0 || std::isnan(low) ? low : 0, high > 0 || std::isnan(high) ? high : 0);
}
inline float low_bf16(uint32_t packed) { return emulator::of_bits(packed << 16); }
inline float high_bf16(uint32_t packed) { return emulator::of_bits(packed & 0xffff0000u); }
inline float as_float(uint32_t bits) { return emulator::of_bits(bits); }
inline uint32_t as_bits(float x) { return emulator::bits_of(x); }

inline Vec16 load16(const void* from) { return *static_cast<const Vec16*>(emulator::global(from, 16)); }
inline void store16(void* to, const Vec16& x) { *static_cast<Vec16*>(emulator::global(to, 16)) = x; }
inline Vec8 load8(const void* from) { return *static_cast<const Vec8*>(emulator::global(from, 8)); }
inline void store8(void* to, const Vec8& x) { *static_cast<Vec8*>(emulator::global(to, 8)) = x; }
inline uint32_t load4(const void* from) {
    uint32_t x;
    memcpy(&x, emulator::global(from, 4), 4);
    return x;
}
inline void store4(void* to, uint32_t x) { memcpy(emulator::global(to, 4), &x, 4); }
inline float load_float(const float* from) { return *emulator::global(from, 4); }
inline void store_float(float* to, float x) { *emulator::global(to, 4) = x; }

inline Shared shared_base() { return 0; }
inline uint32_t opaque(uint32_t x) { return x; }
inline Vec16 shared_load16(Shared from) {
    Vec16 x;
    memcpy(&x, emulator::shared(from, 16), 16);
    return x;
}
inline void shared_store16(Shared to, const Vec16& x) { memcpy(emulator::shared(to, 16, true), &x, 16); }
inline Vec8 shared_load8(Shared from) {
    Vec8 x;
    memcpy(&x, emulator::shared(from, 8), 8);
    return x;
}
inline uint32_t shared_load4(Shared from) {
    uint32_t x;
    memcpy(&x, emulator::shared(from, 4), 4);
    return x;
}
inline void shared_store4(Shared to, uint32_t x) { memcpy(emulator::shared(to, 4, true), &x, 4); }
inline float shared_load_float(Shared from) { return emulator::of_bits(shared_load4(from)); }
inline void shared_store_float(Shared to, float x) { shared_store4(to, emulator::bits_of(x)); }

namespace emulator {
inline void copy_later(Shared to, const void* from, int bytes) {
    shared(to, bytes, true);
    if (from) global(from, bytes);
    self().groups.back().push_back({to, from, bytes});
}
}  // namespace emulator
inline void copy_async16(Shared to, const void* from, bool exists = true) {
    emulator::copy_later(to, exists ? from : nullptr, 16);
}
inline void copy_async8(Shared to, const void* from, bool exists = true) {
    emulator::copy_later(to, exists ? from : nullptr, 8);
}
inline void copy_commit() { emulator::self().groups.emplace_back(); }
template <int GROUPS>
inline void copy_wait() {
    auto& groups = emulator::self().groups;
    while (groups.size() > GROUPS + 1) {
        for (const emulator::Copy& copy : groups.front()) {
            void* to = emulator::shared(copy.to, copy.bytes, true);
            if (copy.from) memcpy(to, copy.from, copy.bytes);
            else memset(to, 0, copy.bytes);
        }
        groups.erase(groups.begin());
    }
}

namespace emulator {
template <bool TRANS>
inline void load_matrices(uint32_t (&r)[4], Shared row) {
    meet_warp(TRANS ? "ldmatrix_x4_trans" : "ldmatrix_x4", &row, &r, [](Thread* lanes) {
        for (int matrix = 0; matrix < 4; matrix++) {
            uint16_t values[8][8];
            for (int i = 0; i < 8; i++)
                memcpy(values[i], shared(*static_cast<const Shared*>(lanes[8 * matrix + i].in), 16), 16);
            for (int i = 0; i < WARP; i++) {
                int g = i / 4, t = i % 4 * 2;
                uint32_t low = TRANS ? values[t][g] : values[g][t];
                uint32_t high = TRANS ? values[t + 1][g] : values[g][t + 1];
                static_cast<uint32_t*>(lanes[i].out)[matrix] = low | high << 16;
            }
        }
    });
}
}  // namespace emulator
inline void ldmatrix_x4(uint32_t (&r)[4], Shared row) { emulator::load_matrices<false>(r, row); }
inline void ldmatrix_x4_trans(uint32_t (&r)[4], Shared row) { emulator::load_matrices<true>(r, row); }

// Products are exact; their sum with d is rounded once. The order and rounding inside a GPU's product differ.
inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    struct In {
        const uint32_t *a, *b;
    } in{a, b};
    emulator::meet_warp("mma_bf16", &in, &d, [](emulator::Thread* lanes) {
        float A[16][16], B[16][8];
        for (int i = 0; i < 32; i++) {
            const In& own = *static_cast<const In*>(lanes[i].in);
            int g = i / 4, t = i % 4 * 2;
            for (int j = 0; j < 4; j++) {
                A[g + j % 2 * 8][t + j / 2 * 8] = low_bf16(own.a[j]);
                A[g + j % 2 * 8][t + j / 2 * 8 + 1] = high_bf16(own.a[j]);
            }
            for (int j = 0; j < 2; j++) {
                B[t + j * 8][g] = low_bf16(own.b[j]);
                B[t + j * 8 + 1][g] = high_bf16(own.b[j]);
            }
        }
        double D[16][8] = {};
        for (int row = 0; row < 16; row++)
            for (int k = 0; k < 16; k++)
                for (int column = 0; column < 8; column++)
                    D[row][column] += static_cast<double>(A[row][k]) * B[k][column];
        for (int i = 0; i < 32; i++) {
            float* d = static_cast<float*>(lanes[i].out);
            int g = i / 4, t = i % 4 * 2;
            for (int j = 0; j < 4; j++) d[j] = static_cast<float>(d[j] + D[g + j / 2 * 8][t + j % 2]);
        }
    });
}
