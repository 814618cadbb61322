// One vector per sequence, for all sequences of a batch at once.

enum Reduce { FIRST = 0, LAST = 1, MAX = 2, MEAN = 3, MEAN_SQRT_LEN = 4, WEIGHTED_MEAN = 5 };

// hidden `[tokens, width]` to `[sequences, stride]` from column `column` on. `offsets` has one entry more than there are
// sequences; the first `skips` rows of each are left out. What is given where nothing is left is what the CPU gives.
// Grid: sequences, columns in blocks of threads.
extern "C" __global__ void pool(
    const float* hidden, const u32* offsets, const u32* skips, int reduce, int width, int column, int stride,
    float* out) {
    const int i = blockIdx.y * blockDim.x + threadIdx.x;
    if (i >= width) return;
    const size_t sequence = blockIdx.x;
    const u32 start = offsets[sequence], end = offsets[sequence + 1];
    const u32 skip = min(skips[sequence], end - start), kept = end - start - skip;
    const float* values = hidden + size_t(start) * width + i;
    float result = 0.0f;
    if (reduce == MAX) {
        result = -INFINITY;
        // Not fmaxf, which would hide a NaN.
        for (u32 row = skip; row < end - start; ++row) {
            const float value = values[size_t(row) * width];
            result = value <= result ? result : value;
        }
    } else if (end == start || (kept == 0 && reduce != FIRST)) {
        result = 0.0f;
    } else if (reduce == FIRST) {
        result = values[kept == 0 ? 0 : size_t(skip) * width];
    } else if (reduce == LAST) {
        result = values[size_t(end - start - 1) * width];
    } else {
        // In double, as on the CPU: 8,192 tokens lose nothing.
        double sum = 0.0, weights = 0.0;
        for (u32 row = skip; row < end - start; ++row) {
            const double weight = reduce == WEIGHTED_MEAN ? double(row + 1) : 1.0;
            sum += weight * double(values[size_t(row) * width]);
            weights += weight;
        }
        result = float(sum / (reduce == MEAN_SQRT_LEN ? sqrt(weights) : weights));
    }
    out[sequence * stride + column + i] = result;
}
