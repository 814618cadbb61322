// What happens to whole rows of the residual stream: embedding, and the sum with a block's output, both with their norm.
// One block of threads per token; the row lies in shared memory.

enum NormKind { NORM_NONE = 0, NORM_LAYER = 1, NORM_ROOT_MEAN_SQUARE = 2 };

// Two passes, as on the CPU: mean(x²) − mean(x)² would cancel.
__device__ __forceinline__ void normalise(
    float* row, int width, const float* gamma, const float* beta, float epsilon, int kind, float* parts) {
    if (kind == NORM_NONE) return;
    float mean = 0.0f;
    if (kind == NORM_LAYER) {
        float sum = 0.0f;
        for (int i = threadIdx.x; i < width; i += blockDim.x) sum += row[i];
        mean = block_sum(sum, parts) / float(width);
    }
    float squares = 0.0f;
    for (int i = threadIdx.x; i < width; i += blockDim.x) squares += (row[i] - mean) * (row[i] - mean);
    const float inverse = 1.0f / sqrtf(block_sum(squares, parts) / float(width) + epsilon);
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        const float scaled = (row[i] - mean) * inverse * gamma[i];
        row[i] = beta ? scaled + beta[i] : scaled;
    }
}

// norm(word + position + type) of each token; tables that a model lacks are null. Grid: tokens.
template <typename T>
__device__ void embed(
    const u32* ids, const u32* positions, const float* word, const float* position, const float* token_type,
    const float* gamma, const float* beta, float epsilon, int kind, int width, float* residual, T* out) {
    extern __shared__ float row[];
    __shared__ float parts[WARP];
    const size_t token = blockIdx.x;
    const float* words = word + size_t(ids[token]) * width;
    const float* places = position ? position + size_t(positions[token]) * width : nullptr;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        float value = words[i];
        if (places) value += places[i];
        if (token_type) value += token_type[i];
        row[i] = value;
    }
    normalise(row, width, gamma, beta, epsilon, kind, parts);
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        residual[token * width + i] = row[i];
        out[token * width + i] = narrow<T>(row[i]);
    }
}

// residual + block, then the norm. Where norms stand after the blocks, the stream goes on normalised; where they stand
// before, it goes on as the sum, and only the next block's input is normalised. Without a block, the norm alone. A stream
// that begins is the block alone. Grid: tokens.
enum StreamKind { STREAM_NORMALISED = 0, STREAM_SUM = 1, STREAM_BLOCK = 2 };

template <typename T>
__device__ void add_norm(
    float* residual, const T* block, const float* gamma, const float* beta, float epsilon, int kind, int stream,
    int width, T* out) {
    extern __shared__ float row[];
    __shared__ float parts[WARP];
    const size_t start = size_t(blockIdx.x) * width;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        const float before = stream == STREAM_BLOCK ? 0.0f : residual[start + i];
        const float value = before + (block ? widen(block[start + i]) : 0.0f);
        row[i] = value;
        if (stream != STREAM_NORMALISED) residual[start + i] = value;
    }
    normalise(row, width, gamma, beta, epsilon, kind, parts);
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        if (stream == STREAM_NORMALISED) residual[start + i] = row[i];
        out[start + i] = narrow<T>(row[i]);
    }
}

#define NORM_KERNELS(T, suffix)                                                                                       \
    extern "C" __global__ void embed_##suffix(                                                                        \
        const u32* ids, const u32* positions, const float* word, const float* position, const float* token_type,      \
        const float* gamma, const float* beta, float epsilon, int kind, int width, float* residual, T* out) {         \
        embed<T>(                                                                                                     \
            ids, positions, word, position, token_type, gamma, beta, epsilon, kind, width, residual, out);            \
    }                                                                                                                 \
    extern "C" __global__ void add_norm_##suffix(                                                                     \
        float* residual, const T* block, const float* gamma, const float* beta, float epsilon, int kind,              \
        int stream, int width, T* out) {                                                                              \
        add_norm<T>(residual, block, gamma, beta, epsilon, kind, stream, width, out);                                 \
    }

NORM_KERNELS(float, f32)
NORM_KERNELS(Float16, f16)
NORM_KERNELS(Bfloat16, bf16)
