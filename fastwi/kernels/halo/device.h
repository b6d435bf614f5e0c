// What the halo kernels use of a GPU: everything that is not plain C++ stands here.
//
// NVRTC compiles it for sm_80 and later. A C++ compiler takes the emulator beside it instead, which computes
// the same with the same place of every value in every lane (PTX ISA, "Matrix fragments for mma.m16n8k16" and
// "ldmatrix"), so that the tests run the kernels' own source without a GPU.
//
//     #include "device.h"
//     struct Arguments { const bf16* x; float* sums; int rows; };
//     KERNEL(name, Arguments, 128, 4) {          // 128 threads, at least 4 CTAs an SM; `arguments` is the parameter
//         Shared tile = shared_base();           // shared memory is one block, an address in bytes
//         ...
//     }
//
// Products and sums are never contracted (NVRTC: --fmad=false): use `multiply_add` where one rounding is wanted.
// Every lane of a warp takes part in ldmatrix, mma and shuffles, every thread of a CTA in sync_cta.
#pragma once

#ifdef __CUDACC__
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
#else
#include <cstdint>
#endif

typedef uint16_t bf16;    // its bits
typedef uint32_t Shared;  // an address in shared memory, in bytes
struct alignas(16) Vec16 {
    uint32_t v[4];  // 8 bf16 values, two in each word: the first in the low half
};
struct alignas(8) Vec8 {
    uint32_t v[2];
};

#ifndef __CUDACC__
#include "emulator.h"
#else

#define DEVICE __device__ __forceinline__
#define UNROLL _Pragma("unroll")
#define ROLLED _Pragma("unroll 1")
#define KERNEL(name, Arguments, threads, ctas) \
    extern "C" __global__ void __launch_bounds__(threads, ctas) name(const Arguments arguments)

DEVICE int lane() { return threadIdx.x & 31; }
DEVICE int warp() { return threadIdx.x >> 5; }
DEVICE int thread() { return threadIdx.x; }
DEVICE int block_x() { return blockIdx.x; }
DEVICE int block_y() { return blockIdx.y; }
DEVICE int block_z() { return blockIdx.z; }
DEVICE int grid_x() { return gridDim.x; }
DEVICE int grid_y() { return gridDim.y; }

DEVICE void sync_cta() { __syncthreads(); }
DEVICE void sync_warp() { __syncwarp(); }
DEVICE float shuffle_xor(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
DEVICE uint32_t shuffle_xor(uint32_t x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }

// float32, each rounded once to the nearest even.
DEVICE float multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }  // a b + c

// Two values rounded to bf16, to the nearest even; NaN stays NaN.
DEVICE uint32_t pack_bf16(float low, float high) {
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}
// max(x, 0) of both; NaN stays NaN.
DEVICE uint32_t relu_bf16(uint32_t packed) {
    asm("max.NaN.bf16x2 %0, %0, %1;" : "+r"(packed) : "r"(0));
    return packed;
}
DEVICE float low_bf16(uint32_t packed) { return __uint_as_float(packed << 16); }
DEVICE float high_bf16(uint32_t packed) { return __uint_as_float(packed & 0xffff0000u); }
DEVICE float as_float(uint32_t bits) { return __uint_as_float(bits); }
DEVICE uint32_t as_bits(float x) { return __float_as_uint(x); }

// Global memory. Accesses of 8 and 16 bytes need such an alignment.
DEVICE Vec16 load16(const void* from) {
    uint4 q = *static_cast<const uint4*>(from);
    return {{q.x, q.y, q.z, q.w}};
}
DEVICE void store16(void* to, const Vec16& x) { *static_cast<uint4*>(to) = make_uint4(x.v[0], x.v[1], x.v[2], x.v[3]); }
DEVICE Vec8 load8(const void* from) {
    uint2 q = *static_cast<const uint2*>(from);
    return {{q.x, q.y}};
}
DEVICE void store8(void* to, const Vec8& x) {  // ptxas cuts the store of a uint2 in two
    asm volatile("st.global.v2.u32 [%0], {%1, %2};"
                 :: "l"(__cvta_generic_to_global(to)), "r"(x.v[0]), "r"(x.v[1]) : "memory");
}
DEVICE uint32_t load4(const void* from) { return *static_cast<const uint32_t*>(from); }
DEVICE void store4(void* to, uint32_t x) { *static_cast<uint32_t*>(to) = x; }
DEVICE float load_float(const float* from) { return *from; }
DEVICE void store_float(float* to, float x) { *to = x; }

