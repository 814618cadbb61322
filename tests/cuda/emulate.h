// What src/kernel/cuda/device/*.cu need of a GPU, on one thread of a CPU: the blocks of a launch one after another, the
// threads of a block as coroutines that take turns at barriers and shuffles.
//
// It knows the arithmetic and the order of events, not the speed or the memory model of a device. Threads take turns in a
// new random order each time, so that a missing barrier is likely to give a wrong result, and shared memory begins
// as NaNs.
#pragma once

#define EMULATED
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(threads)

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

struct Dimensions {
    unsigned x, y, z;
};

extern Dimensions threadIdx, blockIdx, blockDim, gridDim;

using std::max;
using std::min;

inline float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

void __syncthreads();
void __syncwarp();

// Each lane gives 64 bits and gets those of another one. All lanes of a warp have to come.
uint64_t exchange(uint64_t mine, unsigned from);
unsigned lane();

template <typename V> V __shfl_sync(unsigned, V value, int from) {
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    bits = exchange(bits, unsigned(from) % 32);
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

template <typename V> V __shfl_xor_sync(unsigned mask, V value, int distance) {
    return __shfl_sync(mask, value, int(lane() ^ unsigned(distance)));
}

// cvt.f32.f16 and cvt.rn.f16.f32 by their definition: in double every step is exact.
inline float emulated_widen(unsigned short bits) {
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    const double value = exponent == 0 ? std::ldexp(fraction, -24)
        : exponent < 31                ? std::ldexp(1024 + fraction, exponent - 25)
        : fraction                     ? double(NAN)
                                       : double(INFINITY);
    return float(bits & 0x8000 ? -value : value);
}

inline unsigned short emulated_narrow(float value) {
    const unsigned short sign = std::signbit(value) ? 0x8000 : 0;
    const double size = std::fabs(double(value));
    if (std::isnan(value)) return 0x7fff;
    if (size == 0) return sign;
    // Halfway to the number that would follow the largest one, ties to even: infinity.
    if (size >= 65520.0) return sign | 0x7c00;
    int exponent = 0;
    std::frexp(size, &exponent);
    // A unit in the last place; subnormal numbers all have the same.
    exponent = max(exponent - 11, -24);
    const auto units = unsigned(std::nearbyint(std::ldexp(size, -exponent)));
    // With the implicit bit in it, and with what rounding carried into it, the exponent counts itself.
    return sign | (unsigned short)(units + (unsigned(exponent + 24) << 10));
}

// mma.sync.m16n8k16, from its definition: fragments are gathered from all lanes, products summed in float. `widen` reads the
// lower half of its argument.
void emulated_mma(
    float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, const std::function<float(unsigned)>& widen);

// Runs `before` for every block, and `thread` for each of its threads.
void launch(
    Dimensions grid, Dimensions block, const std::function<void()>& before, const std::function<void()>& thread);

// Of the driver: puts work into a stream. Returns what a call of the driver would.
int emulated_work(void* stream, std::function<void()> work);
