// The part of cublasLt's interface that the server uses: op(a)·op(b) + bias, column-major, as its documentation says.

#include "emulate.h"

#include <vector>

namespace {

using Status = int;
constexpr Status SUCCESS = 0, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15;
// cudaDataType and cublasLtMatmulDescAttributes_t.
constexpr int R_32F = 0, R_16F = 2, R_16BF = 14, TRANSA = 3, TRANSB = 4, EPILOGUE = 7, BIAS_POINTER = 8, EPILOGUE_BIAS = 4;

struct Layout {
    int type;
    uint64_t rows, columns;
    int64_t leading;
};

struct Description {
    int transpose_a = 0, transpose_b = 0, epilogue = 1;
    const void* bias = nullptr;
};

float get(const void* values, int type, size_t index) {
    if (type == R_32F) return static_cast<const float*>(values)[index];
    const uint16_t bits = static_cast<const uint16_t*>(values)[index];
    return type == R_16F ? emulated_widen(bits) : __uint_as_float(unsigned(bits) << 16);
}

void put(void* values, int type, size_t index, float value) {
    if (type == R_32F) {
        static_cast<float*>(values)[index] = value;
        return;
    }
    const unsigned bits = __float_as_uint(value);
    static_cast<uint16_t*>(values)[index] =
        type == R_16F ? emulated_narrow(value) : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// A matrix as rows of `depth` values, whichever way it lies.
std::vector<float> gathered(const void* values, const Layout& layout, bool columns_are_rows, size_t n, size_t depth) {
    std::vector<float> out(n * depth);
    for (size_t i = 0; i < n; ++i)
        for (size_t k = 0; k < depth; ++k) {
            const size_t index = columns_are_rows ? i * layout.leading + k : k * layout.leading + i;
            out[i * depth + k] = get(values, layout.type, index);
        }
    return out;
}

struct Operand {
    Layout layout;
    const void* values;
};

struct Result {
    Layout layout;
    void* values;
};

// op(a)·op(b) and the bias, as long as the sum over `k`.
void product(const Description& desc, const Operand& a, const Operand& b, const Result& d, size_t k) {
    const Layout& of_d = d.layout;
    const size_t m = of_d.rows, n = of_d.columns;
    const auto left = gathered(a.values, a.layout, desc.transpose_a, m, k);
    const auto right = gathered(b.values, b.layout, !desc.transpose_b, n, k);
    for (size_t column = 0; column < n; ++column)
        for (size_t row = 0; row < m; ++row) {
            const float *x = &left[row * k], *y = &right[column * k];
            float lanes[8] = {};
            size_t i = 0;
            for (; i + 8 <= k; i += 8)
                for (size_t j = 0; j < 8; ++j) lanes[j] += x[i + j] * y[i + j];
            float sum = 0;
            for (float lane : lanes) sum += lane;
            for (; i < k; ++i) sum += x[i] * y[i];
            if (desc.epilogue == EPILOGUE_BIAS) sum += get(desc.bias, of_d.type, row);
            put(d.values, of_d.type, column * size_t(of_d.leading) + row, sum);
        }
}

}  // namespace

extern "C" {

Status cublasLtCreate(void** handle) { return *handle = new int(1), SUCCESS; }
Status cublasLtDestroy(void* handle) { return delete static_cast<int*>(handle), SUCCESS; }

Status cublasLtMatrixLayoutCreate(void** layout, int type, uint64_t rows, uint64_t columns, int64_t leading) {
    if (type != R_32F && type != R_16F && type != R_16BF) return NOT_SUPPORTED;
    return *layout = new Layout{type, rows, columns, leading}, SUCCESS;
}
Status cublasLtMatrixLayoutSetAttribute(void* layout, int attribute, const void* value, size_t size) {
    constexpr int COLUMNS = 3;
    if (attribute != COLUMNS) return NOT_SUPPORTED;
    return std::memcpy(&static_cast<Layout*>(layout)->columns, value, size), SUCCESS;
}
Status cublasLtMatrixLayoutDestroy(void* layout) { return delete static_cast<Layout*>(layout), SUCCESS; }

Status cublasLtMatmulDescCreate(void** description, int compute, int scale) {
    // CUBLAS_COMPUTE_32F: neither TF32 nor anything narrower.
    if (compute != 68 || scale != R_32F) return NOT_SUPPORTED;
    return *description = new Description, SUCCESS;
}
Status cublasLtMatmulDescDestroy(void* description) { return delete static_cast<Description*>(description), SUCCESS; }
Status cublasLtMatmulDescSetAttribute(void* description, int attribute, const void* value, size_t size) {
    auto* desc = static_cast<Description*>(description);
    switch (attribute) {
        case TRANSA: return std::memcpy(&desc->transpose_a, value, size), SUCCESS;
        case TRANSB: return std::memcpy(&desc->transpose_b, value, size), SUCCESS;
        case EPILOGUE: return std::memcpy(&desc->epilogue, value, size), SUCCESS;
        case BIAS_POINTER: return std::memcpy(&desc->bias, value, size), SUCCESS;
        default: return NOT_SUPPORTED;
    }
}

Status cublasLtMatmulPreferenceCreate(void** preference) { return *preference = new int(1), SUCCESS; }
Status cublasLtMatmulPreferenceDestroy(void* preference) { return delete static_cast<int*>(preference), SUCCESS; }
Status cublasLtMatmulPreferenceSetAttribute(void*, int, const void*, size_t) { return SUCCESS; }

// cublasLtMatmulHeuristicResult_t: the algorithm's 64 bytes, the workspace, the state.
struct Found {
    uint64_t algorithm[8];
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};
Status cublasLtMatmulAlgoGetHeuristic(
    void*, void*, void*, void*, void*, void*, void*, int, Found* found, int* n_found) {
    std::memset(found, 0, sizeof *found);
    return *n_found = 1, SUCCESS;
}

Status cublasLtMatmul(
    void*, void* description, const float* alpha, const void* a, void* a_layout, const void* b, void* b_layout,
    const float* beta, const void*, void*, void* d, void* d_layout, const void*, void*, size_t, void* stream) {
    // As they are now: whoever asks may change them for the next product before this one is computed.
    const auto desc = *static_cast<Description*>(description);
    const auto of_a = *static_cast<Layout*>(a_layout), of_b = *static_cast<Layout*>(b_layout);
    const auto of_d = *static_cast<Layout*>(d_layout);
    const size_t m = of_d.rows, n = of_d.columns, k = desc.transpose_a ? of_a.rows : of_a.columns;
    const bool fits = (desc.transpose_a ? of_a.columns : of_a.rows) == m
        && (desc.transpose_b ? of_b.columns : of_b.rows) == k && (desc.transpose_b ? of_b.rows : of_b.columns) == n;
    if (!fits || *alpha != 1.0f || *beta != 0.0f) return NOT_SUPPORTED;
    const Status status = emulated_work(stream, [=] { product(desc, {of_a, a}, {of_b, b}, {of_d, d}, k); });
    return status == 0 ? SUCCESS : status == 700 ? EXECUTION_FAILED : NOT_SUPPORTED;
}

}  // extern "C"
