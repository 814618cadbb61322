// Attention inside each sequence of a packed batch: softmax(scale·q·kᵀ + bias)·v, exact, in one pass over the keys with a
// running maximum (Milakov and Gimelshein 2018; Dao et al. 2022). Queries, keys and values are `[tokens, 3·inner]`, side
// by side; a context row is `[inner]`.
//
// A block of threads takes one head of one tile of queries. Tiles never span sequences, so a row's context does not
// depend on the batch.

// Some queries of one sequence.
struct Tile {
    u32 start;   // First token of the sequence.
    u32 length;  // Its tokens.
    u32 query;   // First query of the tile, counted in the sequence.
};

// What is the same for all tiles of a launch.
struct Scores {
    float scale;
    const float* bias;  // `[heads, 2·reach + 1]` by key − query, clamped; or null.
    int reach;
    int window;  // A query sees the keys at most this far away; negative: all.
};

__device__ __forceinline__ float score(float product, int query, int key, int head, const Scores& scores) {
    const int distance = key - query;
    if (scores.window >= 0 && (distance > scores.window || -distance > scores.window)) return -INFINITY;
    // A product that overflowed is NaN from here on: -infinity would pass for a key that is not seen.
    float value = product * scores.scale + product * 0.0f;
    if (scores.bias) {
        const int near = min(max(distance, -scores.reach), scores.reach);
        value += scores.bias[size_t(head) * (2 * scores.reach + 1) + near + scores.reach];
    }
    return value;
}

// The keys that any of these queries sees: [first, last), the first one rounded down to a whole tile of keys.
__device__ __forceinline__ int first_key(int query, int tile, const Scores& scores) {
    return scores.window < 0 ? 0 : max(query - scores.window, 0) / tile * tile;
}

__device__ __forceinline__ int end_key(int last_query, int length, const Scores& scores) {
    return scores.window < 0 ? length : min(length, last_query + scores.window + 1);
}

// Pairs (x[i], x[i + d/2]) of queries and keys turn by their position. Grid: tokens; `places` counts in the sequence.
template <typename T>
__device__ void rotate(T* qkv, const u32* places, const float* cosines, const float* sines, int n_heads, int head_size) {
    const int half = head_size / 2, inner = n_heads * head_size;
    const size_t token = blockIdx.x;
    const float* cosine = cosines + size_t(places[token]) * half;
    const float* sine = sines + size_t(places[token]) * half;
    for (int pair = threadIdx.x; pair < 2 * n_heads * half; pair += blockDim.x) {
        // Keys follow the queries, so heads count through both.
        T* head = qkv + token * 3 * inner + size_t(pair / half) * head_size;
        const int i = pair % half;
        const float a = widen(head[i]), b = widen(head[i + half]);
        head[i] = narrow<T>(a * cosine[i] - b * sine[i]);
        head[i + half] = narrow<T>(b * cosine[i] + a * sine[i]);
    }
}

constexpr int EXACT_QUERIES = 16;  // Of a tile, four for each of four warps.
constexpr int EXACT_KEYS = WARP;   // One for each lane.
constexpr int MAX_HEAD = 128;

