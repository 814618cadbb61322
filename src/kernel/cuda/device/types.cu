// Number formats, and what the threads of a warp or block do together. First of the files that make one module.
//
// Every kernel is a template over T, the format of what matrix products read and write: float, Float16 or Bfloat16. Sums,
// norms, softmax and the residual stream are float in all of them. Nothing from CUDA's headers is needed, so that a
// compiler alone makes the module.

using u16 = unsigned short;
using u32 = unsigned int;

// The upper half of a float.
struct Bfloat16 {
    u16 bits;
};

// The half precision of IEEE 754: three bits more than Bfloat16, and infinity where a float is beyond 65,504.
struct Float16 {
    u16 bits;
};

__device__ __forceinline__ float widen(float value) { return value; }

__device__ __forceinline__ float widen(Bfloat16 value) { return __uint_as_float(u32(value.bits) << 16); }

__device__ __forceinline__ float widen(Float16 value) {
#ifdef EMULATED
    return emulated_widen(value.bits);
#else
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
    return wide;
#endif
}

template <typename T> __device__ __forceinline__ T narrow(float value);

template <> __device__ __forceinline__ float narrow<float>(float value) { return value; }

// To the nearest, ties to even; a NaN stays one.
template <> __device__ __forceinline__ Bfloat16 narrow<Bfloat16>(float value) {
    u32 bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return Bfloat16{u16((bits >> 16) | 0x40u)};
    return Bfloat16{u16((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

template <> __device__ __forceinline__ Float16 narrow<Float16>(float value) {
#ifdef EMULATED
    return Float16{emulated_narrow(value)};
#else
    Float16 narrowed;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrowed.bits) : "f"(value));
    return narrowed;
#endif
}

// Two neighbours in one register, the first one in the lower half, as mma.sync reads them.
template <typename T> __device__ __forceinline__ u32 pack(float first, float second) {
    return u32(narrow<T>(first).bits) | (u32(narrow<T>(second).bits) << 16);
}

// 16 bytes, moved at once.
template <typename T> struct alignas(16) Vector {
    static constexpr int LENGTH = 16 / sizeof(T);
    T at[LENGTH];
};

constexpr int WARP = 32;
constexpr u32 ALL_LANES = 0xffffffffu;

__device__ __forceinline__ float warp_sum(float value) {
    for (int distance = WARP / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(ALL_LANES, value, distance);
    return value;
}

__device__ __forceinline__ float warp_max(float value) {
    for (int distance = WARP / 2; distance > 0; distance /= 2)
        value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, distance));
    return value;
}

// The sum over all threads of the block, in a fixed order, for each of them. `parts` holds one float per warp.
__device__ __forceinline__ float block_sum(float value, float* parts) {
    value = warp_sum(value);
    __syncthreads();  // The sum before may still be read.
    if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = value;
    __syncthreads();
    float sum = 0.0f;
    for (int warp = 0; warp < int(blockDim.x) / WARP; ++warp) sum += parts[warp];
    return sum;
}