// Shared memory: as many bytes as the launch says.
DEVICE Shared shared_base() {
    extern __shared__ __align__(128) unsigned char memory[];
    return static_cast<Shared>(__cvta_generic_to_shared(memory));
}
// The same number, of which the compiler does not know that it is: it would compute all addresses of a loop before
// the loop, and run out of registers.
DEVICE uint32_t opaque(uint32_t x) {
    asm volatile("" : "+r"(x));
    return x;
}
DEVICE Vec16 shared_load16(Shared from) {
    Vec16 x;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.v[0]), "=r"(x.v[1]), "=r"(x.v[2]), "=r"(x.v[3]) : "r"(from) : "memory");
    return x;
}
DEVICE void shared_store16(Shared to, const Vec16& x) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};"
                 :: "r"(to), "r"(x.v[0]), "r"(x.v[1]), "r"(x.v[2]), "r"(x.v[3]) : "memory");
}
DEVICE Vec8 shared_load8(Shared from) {
    Vec8 x;
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(x.v[0]), "=r"(x.v[1]) : "r"(from) : "memory");
    return x;
}
DEVICE uint32_t shared_load4(Shared from) {
    uint32_t x;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(x) : "r"(from) : "memory");
    return x;
}
DEVICE void shared_store4(Shared to, uint32_t x) {
    asm volatile("st.shared.u32 [%0], %1;" :: "r"(to), "r"(x) : "memory");
}
DEVICE float shared_load_float(Shared from) { return __uint_as_float(shared_load4(from)); }
DEVICE void shared_store_float(Shared to, float x) { shared_store4(to, __float_as_uint(x)); }

// 16 or 8 bytes from global to shared memory in the background; zeros where not `exists` (`from` is not read then).
// They are there after copy_commit, copy_wait<groups that may still be on their way> and sync_cta.
DEVICE void copy_async16(Shared to, const void* from, bool exists = true) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(to), "l"(__cvta_generic_to_global(from)), "r"(exists ? 16 : 0) : "memory");
}
DEVICE void copy_async8(Shared to, const void* from, bool exists = true) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;"
                 :: "r"(to), "l"(__cvta_generic_to_global(from)), "r"(exists ? 8 : 0) : "memory");
}
DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int GROUPS>
DEVICE void copy_wait() { asm volatile("cp.async.wait_group %0;" :: "n"(GROUPS) : "memory"); }

// Four 8 x 8 matrices of 16-bit values. Lane l gives the address of row l % 8 of matrix l / 8, 16 bytes, and gets of
// each matrix the values 2 (l % 4) and 2 (l % 4) + 1 of row l / 4; with `trans`, of column l / 4.
DEVICE void ldmatrix_x4(uint32_t (&r)[4], Shared row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(row) : "memory");
}
DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], Shared row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(row) : "memory");
}

// d += a b: a is 16 x 16 in bf16, b 16 x 8 in bf16, d 16 x 8 in float32. With g = lane / 4 and t = lane % 4:
//     a[0], a[2]: row g,     columns 2t, 2t + 1 and 2t + 8, 2t + 9     b[0], b[1]: column g, rows 2t, 2t + 1 and
//     a[1], a[3]: row g + 8, the same columns                                      2t + 8, 2t + 9
//     d[0], d[1]: row g,     columns 2t, 2t + 1;   d[2], d[3]: row g + 8, the same columns
DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

#endif