// All in float, any head size up to 128. Grid: tiles, heads; 128 threads; shared memory for 16 queries, 32 keys and
// values, a float more for each key against bank conflicts, and the weights of both.
__device__ void attend_exact(
    const float* qkv, const Tile* tiles, int n_heads, int head_size, const Scores& scores, float* out) {
    extern __shared__ float shared[];
    constexpr int PER_WARP = EXACT_QUERIES / 4, COLUMNS = MAX_HEAD / WARP;
    float* queries = shared;
    float* keys = queries + EXACT_QUERIES * head_size;
    float* values = keys + EXACT_KEYS * (head_size + 1);
    float* weights = values + EXACT_KEYS * head_size;
    const Tile tile = tiles[blockIdx.x];
    const int head = blockIdx.y, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int inner = n_heads * head_size, length = int(tile.length), first = int(tile.query);
    const float* rows = qkv + size_t(tile.start) * 3 * inner + head * head_size;
    const int n_queries = min(EXACT_QUERIES, length - first);

    for (int i = threadIdx.x; i < EXACT_QUERIES * head_size; i += blockDim.x) {
        const int query = i / head_size;
        queries[i] = query < n_queries ? rows[size_t(first + query) * 3 * inner + i % head_size] : 0.0f;
    }
    float most[PER_WARP], sum[PER_WARP], context[PER_WARP][COLUMNS];
    for (int q = 0; q < PER_WARP; ++q) {
        most[q] = -INFINITY;
        sum[q] = 0.0f;
        for (int c = 0; c < COLUMNS; ++c) context[q][c] = 0.0f;
    }
    const int end = end_key(first + n_queries - 1, length, scores);
    for (int start = first_key(first, EXACT_KEYS, scores); start < end; start += EXACT_KEYS) {
        __syncthreads();
        for (int i = threadIdx.x; i < EXACT_KEYS * head_size; i += blockDim.x) {
            const int key = i / head_size, column = i % head_size;
            const bool exists = start + key < length;
            const float* row = rows + size_t(start + key) * 3 * inner + column;
            keys[key * (head_size + 1) + column] = exists ? row[inner] : 0.0f;
            values[i] = exists ? row[2 * inner] : 0.0f;
        }
        __syncthreads();
        for (int q = 0; q < PER_WARP; ++q) {
            const int query = warp * PER_WARP + q, key = start + lane;
            float product = 0.0f;
            for (int column = 0; column < head_size; ++column)
                product += queries[query * head_size + column] * keys[lane * (head_size + 1) + column];
            const float value = key < length ? score(product, first + query, key, head, scores) : -INFINITY;
            const float now = fmaxf(most[q], warp_max(value));
            // Where nothing was seen yet, nothing is to be shrunk, and exp(−∞ − 0) is 0.
            const float base = now == -INFINITY ? 0.0f : now;
            const float weight = expf(value - base), shrink = expf(most[q] - base);
            most[q] = now;
            sum[q] = sum[q] * shrink + warp_sum(weight);
            for (int c = 0; c < COLUMNS; ++c) context[q][c] *= shrink;
            weights[query * EXACT_KEYS + lane] = weight;
        }
        __syncwarp();
        for (int key = 0; key < EXACT_KEYS; ++key)
            for (int c = 0; c < COLUMNS; ++c) {
                const int column = c * WARP + lane;
                if (column >= head_size) continue;
                const float value = values[key * head_size + column];
                for (int q = 0; q < PER_WARP; ++q)
                    context[q][c] += weights[(warp * PER_WARP + q) * EXACT_KEYS + key] * value;
            }
    }
    for (int q = 0; q < PER_WARP; ++q) {
        const int query = warp * PER_WARP + q;
        if (query >= n_queries) continue;
        float* row = out + (size_t(tile.start) + first + query) * inner + head * head_size;
        for (int c = 0; c < COLUMNS; ++c) {
            const int column = c * WARP + lane;
            if (column < head_size) row[column] = context[q][c] / sum[q];
        }
    }
}

// c += a·b of 16×16 and 16×8 values of T by one warp. In terms of g = lane / 4 and t = lane % 4: a holds the pairs
// (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8) of rows and columns, b the pairs of rows 2t and 2t + 8 of column g,
// c the pairs (g, 2t) and (g + 8, 2t). PTX ISA, "Matrix Fragments for mma.m16n8k16".
#ifdef EMULATED

template <typename T>
__device__ __forceinline__ void multiply_add(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    emulated_mma(c, a, b0, b1, [](u32 bits) { return widen(T{u16(bits)}); });
}

#else

template <typename T>
__device__ __forceinline__ void multiply_add(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1);

