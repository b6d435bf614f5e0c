// Uses each thing of device.h once: see test_halo_device.py. A CTA has two warps.
#include "device.h"

struct Arguments {
    const bf16* a;  // [16, 16]
    const bf16* b;  // [16, 8], or with `transposed` [8, 16]
    float* out;     // of `products` [2, 16, 8]: each warp its own; of `shuffles` [64]
    int64_t what;
};

// a is read as it is stored; b [k][n] by ldmatrix.trans, b [n][k] by ldmatrix.
KERNEL(products, Arguments, THREADS, 1) {
    Shared a = shared_base(), b = a + 16 * 32;
    int64_t transposed = arguments.what;
    if (thread() < 32) shared_store16(a + 16 * thread(), load16(arguments.a + 8 * thread()));
    if (thread() >= 32 && thread() < 48) copy_async16(b + 16 * (thread() - 32), arguments.b + 8 * (thread() - 32));
    copy_commit();
    copy_wait<0>();
    sync_cta();
    uint32_t of_a[4], of_b[4], of_b2[2];
    ldmatrix_x4(of_a, a + lane() % 16 * 32 + lane() / 16 * 16);
    if (transposed) {
        ldmatrix_x4(of_b, b + lane() % 8 * 32 + lane() / 8 % 2 * 16);
    } else {
        ldmatrix_x4_trans(of_b, b + lane() % 16 * 16);
    }
    of_b2[0] = of_b[0], of_b2[1] = of_b[1];
    float d[4] = {1, 1, 1, 1};
    mma_bf16(d, of_a, of_b2);
    float* out = arguments.out + 128 * warp() + lane() / 4 * 8 + lane() % 4 * 2;
    store_float(out, d[0]), store_float(out + 1, d[1]);
    store_float(out + 64, d[2]), store_float(out + 65, d[3]);
}

KERNEL(shuffles, Arguments, THREADS, 1) {
    store_float(arguments.out + thread(), shuffle_xor(multiply_add(thread(), 2, 1), 5));
}

KERNEL(faults, Arguments, THREADS, 1) {
    Shared memory = shared_base();
    float x = 0;
    switch (arguments.what) {
        case 0:  // lanes of a warp in different collectives
            if (lane() < 7) sync_warp();
            else x = shuffle_xor(x, 1);
            break;
        case 1:  // a thread that never comes
            if (thread() != 40) sync_cta();
            break;
        case 2: shared_store4(memory + SHARED_BYTES, 0); break;
        case 3: x = low_bf16(shared_load16(memory + 8).v[0]); break;
        case 4: x = load_float(arguments.out + 64); break;
        case 5: copy_async16(memory, arguments.a), copy_commit(); break;
        case 6: x = shared_load_float(memory + 4 * thread()); break;  // was not written: NaN
        case 7:  // one group of two was waited for
            copy_async16(memory + 16 * thread(), arguments.a), copy_commit();
            copy_async16(memory + 16 * (64 + thread()), arguments.a, false), copy_commit();
            copy_wait<1>();
            x = shared_load_float(memory + 16 * thread()) + shared_load_float(memory + 16 * (64 + thread()));
            copy_wait<0>();
            break;
        case 9:  // a warp writes what another reads
            if (warp() == 0) x = shared_load_float(memory + 128 + 4 * lane());
            else shared_store_float(memory + 128 + 4 * lane(), 1);
            break;
        case 10:  // and the other way round
            if (warp() == 0) shared_store_float(memory + 128 + 4 * lane(), 1);
            else x = shared_load_float(memory + 128 + 4 * lane());
            break;
        case 8:  // without a fault, and the copy that does not exist is zeros
            copy_async16(memory + 16 * thread(), nullptr, false), copy_commit(), copy_wait<0>();
            x = shared_load_float(memory + 16 * thread());
            break;
    }
    store_float(arguments.out + thread(), x);
}
