// Activations of the feed-forward networks, plain in place and gated.

enum Activation { NONE = 0, GELU = 1, GELU_TANH = 2, RELU = 3, SILU = 4, TANH = 5 };

// GELU by its definition, x·Φ(x): the error function, not its tanh approximation, unless a model asks for that.
__device__ __forceinline__ float activated(float x, int activation) {
    switch (activation) {
        case GELU: return 0.5f * x * erfcf(-0.70710678118654752f * x);
        case GELU_TANH: return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
        case RELU: return x > 0.0f || x != x ? x : 0.0f;
        case SILU: return x / (1.0f + expf(-x));
        case TANH: return tanhf(x);
        default: return x;
    }
}

// In place, `n` values, a multiple of a vector's length. Grid: any; threads stride.
template <typename T> __device__ void activate(T* values, unsigned long long n, int activation) {
    auto* vectors = reinterpret_cast<Vector<T>*>(values);
    const size_t stride = size_t(gridDim.x) * blockDim.x;
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n / Vector<T>::LENGTH; i += stride) {
        Vector<T> vector = vectors[i];
        for (T& value : vector.at) value = narrow<T>(activated(widen(value), activation));
        vectors[i] = vector;
    }
}

// act(x[:, :width])·x[:, width:] of `[rows, 2·width]`, into `[rows, width]`; a width of whole vectors. Grid: rows.
template <typename T> __device__ void gate(const T* values, int width, int activation, T* out) {
    constexpr int LENGTH = Vector<T>::LENGTH;
    const size_t row = blockIdx.x;
    const auto* active = reinterpret_cast<const Vector<T>*>(values + row * 2 * width);
    const auto* linear = reinterpret_cast<const Vector<T>*>(values + row * 2 * width + width);
    auto* product = reinterpret_cast<Vector<T>*>(out + row * width);
    for (int i = threadIdx.x; i < width / LENGTH; i += blockDim.x) {
        const Vector<T> a = active[i], b = linear[i];
        Vector<T> result;
        for (int j = 0; j < LENGTH; ++j)
            result.at[j] = narrow<T>(activated(widen(a.at[j]), activation) * widen(b.at[j]));
        product[i] = result;
    }
}

#define ACTIVATION_KERNELS(T, suffix)                                                                                 \
    extern "C" __global__ void activate_##suffix(T* values, unsigned long long n, int activation) {                   \
        activate<T>(values, n, activation);                                                                           \
    }                                                                                                                 \
    extern "C" __global__ void gate_##suffix(const T* values, int width, int activation, T* out) {                    \
        gate<T>(values, width, activation, out);                                                                      \
    }

ACTIVATION_KERNELS(float, f32)
ACTIVATION_KERNELS(Float16, f16)
ACTIVATION_KERNELS(Bfloat16, bf16)