#define MULTIPLY_ADD(T, name)                                                                                         \
    template <>                                                                                                       \
    __device__ __forceinline__ void multiply_add<T>(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {               \
        asm volatile(                                                                                                 \
            "mma.sync.aligned.m16n8k16.row.col.f32." name "." name                                                    \
            ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                                              \
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                          \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                                          \
    }

MULTIPLY_ADD(Float16, "f16")
MULTIPLY_ADD(Bfloat16, "bf16")

#endif

constexpr int TILE_QUERIES = 64;  // 16 for each of four warps.
constexpr int TILE_KEYS = 64;
// Rows of shared memory end with 16 bytes that nobody reads: the eight rows of a fragment then lie in different banks.
constexpr int PADDING = 8;

// Products of 16-bit floats on the matrix units, sums and softmax in float. Grid: tiles, heads; 128 threads; shared memory
// for 64 keys and, transposed, 64 values.
template <typename T, int HEAD>
__device__ void attend_tiles(const T* qkv, const Tile* tiles, int n_heads, const Scores& scores, T* out) {
    extern __shared__ Vector<u16> shared_vectors[];
    constexpr int KEY_ROW = HEAD + PADDING, VALUE_ROW = TILE_KEYS + PADDING;
    constexpr int STEPS = HEAD / 16, KEY_COLUMNS = TILE_KEYS / 8, HEAD_COLUMNS = HEAD / 8;
    constexpr int LENGTH = Vector<u16>::LENGTH;
    u16* keys = reinterpret_cast<u16*>(shared_vectors);
    u16* values = keys + TILE_KEYS * KEY_ROW;
    const Tile tile = tiles[blockIdx.x];
    const int head = blockIdx.y, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int g = lane / 4, t = lane % 4;
    const int inner = n_heads * HEAD, length = int(tile.length), first = int(tile.query);
    const u16* rows = reinterpret_cast<const u16*>(qkv) + size_t(tile.start) * 3 * inner + head * HEAD;
    const int n_queries = min(TILE_QUERIES, length - first);
    // This lane's two rows. Those beyond the end compute with the last query and are not written.
    const int upper = warp * 16 + g, lower = upper + 8;
    const int upper_query = first + min(upper, n_queries - 1), lower_query = first + min(lower, n_queries - 1);

    u32 queries[STEPS][4];
    for (int step = 0; step < STEPS; ++step) {
        const u16* up = rows + size_t(upper_query) * 3 * inner + step * 16 + 2 * t;
        const u16* low = rows + size_t(lower_query) * 3 * inner + step * 16 + 2 * t;
        queries[step][0] = *reinterpret_cast<const u32*>(up);
        queries[step][1] = *reinterpret_cast<const u32*>(low);
        queries[step][2] = *reinterpret_cast<const u32*>(up + 8);
        queries[step][3] = *reinterpret_cast<const u32*>(low + 8);
    }
    float context[HEAD_COLUMNS][4];
    for (auto& column : context)
        for (float& value : column) value = 0.0f;
    float most[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};

    const int end = end_key(first + n_queries - 1, length, scores);
    for (int start = first_key(first, TILE_KEYS, scores); start < end; start += TILE_KEYS) {
        __syncthreads();
        for (int i = threadIdx.x; i < TILE_KEYS * HEAD / LENGTH; i += blockDim.x) {
            const int key = i / (HEAD / LENGTH), column = i % (HEAD / LENGTH) * LENGTH;
            // Zeros, not whatever lies behind the batch: a weight of zero times NaN is NaN.
            Vector<u16> k = {}, v = {};
            if (start + key < length) {
                const u16* row = rows + size_t(start + key) * 3 * inner + column;
                k = *reinterpret_cast<const Vector<u16>*>(row + inner);
                v = *reinterpret_cast<const Vector<u16>*>(row + 2 * inner);
            }
            *reinterpret_cast<Vector<u16>*>(keys + key * KEY_ROW + column) = k;
            for (int j = 0; j < LENGTH; ++j) values[(column + j) * VALUE_ROW + key] = v.at[j];
        }
        __syncthreads();

        float weights[KEY_COLUMNS][4];
        float now[2] = {most[0], most[1]};
        for (int column = 0; column < KEY_COLUMNS; ++column) {
            float (&products)[4] = weights[column];
            for (float& product : products) product = 0.0f;
            const u16* row = keys + (column * 8 + g) * KEY_ROW + 2 * t;
            for (int step = 0; step < STEPS; ++step) {
                const u32 b0 = *reinterpret_cast<const u32*>(row + step * 16);
                const u32 b1 = *reinterpret_cast<const u32*>(row + step * 16 + 8);
                multiply_add<T>(products, queries[step], b0, b1);
            }
            for (int i = 0; i < 4; ++i) {
                const int key = start + column * 8 + 2 * t + i % 2;
                const int query = i < 2 ? upper_query : lower_query;
                products[i] = key < length ? score(products[i], query, key, head, scores) : -INFINITY;
                now[i / 2] = fmaxf(now[i / 2], products[i]);
            }
        }
        float shrink[2];
        for (int half = 0; half < 2; ++half) {
            // The four lanes of a row.
            now[half] = fmaxf(now[half], __shfl_xor_sync(ALL_LANES, now[half], 1));
            now[half] = fmaxf(now[half], __shfl_xor_sync(ALL_LANES, now[half], 2));
            // Where nothing was seen yet, nothing is to be shrunk, and exp(−∞ − 0) is 0.
            const float base = now[half] == -INFINITY ? 0.0f : now[half];
            shrink[half] = expf(most[half] - base);
            most[half] = now[half];
            float part = 0.0f;
            for (auto& column : weights)
                for (int i = 2 * half; i < 2 * half + 2; ++i) part += column[i] = expf(column[i] - base);
            part += __shfl_xor_sync(ALL_LANES, part, 1);
            part += __shfl_xor_sync(ALL_LANES, part, 2);
            sum[half] = sum[half] * shrink[half] + part;
        }
        for (auto& column : context)
            for (int i = 0; i < 4; ++i) column[i] *= shrink[i / 2];
        // What two products left in this lane is what the next one reads.
        for (int step = 0; step < TILE_KEYS / 16; ++step) {
            const float (&left)[4] = weights[2 * step];
            const float (&right)[4] = weights[2 * step + 1];
            const u32 shares[4] = {
                pack<T>(left[0], left[1]), pack<T>(left[2], left[3]), pack<T>(right[0], right[1]),
                pack<T>(right[2], right[3])};
            for (int column = 0; column < HEAD_COLUMNS; ++column) {
                const u16* row = values + (column * 8 + g) * VALUE_ROW + step * 16 + 2 * t;
                const u32 b0 = *reinterpret_cast<const u32*>(row);
                const u32 b1 = *reinterpret_cast<const u32*>(row + 8);
                multiply_add<T>(context[column], shares, b0, b1);
            }
        }
    }
    u16* target = reinterpret_cast<u16*>(out) + (size_t(tile.start) + first) * inner + head * HEAD + 2 * t;
    for (int column = 0; column < HEAD_COLUMNS; ++column) {
        const float (&c)[4] = context[column];
        u16* up = target + size_t(upper) * inner + column * 8;
        u16* low = target + size_t(lower) * inner + column * 8;
        if (upper < n_queries) *reinterpret_cast<u32*>(up) = pack<T>(c[0] / sum[0], c[1] / sum[0]);
        if (lower < n_queries) *reinterpret_cast<u32*>(low) = pack<T>(c[2] / sum[1], c[3] / sum[1]);
    }
}

#define ROTATE_KERNEL(T, suffix)                                                                                      \
    extern "C" __global__ void rotate_##suffix(                                                                       \
        T* qkv, const u32* places, const float* cosines, const float* sines, int n_heads, int head_size) {            \
        rotate<T>(qkv, places, cosines, sines, n_heads, head_size);                                                   \
    }

ROTATE_KERNEL(float, f32)
ROTATE_KERNEL(Float16, f16)
ROTATE_KERNEL(Bfloat16, bf16)

extern "C" __global__ void attend_f32(
    const float* qkv, const Tile* tiles, int n_heads, int head_size, float scale, const float* bias, int reach,
    int window, float* out) {
    attend_exact(qkv, tiles, n_heads, head_size, Scores{scale, bias, reach, window}, out);
}

#define TILES_KERNEL(T, suffix, HEAD)                                                                                 \
    extern "C" __global__ void __launch_bounds__(128) attend_##suffix##_##HEAD(                                       \
        const T* qkv, const Tile* tiles, int n_heads, float scale, const float* bias, int reach, int window,          \
        T* out) {                                                                                                     \
        attend_tiles<T, HEAD>(qkv, tiles, n_heads, Scores{scale, bias, reach, window}, out);                          \
    }

#define TILES_KERNELS(T, suffix)                                                                                      \
    TILES_KERNEL(T, suffix, 32)                                                                                       \
    TILES_KERNEL(T, suffix, 64)                                                                                       \
    TILES_KERNEL(T, suffix, 96)                                                                                       \
    TILES_KERNEL(T, suffix, 128)

TILES_KERNELS(Float16, f16)
TILES_KERNELS(Bfloat16, bf16)
