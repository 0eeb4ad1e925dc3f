// SPDX-License-Identifier: Apache-2.0
//
// A layer of the MLP-Mixer and its gradients, in bfloat16 on processors with matrix units (AMX). `cpu_operators.py` compiles
// and calls it.
//
// A thread takes an image through the whole layer, so that all that lies between tokens and tokens stays in the caches of
// its core: both LayerNorms, four products with their biases and GELU, two residual connections. Sums, LayerNorm, GELU and
// the residual stream are in float32. The gradients compute the layer anew, from its input.
//
// Without matrix units the same code multiplies in float32, to be tested everywhere.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include <omp.h>
#include <sys/mman.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif
#ifdef __AMX_BF16__
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

// ---- Vectors of 16 values

typedef uint16_t Half;  // bfloat16: the upper half of a float32
typedef float Floats __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));

constexpr int LANES = 16;

inline Floats load(const float* from) {
    Floats values;
    memcpy(&values, from, sizeof values);
    return values;
}

inline Floats load(const Half* from) {
    Halves halves;
    memcpy(&halves, from, sizeof halves);
    return (Floats)(__builtin_convertvector(halves, Words) << 16);
}

inline void store(float* to, Floats values) { memcpy(to, &values, sizeof values); }

inline void add_to(float* to, Floats values) { store(to, load(to) + values); }

inline Floats spread(float value) { return value - Floats{}; }

#ifdef __AVX512BF16__
inline Halves narrow(Floats values) { return (Halves)_mm512_cvtneps_pbh((__m512)values); }
inline float sum(Floats values) { return _mm512_reduce_add_ps((__m512)values); }
#else
inline Halves narrow(Floats values) {
    Words bits = (Words)values, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    rounded = (bits & 0x7fffffff) > 0x7f800000 ? bits >> 16 | 0x40 : rounded;  // NaN stays NaN
    return __builtin_convertvector(rounded, Halves);
}
inline float sum(Floats values) {
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) values[i] += values[i + half];
    return values[0];
}
#endif

inline void store(Half* to, Floats values) {
    Halves halves = narrow(values);
    memcpy(to, &halves, sizeof halves);
}

inline void store_beside(Half* to, Floats left, Floats right) {
#ifdef __AVX512BF16__
    __m512bh both = _mm512_cvtne2ps_pbh((__m512)right, (__m512)left);
    memcpy(to, &both, sizeof both);
#else
    store(to, left);
    store(to + LANES, right);
#endif
}

inline void store_interleaved(Half* to, Floats upper, Floats lower) {
#ifdef __AVX512BF16__
    const Words order = {0x100000, 0x110001, 0x120002, 0x130003, 0x140004, 0x150005, 0x160006, 0x170007,
                         0x180008, 0x190009, 0x1a000a, 0x1b000b, 0x1c000c, 0x1d000d, 0x1e000e, 0x1f000f};
    __m512bh both = _mm512_cvtne2ps_pbh((__m512)lower, (__m512)upper);
    _mm512_storeu_si512(to, _mm512_permutexvar_epi16((__m512i)order, (__m512i)both));
#else
    Words both = __builtin_convertvector(narrow(upper), Words) | __builtin_convertvector(narrow(lower), Words) << 16;
    memcpy(to, &both, sizeof both);
#endif
}

// 16 x 16 words of 4 bytes
inline void transpose(const void* from, void* to) {
#ifdef __AVX512F__
    __m512i a[16], b[16];
    for (int i = 0; i < 16; i++) a[i] = _mm512_loadu_si512((const char*)from + 64 * i);
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            a[i + 2 * j] = _mm512_unpacklo_epi64(b[i + j], b[i + 2 + j]);
            a[i + 2 * j + 1] = _mm512_unpackhi_epi64(b[i + j], b[i + 2 + j]);
        }
    for (int i = 0; i < 16; i += 8)
        for (int j = 0; j < 4; j++) {
            b[i + j] = _mm512_shuffle_i32x4(a[i + j], a[i + 4 + j], 0x88);
            b[i + 4 + j] = _mm512_shuffle_i32x4(a[i + j], a[i + 4 + j], 0xdd);
        }
    for (int i = 0; i < 8; i++) {
        a[i] = _mm512_shuffle_i32x4(b[i], b[8 + i], 0x88);
        a[8 + i] = _mm512_shuffle_i32x4(b[i], b[8 + i], 0xdd);
    }
    for (int i = 0; i < 16; i++) _mm512_storeu_si512((char*)to + 64 * i, a[i]);
#else
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++) memcpy((char*)to + 64 * j + 4 * i, (const char*)from + 64 * i + 4 * j, 4);
#endif
}

// ---- Products of matrices

constexpr int SIDE = 32, AREA = SIDE * SIDE, BLOCK = 16 * SIDE;

inline int padded(int size) { return (size + SIDE - 1) / SIDE * SIDE; }

// A matrix as a product reads it, in blocks of 1 KB: 16 rows of the left matrix, or columns of the right one, by 32 values of
// the inner axis, pairs of which are neighbours. In a right matrix the columns are neighbours of the pairs. A block of the
// transposed matrix for the other side is the block, transposed as pairs.
struct Operand {
    Half* data;
    int depth;  // blocks along the inner axis
    Half* block(int side, int inner) const { return data + ((int64_t)(side / 16) * depth + inner / SIDE) * BLOCK; }
};

// Write 32 columns of two rows as a left matrix (its inner axis are the columns) and as a right one (the rows), where it is one
inline void put(Operand left, Operand right, int row, int column, const Floats (&values)[2][2]) {
    if (left.data) {
        Half* to = left.block(row, column) + row % 16 * SIDE;
        store_beside(to, values[0][0], values[0][1]);
        store_beside(to + SIDE, values[1][0], values[1][1]);
    }
    if (right.data)
        for (int j = 0; j < 2; j++)
            store_interleaved(right.block(column + j * LANES, row) + row % SIDE * LANES, values[0][j], values[1][j]);
}

// The blocks of `sides` rows or columns, transposed for the other side, which starts at `offset` of the inner axis
inline void turn_blocks(Operand from, Operand to, int sides, int inner, int offset = 0) {
    for (int s = 0; s < sides; s += 16)
        for (int k = 0; k < inner; k += SIDE) transpose(from.block(s, k), to.block(s, offset + k));
}

#ifdef __AMX_BF16__
// As of g++ 12, the compiler does not know what the instructions for tiles read: all that was written has to be in memory before
inline void write_to_memory() { asm volatile("" ::: "memory"); }

// Eight tiles of 1 KB; what others have configured on this thread is left as it was
struct Tiles {
    alignas(64) char before[64];
    Tiles() {
        alignas(64) char config[64] = {1};
        for (int i = 0; i < 8; i++) config[16 + 2 * i] = 64, config[48 + i] = 16;
        _tile_storeconfig(before);
        write_to_memory();
        _tile_loadconfig(config);
    }
    ~Tiles() {
        if (before[0]) _tile_loadconfig(before);
        else _tile_release();
    }
};

template <bool ADD, class Other>
inline void multiply_tiles(
    const Half* a, int64_t a_step, const Half* b, int64_t b_step, int depth, float* out, int64_t stride, Other other
) {
    const int64_t bytes = 4 * stride;
    write_to_memory();
    if (ADD) {
        _tile_loadd(0, out, bytes);
        _tile_loadd(1, out + 16, bytes);
        _tile_loadd(2, out + 16 * stride, bytes);
        _tile_loadd(3, out + 16 * stride + 16, bytes);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int k = 0; k < depth; k++, a += BLOCK, b += BLOCK) {
        _tile_loadd(4, a, 64);
        _tile_loadd(6, b, 64);
        _tile_loadd(7, b + b_step, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, a + a_step, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        other(k);
    }
    _tile_stored(0, out, bytes);
    _tile_stored(1, out + 16, bytes);
    _tile_stored(2, out + 16 * stride, bytes);
    _tile_stored(3, out + 16 * stride + 16, bytes);
}
#else
struct Tiles {
    ~Tiles() {}
};

template <bool ADD, class Other>
void multiply_tiles(
    const Half* a, int64_t a_step, const Half* b, int64_t b_step, int depth, float* out, int64_t stride, Other other
) {
    for (int k = 0; k < depth; k++) other(k);
    for (int i = 0; i < SIDE; i++)
        for (int j = 0; j < 2; j++) {
            float* to = out + i * stride + j * LANES;
            Floats sums = ADD ? load(to) : Floats{};
            for (int k = 0; k < depth * LANES; k++) {
                uint32_t pair;
                Words pairs;
                memcpy(&pair, a + i / 16 * a_step + k / LANES * BLOCK + i % 16 * SIDE + k % LANES * 2, 4);
                memcpy(&pairs, b + j * b_step + k * SIDE, 64);
                sums += (Floats)(pairs << 16) * (Floats)(Words{} + (pair << 16));
                sums += (Floats)(pairs & 0xffff0000) * (Floats)(Words{} + (pair & 0xffff0000));
            }
            store(to, sums);
        }
}
#endif

inline void nothing(int) {}

// 32 x 32 values of a product at a row and a column, of `inner` values from `start` on along the inner axis. They are added to
// what is there with ADD. The matrix units take so long that the processor does something else beside: `other` is called for
// every 32 values of the inner axis.
template <bool ADD, class Other = void (*)(int)>
inline void multiply(
    Operand left, int row, Operand right, int column, int start, int inner, float* out, int64_t stride, Other other = nothing
) {
    const Half *a = left.block(row, start), *b = right.block(column, start);
    const int64_t a_step = (int64_t)left.depth * BLOCK, b_step = (int64_t)right.depth * BLOCK;
    multiply_tiles<ADD>(a, a_step, b, b_step, inner / SIDE, out, stride, other);
}

// Values of a long inner axis that are multiplied before others: 32 columns of them stay in the first cache
constexpr int CHUNK = 512;

// 32 columns of a product, in blocks of 32 x 32 that are `step` values apart
template <bool ADD>
inline void multiply_columns(Operand left, int rows, Operand right, int column, int inner, float* blocks, int64_t step) {
    for (int start = 0; start < inner; start += CHUNK) {
        const int size = std::min(inner - start, CHUNK);
        float* block = blocks;
        for (int r = 0; r < rows; r += SIDE, block += step)
            if (ADD || start > 0) multiply<true>(left, r, right, column, start, size, block, SIDE);
            else multiply<false>(left, r, right, column, start, size, block, SIDE);
    }
}

// 32 columns of a product, as a matrix of 32 columns. `finish` is called for every other row when that and the next are there.
template <class Finish>
inline void multiply_panel(Operand left, int rows, Operand right, int column, int inner, float* panel, Finish finish) {
    const int start = (inner - 1) / CHUNK * CHUNK, depth = (inner - start) / SIDE;
    if (start > 0) multiply_columns<false>(left, rows, right, column, start, panel, AREA);
    for (int r = 0; r < rows; r += SIDE) {
        // Of the 32 rows before
        auto other = [&](int k) {
            for (int i = SIDE / 2 * k / depth; i < SIDE / 2 * (k + 1) / depth && r > 0; i++) finish(r - SIDE + 2 * i);
        };
        if (start > 0) multiply<true>(left, r, right, column, start, inner - start, panel + r * SIDE, SIDE, other);
        else multiply<false>(left, r, right, column, start, inner - start, panel + r * SIDE, SIDE, other);
    }
    for (int r = rows - SIDE; r < rows; r += 2) finish(r);
}

// All of a product, of `inner` values from `start` on along the inner axis, as a matrix
template <bool ADD>
inline void multiply_all(Operand left, int rows, Operand right, int columns, int start, int inner, float* out) {
    for (int c = 0; c < columns; c += SIDE)
        for (int r = 0; r < rows; r += SIDE)
            multiply<ADD>(left, r, right, c, start, inner, out + (int64_t)r * columns + c, columns);
}

// ---- GELU

// What GELU multiplies its argument by, and its slope, as 1/2 + x P(x^2), the highest coefficient first, for |x| up to LIMIT.
// Beyond it they count as constant. The coefficients minimize the greatest error: 2e-5 of GELU, 1e-5 of its argument beyond,
// and 2e-4 of the slope. To round to bfloat16 costs ten times that.
constexpr float LIMIT = 4.25f;
constexpr int TERMS = 9;
const float GATE[2][TERMS] = {
    {4.54708582e-11f, -4.51531407e-09f, 1.98616238e-07f, -5.14751997e-06f, 8.8489204e-05f, -0.00107907835f, 0.00971878f,
     -0.0661902829f, 0.39881922f},  // the error function
    {5.37668568e-11f, -5.2554161e-09f, 2.26518304e-07f, -5.72299436e-06f, 9.54799304e-05f, -0.00112869158f, 0.00990495666f,
     -0.0664531762f, 0.398787855f}};  // tanh
const float SLOPE[2][TERMS] = {
    {6.4625499e-10f, -5.98773475e-08f, 2.41635021e-06f, -5.61002273e-05f, 0.000834824229f, -0.00838255449f, 0.0576501178f,
     -0.263964836f, 0.79734576f},
    {7.50473425e-10f, -6.84889318e-08f, 2.71210234e-06f, -6.1532524e-05f, 0.000891737376f, -0.0087145036f, 0.0585941901f,
     -0.264805586f, 0.797202972f}};

// NaN stays NaN
inline Floats clamp(Floats x) {
    x = x > spread(LIMIT) ? spread(LIMIT) : x;
    return x < spread(-LIMIT) ? spread(-LIMIT) : x;
}

inline Floats evaluate(const float (&terms)[TERMS], Floats x) {
    Floats square = x * x, value = square * terms[0] + terms[1];
    for (int i = 2; i < TERMS; i++) value = value * square + terms[i];
    return value * x + 0.5f;
}

// ---- LayerNorm

struct Moments {
    float mean, scale;
};

// Of two rows at once, whose sums do not wait for each other
inline void measure(const float* first, const float* second, int size, float epsilon, Moments (&moments)[2]) {
    const float* rows[2] = {first, second};
    Floats sums[2] = {}, squares[2] = {};
    for (int c = 0; c < size; c += LANES)
        for (int i = 0; i < 2; i++) sums[i] += load(rows[i] + c);
    for (int i = 0; i < 2; i++) moments[i].mean = sum(sums[i]) / size;
    for (int c = 0; c < size; c += LANES)
        for (int i = 0; i < 2; i++) {
            Floats centered = load(rows[i] + c) - moments[i].mean;
            squares[i] += centered * centered;
        }
    for (int i = 0; i < 2; i++) moments[i].scale = 1 / std::sqrt(sum(squares[i]) / size + epsilon);
}

// Normalize the rows and write them as operands, filled up with zeros
void normalize(
    const float* rows, int num_rows, int size, const float* weight, const float* bias, float epsilon, Moments* moments,
    Operand left, Operand right
) {
    for (int r = 0; r < padded(num_rows); r += 2) {
        Moments of_row[2] = {};
        const float *first = rows + (int64_t)r * size, *second = r + 1 < num_rows ? first + size : first;
        if (r < num_rows) measure(first, second, size, epsilon, of_row);
        if (moments) moments[r] = of_row[0], moments[r + 1] = of_row[1];
        for (int c = 0; c < size; c += SIDE) {
            Floats values[2][2] = {};
            for (int i = 0; i < 2 && r + i < num_rows; i++)
                for (int j = 0; j < 2; j++) {
                    const int at = c + j * LANES;
                    const Floats centered = load(rows + (int64_t)(r + i) * size + at) - of_row[i].mean;
                    values[i][j] = centered * of_row[i].scale * load(weight + at) + load(bias + at);
                }
            put(left, right, r, c, values);
        }
    }
}

// Replace the gradients of a normalized row by those of the row, and add up those of the weight and the bias
void normalize_back(
    const float* row, float* gradients, int size, const float* weight, Moments moments, float* weight_sums, float* bias_sums
) {
    Floats sums{}, products{};
    for (int c = 0; c < size; c += LANES) {
        Floats x = (load(row + c) - moments.mean) * moments.scale, gradient = load(gradients + c);
        Floats scaled = gradient * load(weight + c);
        add_to(weight_sums + c, gradient * x);
        add_to(bias_sums + c, gradient);
        sums += scaled;
        products += scaled * x;
    }
    const float mean = sum(sums) / size, product = sum(products) / size;
    for (int c = 0; c < size; c += LANES) {
        Floats x = (load(row + c) - moments.mean) * moments.scale;
        store(gradients + c, (load(gradients + c) * load(weight + c) - mean - x * product) * moments.scale);
    }
}

// ---- The layer

// In the code below, T are the tokens, P the same filled up to a multiple of 32, C the channels, and D and E the hidden units of
// token mixing and of channel mixing.

// Memory of a thread, kept for the next layer
struct Memory {
    // Large pages, where the system has some, make the gradients of B/16 6 % faster
    static constexpr int64_t PAGE = 1 << 21;
    char* start = nullptr;
    int64_t size = 0, used = 0;
    ~Memory() { free(start); }
    bool reserve(int64_t bytes) {
        used = 0;
        if (bytes > size) {
            free(start);
            size = (bytes + PAGE - 1) / PAGE * PAGE;
            start = (char*)aligned_alloc(PAGE, size);
            if (start) madvise(start, size, MADV_HUGEPAGE);
            else size = 0;
        }
        return start != nullptr;
    }
    template <class T> T* take(int64_t count) {
        T* part = (T*)(start + used);
        used += (count * (int64_t)sizeof(T) + 63) / 64 * 64;
        return part;
    }
    Operand operand(int sides, int inner) { return {take<Half>((int64_t)sides * inner), inner / SIDE}; }
};
thread_local Memory memory, shared_memory;

}  // namespace

// As `Layer` of cpu_operators.py has it. Hidden sizes and channels are multiples of 32.
struct Layer {
    int32_t images, tokens, channels, token_hidden, channel_hidden, threads, tanh;
    float epsilon;
    const float* scales;  // of both branches (2, images), or null for 1
    const float *token_norm_weight, *token_norm_bias, *channel_norm_weight, *channel_norm_bias;
    const float *token_fc1_bias, *token_fc2_bias, *channel_fc1_bias, *channel_fc2_bias;
    // As operands. Of token mixing the weights are on the left, of channel mixing their transposes are on the right.
    Half *token_fc1, *token_fc2, *channel_fc1, *channel_fc2;
    // The same, transposed, for the gradients
    Half *token_fc1_back, *token_fc2_back, *channel_fc1_back, *channel_fc2_back;
};

namespace {

float scale_of(const Layer& layer, int branch, int image) {
    return layer.scales ? layer.scales[(int64_t)branch * layer.images + image] : 1;
}

// What the products of token mixing add to: the tokens and the bias of the second product. Both may be in one place.
void start_stream(const Layer& layer, const float* x, float scale, float* stream) {
    for (int p = 0; p < padded(layer.tokens); p++)
        for (int c = 0; c < layer.channels; c += LANES) {
            const int64_t at = (int64_t)p * layer.channels + c;
            store(stream + at, p < layer.tokens ? load(x + at) + layer.token_fc2_bias[p] * scale : Floats{});
        }
}

// The hidden units of token mixing, after GELU and the scale of the branch, 32 channels at a time. Those before GELU go to `kept`,
// (token_hidden, 32), which moves on by `kept_step`.
void mix_tokens_hidden(const Layer& layer, Operand tokens, float scale, float* kept, int64_t kept_step, Operand left, Operand right) {
    const int P = padded(layer.tokens), C = layer.channels, D = layer.token_hidden;
    const Operand fc1{layer.token_fc1, P / SIDE};
    for (int c = 0; c < C; c += SIDE, kept += kept_step) {
        multiply_panel(fc1, D, tokens, c, P, kept, [&](int d) {
            Floats values[2][2];
            for (int i = 0; i < 2; i++)
                for (int j = 0; j < 2; j++) {
                    float* at = kept + (d + i) * SIDE + j * LANES;
                    Floats x = load(at) + layer.token_fc1_bias[d + i];
                    if (kept_step) store(at, x);
                    values[i][j] = x * (evaluate(GATE[layer.tanh], clamp(x)) * scale);
                }
            put(left, right, d, c, values);
        });
    }
}

int64_t forward_bytes(const Layer& layer) {
    const int64_t P = padded(layer.tokens), C = layer.channels, D = layer.token_hidden, E = layer.channel_hidden;
    return 4 * (P * C + std::max(P, D) * SIDE) + 2 * (2 * P * C + C * D + P * E) + 4096;
}

void forward_image(const Layer& layer, int image, const Half* x, Half* out) {
    const int T = layer.tokens, P = padded(T), C = layer.channels, D = layer.token_hidden, E = layer.channel_hidden;
    const float token_scale = scale_of(layer, 0, image), channel_scale = scale_of(layer, 1, image);
    memory.used = 0;
    float *stream = memory.take<float>((int64_t)P * C), *panel = memory.take<float>((int64_t)std::max(P, D) * SIDE);
    const Operand tokens = memory.operand(C, P), token_hidden = memory.operand(C, D);
    const Operand channels = memory.operand(P, C), channel_hidden = memory.operand(P, E);
    const Operand token_fc2{layer.token_fc2, D / SIDE};
    const Operand channel_fc1{layer.channel_fc1, C / SIDE}, channel_fc2{layer.channel_fc2, E / SIDE};

    for (int64_t i = 0; i < (int64_t)T * C; i += LANES) store(stream + i, load(x + i));
    normalize(
        stream, T, C, layer.token_norm_weight, layer.token_norm_bias, layer.epsilon, nullptr, Operand{}, tokens
    );
    start_stream(layer, stream, token_scale, stream);
    mix_tokens_hidden(layer, tokens, token_scale, panel, 0, Operand{}, token_hidden);
    multiply_all<true>(token_fc2, P, token_hidden, C, 0, D, stream);

    normalize(
        stream, T, C, layer.channel_norm_weight, layer.channel_norm_bias, layer.epsilon, nullptr, channels, Operand{}
    );
    for (int start = 0; start < E; start += CHUNK) {
        const int end = std::min(start + CHUNK, E);
        for (int e = start; e < end; e += SIDE) {
            const Floats bias[2] = {load(layer.channel_fc1_bias + e), load(layer.channel_fc1_bias + e + LANES)};
            multiply_panel(channels, P, channel_fc1, e, C, panel, [&](int p) {
                Floats values[2][2];
                for (int i = 0; i < 2; i++)
                    for (int j = 0; j < 2; j++) {
                        const Floats x = load(panel + (p + i) * SIDE + j * LANES) + bias[j];
                        values[i][j] = x * (evaluate(GATE[layer.tanh], clamp(x)) * channel_scale);
                    }
                put(channel_hidden, Operand{}, p, e, values);
            });
        }
        multiply_all<true>(channel_hidden, P, channel_fc2, C, start, end - start, stream);
    }
    for (int p = 0; p < T; p++)
        for (int c = 0; c < C; c += LANES) {
            const int64_t at = (int64_t)p * C + c;
            store(out + at, load(stream + at) + load(layer.channel_fc2_bias + c) * channel_scale);
        }
}

// Sums of gradients over the images of a thread, those of the matrices (token_hidden, tokens) in blocks of 32 x 32
struct Sums {
    float *token_fc1, *token_fc2;
    float *token_norm_weight, *token_norm_bias, *channel_norm_weight, *channel_norm_bias;
    float *token_fc1_bias, *token_fc2_bias, *channel_fc1_bias, *channel_fc2_bias;

    static int64_t count(const Layer& layer) {
        const int64_t P = padded(layer.tokens), C = layer.channels, D = layer.token_hidden, E = layer.channel_hidden;
        return 2 * D * P + 5 * C + D + P + E;
    }
    Sums(const Layer& layer, float* start) {
        const int64_t P = padded(layer.tokens), C = layer.channels, D = layer.token_hidden, E = layer.channel_hidden;
        float** parts[] = {
            &token_fc1, &token_fc2, &token_norm_weight, &token_norm_bias, &channel_norm_weight, &channel_norm_bias,
            &token_fc1_bias, &token_fc2_bias, &channel_fc1_bias, &channel_fc2_bias};
        const int64_t counts[] = {D * P, D * P, C, C, C, C, D, P, E, C};
        for (int i = 0; i < 10; start += counts[i++]) *parts[i] = start;
    }
};

// The images that each thread has in a round, and the columns of a gradient that a thread computes in a row: what it reads for
// them stays in the second cache
constexpr int GROUP = 4, WIDTH = 128;

// The gradients of the channel-mixing matrices are products over the tokens of all images of a round. Each thread computes a part
// of them, so that no thread has sums of its own, of the size of the weights. Here are the operands, and the sums in blocks of
// 32 x 32.
struct Round {
    int images;
    Operand v_turned, dout_turned, k_right, dk_right;
    float *channel_fc1, *channel_fc2;

    static int64_t bytes(const Layer& layer, int images) {
        const int64_t P = padded(layer.tokens), C = layer.channels, E = layer.channel_hidden;
        return 2 * (images * 2 * P * (C + E)) + 4 * (2 * C * E) + 4096;
    }
    Round(const Layer& layer, int images, Memory& shared) : images(images) {
        const int inner = images * padded(layer.tokens), C = layer.channels, E = layer.channel_hidden;
        v_turned = shared.operand(C, inner), dout_turned = shared.operand(C, inner);
        k_right = shared.operand(E, inner), dk_right = shared.operand(E, inner);
        channel_fc1 = shared.take<float>((int64_t)C * E), channel_fc2 = shared.take<float>((int64_t)C * E);
    }
};

int64_t backward_bytes(const Layer& layer) {
    const int64_t P = padded(layer.tokens), C = layer.channels, D = layer.token_hidden, E = layer.channel_hidden;
    const int64_t floats = 3 * P * C + D * C + 2 * std::max(P, D) * SIDE + 4 * P;
    return 4 * floats + 2 * (8 * P * C + 4 * D * C + P * E) + 8192;
}

template <class T> inline void write_row(const float* values, int count, T* to) {
    T row[LANES];
    store(row, load(values));
    memcpy(to, row, count * sizeof(T));
}

// A block of 32 x 32 of a matrix of `width` columns, or of the transposed one of `height`
template <class T>
void write_block(const float* block, int row, int column, int height, int width, bool turned, T* to) {
    for (int r = row; r < std::min(row + SIDE, height); r += 16)
        for (int c = column; c < std::min(column + SIDE, width); c += 16) {
            const float* from = block + (r - row) * SIDE + c - column;
            alignas(64) float part[16][16], turned_part[16][16];
            for (int i = 0; i < 16; i++) store(part[i], load(from + i * SIDE));
            if (turned) transpose(part, turned_part);
            const int rows = std::min(height - r, 16), columns = std::min(width - c, 16);
            for (int i = 0; i < (turned ? columns : rows); i++)
                if (turned) write_row(turned_part[i], rows, to + (int64_t)(c + i) * height + r);
                else write_row(part[i], columns, to + (int64_t)(r + i) * width + c);
        }
}

// The gradients of one image. x is the input and y what token mixing makes of it, u and v are both after LayerNorm, h and k the
// hidden units of token mixing and of channel mixing after GELU; dy is the gradient of y, and so on.
void backward_image(
    const Layer& layer, int image, const Half* narrow_x, const Half* dout, Half* dx, const Round& round, int place, Sums& total
) {
    const int T = layer.tokens, P = padded(T), C = layer.channels, D = layer.token_hidden, E = layer.channel_hidden;
    const int64_t tokens_size = (int64_t)P * C;
    memory.used = 0;
    float *x = memory.take<float>(tokens_size), *y = memory.take<float>(tokens_size), *dy = memory.take<float>(tokens_size);
    float* before_gelu = memory.take<float>((int64_t)D * C);
    const int64_t panel_size = (int64_t)std::max(P, D) * SIDE;
    float *panel = memory.take<float>(panel_size), *panel_back = memory.take<float>(panel_size);
    Moments *x_moments = memory.take<Moments>(P), *y_moments = memory.take<Moments>(P);
    const Operand u_left = memory.operand(P, C), u_right = memory.operand(C, P), u_turned = memory.operand(P, C);
    const Operand v_left = memory.operand(P, C), v_right = memory.operand(C, P);
    const Operand d_left = memory.operand(P, C), d_right = memory.operand(C, P), d_turned = memory.operand(P, C);
    const Operand h_left = memory.operand(D, C), h_right = memory.operand(C, D);
    const Operand dh_left = memory.operand(D, C), dh_right = memory.operand(C, D);
    const Operand dk_left = memory.operand(P, E);
    const Operand token_fc2{layer.token_fc2, D / SIDE}, channel_fc1{layer.channel_fc1, C / SIDE};
    const Operand token_fc1_back{layer.token_fc1_back, D / SIDE}, token_fc2_back{layer.token_fc2_back, P / SIDE};
    const Operand channel_fc1_back{layer.channel_fc1_back, E / SIDE}, channel_fc2_back{layer.channel_fc2_back, C / SIDE};

    const int offset = place * P;
    const float token_scale = scale_of(layer, 0, image), channel_scale = scale_of(layer, 1, image);

    // Once more to the hidden units of token mixing and what channel mixing reads
    for (int64_t i = 0; i < (int64_t)T * C; i += LANES) store(x + i, load(narrow_x + i));
    normalize(
        x, T, C, layer.token_norm_weight, layer.token_norm_bias, layer.epsilon, x_moments, u_left, u_right
    );
    start_stream(layer, x, token_scale, y);
    mix_tokens_hidden(layer, u_right, token_scale, before_gelu, (int64_t)D * SIDE, h_left, h_right);
    multiply_all<true>(token_fc2, P, h_right, C, 0, D, y);
    normalize(
        y, T, C, layer.channel_norm_weight, layer.channel_norm_bias, layer.epsilon, y_moments, v_left, v_right
    );

    for (int p = 0; p < P; p += 2)
        for (int c = 0; c < C; c += SIDE) {
            Floats values[2][2] = {};
            for (int i = 0; i < 2 && p + i < T; i++)
                for (int j = 0; j < 2; j++) {
                    values[i][j] = load(dout + (int64_t)(p + i) * C + c + j * LANES);
                    add_to(total.channel_fc2_bias + c + j * LANES, values[i][j] * channel_scale);
                }
            put(d_left, d_right, p, c, values);
        }
    turn_blocks(v_right, round.v_turned, C, P, offset);
    turn_blocks(d_right, round.dout_turned, C, P, offset);

    // Channel mixing: k, dk, and dv in place of dy
    for (int e = 0; e < E; e += SIDE) {
        const Floats bias[2] = {load(layer.channel_fc1_bias + e), load(layer.channel_fc1_bias + e + LANES)};
        Floats bias_gradients[2] = {};
        multiply_columns<false>(v_left, P, channel_fc1, e, C, panel, AREA);
        multiply_panel(d_left, P, channel_fc2_back, e, C, panel_back, [&](int p) {
            Floats k[2][2], dk[2][2];
            for (int i = 0; i < 2; i++)
                for (int j = 0; j < 2; j++) {
                    const int at = (p + i) * SIDE + j * LANES;
                    const Floats before = load(panel + at) + bias[j], near = clamp(before);
                    k[i][j] = before * (evaluate(GATE[layer.tanh], near) * channel_scale);
                    dk[i][j] = load(panel_back + at) * (evaluate(SLOPE[layer.tanh], near) * channel_scale);
                    bias_gradients[j] += dk[i][j];
                }
            put(Operand{}, round.k_right, offset + p, e, k);
            put(dk_left, Operand{}, p, e, dk);
            put(Operand{}, round.dk_right, offset + p, e, dk);
        });
        for (int j = 0; j < 2; j++) add_to(total.channel_fc1_bias + e + j * LANES, bias_gradients[j]);
        if ((e + SIDE) % CHUNK == 0 || e + SIDE == E) {
            const int start = e / CHUNK * CHUNK, inner = e + SIDE - start;
            if (start == 0) multiply_all<false>(dk_left, P, channel_fc1_back, C, start, inner, dy);
            else multiply_all<true>(dk_left, P, channel_fc1_back, C, start, inner, dy);
        }
    }

    // dy, of both ways to the output
    for (int p = 0; p < P; p += 2) {
        for (int i = 0; i < 2 && p + i < T; i++) {
            float* row = dy + (int64_t)(p + i) * C;
            normalize_back(
                y + (int64_t)(p + i) * C, row, C, layer.channel_norm_weight, y_moments[p + i], total.channel_norm_weight,
                total.channel_norm_bias
            );
            Floats sums{};
            for (int c = 0; c < C; c += LANES) {
                add_to(row + c, load(dout + (int64_t)(p + i) * C + c));
                sums += load(row + c);
            }
            total.token_fc2_bias[p + i] += sum(sums) * token_scale;
        }
        for (int c = 0; c < C; c += SIDE) {
            Floats values[2][2] = {};
            for (int i = 0; i < 2 && p + i < T; i++)
                for (int j = 0; j < 2; j++) values[i][j] = load(dy + (int64_t)(p + i) * C + c + j * LANES);
            put(d_left, d_right, p, c, values);
        }
    }

    // Token mixing: dh, and du in place of y
    turn_blocks(u_left, u_turned, P, C);
    turn_blocks(d_left, d_turned, P, C);
    const float* before = before_gelu;
    for (int c = 0; c < C; c += SIDE, before += (int64_t)D * SIDE) {
        multiply_panel(token_fc2_back, D, d_right, c, P, panel_back, [&](int d) {
            Floats dh[2][2];
            for (int i = 0; i < 2; i++) {
                for (int j = 0; j < 2; j++) {
                    const int at = (d + i) * SIDE + j * LANES;
                    const Floats slope = evaluate(SLOPE[layer.tanh], clamp(load(before + at)));
                    dh[i][j] = load(panel_back + at) * (slope * token_scale);
                }
                total.token_fc1_bias[d + i] += sum(dh[i][0] + dh[i][1]);
            }
            put(dh_left, dh_right, d, c, dh);
        });
    }
    const int64_t row_step = (int64_t)P * SIDE;
    for (int p = 0; p < P; p += SIDE) {
        multiply_columns<true>(h_left, D, d_turned, p, C, total.token_fc2 + p * SIDE, row_step);
        multiply_columns<true>(dh_left, D, u_turned, p, C, total.token_fc1 + p * SIDE, row_step);
    }
    multiply_all<false>(token_fc1_back, P, dh_right, C, 0, D, y);
    for (int p = 0; p < T; p++) {
        const int64_t row = (int64_t)p * C;
        normalize_back(
            x + row, y + row, C, layer.token_norm_weight, x_moments[p], total.token_norm_weight, total.token_norm_bias
        );
        for (int c = 0; c < C; c += LANES) store(dx + row + c, load(y + row + c) + load(dy + row + c));
    }
}

inline void store_beside(Half* to, const float* from) { store_beside(to, load(from), load(from + LANES)); }
inline void store_beside(Half* to, const Half* from) { memcpy(to, from, 2 * SIDE); }

// A matrix as an operand for the left or the right; `inner_is_last`: the inner axis of the product is the last of the matrix
template <class T>
void pack_matrix(const T* matrix, int rows, int columns, bool right, bool inner_is_last, Half* to, int threads) {
    const int depth = padded(inner_is_last ? columns : rows) / SIDE, sides = padded(inner_is_last ? rows : columns);
#pragma omp parallel for collapse(2) num_threads(threads)
    for (int s = 0; s < sides; s += 16)
        for (int k = 0; k < depth; k++) {
            // 16 rows of 32 values along the inner axis, or 32 rows across it, of which every other block takes one half
            const int row = inner_is_last ? s : k * SIDE, column = inner_is_last ? k * SIDE : s / SIDE * SIDE;
            alignas(64) T filled[SIDE] = {};
            alignas(64) Half values[SIDE * SIDE] = {}, block[BLOCK];
            for (int i = 0; i < (inner_is_last ? 16 : SIDE) && row + i < rows; i++) {
                const T* from = matrix + (int64_t)(row + i) * columns + column;
                const int width = std::min(columns - column, SIDE);
                if (width < SIDE) from = (const T*)memcpy(filled, from, width * sizeof(T));
                store_beside(values + i * SIDE, from);
            }
            Half* at = to + ((int64_t)(s / 16) * depth + k) * BLOCK;
            const Half* part = values;
            if (!inner_is_last) {
                for (int i = 0; i < 16; i++)
                    store_interleaved(
                        block + i * SIDE, load(values + 2 * i * SIDE + s % SIDE), load(values + (2 * i + 1) * SIDE + s % SIDE)
                    );
                part = block;
            }
            if (inner_is_last == right) transpose(part, at);
            else memcpy(at, part, sizeof block);
        }
}

// Of all images. The gradients of the matrices are of type T.
template <class T>
int backward(
    const Layer& layer, const Half* x, const Half* grad_output, Half* grad_input, T* const* matrices, float* const* vectors
) {
    const int tokens = layer.tokens, P = padded(tokens), C = layer.channels, D = layer.token_hidden, E = layer.channel_hidden;
    const int64_t size = (int64_t)tokens * C, count = (Sums::count(layer) + LANES - 1) / LANES * LANES;
    const int images = std::min(layer.images, layer.threads * GROUP);
    if (!shared_memory.reserve(Round::bytes(layer, images) + 4 * count * layer.threads)) return 1;
    const Round round(layer, images, shared_memory);
    float* const all_sums = shared_memory.take<float>(count * layer.threads);
    int failed = 0;
#pragma omp parallel num_threads(layer.threads)
    {
        const int threads = omp_get_num_threads();
        float* const sums = all_sums + omp_get_thread_num() * count;
        memset(sums, 0, 4 * count);
        if (!memory.reserve(backward_bytes(layer))) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp barrier
        if (!failed) {
            Sums total(layer, sums);
            Tiles tiles;
            for (int first = 0; first < layer.images; first += round.images) {
                const int in_round = std::min(round.images, layer.images - first);
                const bool is_last = first + in_round == layer.images;
#pragma omp for schedule(static)
                for (int place = 0; place < in_round; place++) {
                    const int64_t at = (first + place) * size;
                    backward_image(
                        layer, first + place, x + at, grad_output + at, grad_input + at, round, place, total
                    );
                }
#pragma omp for collapse(2) schedule(static)
                for (int matrix = 0; matrix < 2; matrix++)
                    for (int from = 0; from < E; from += WIDTH) {
                        const Operand left = matrix ? round.dout_turned : round.v_turned;
                        const Operand right = matrix ? round.k_right : round.dk_right;
                        float* const blocks = matrix ? round.channel_fc2 : round.channel_fc1;
                        const int to = std::min(from + WIDTH, E), inner = in_round * P;
                        for (int start = 0; start < inner; start += CHUNK)
                            for (int e = from; e < to; e += SIDE)
                                for (int c = 0; c < C; c += SIDE) {
                                    float* block = blocks + c * (int64_t)E + e * SIDE;
                                    const int size = std::min(inner - start, CHUNK);
                                    if (first + start == 0) multiply<false>(left, c, right, e, start, size, block, SIDE);
                                    else multiply<true>(left, c, right, e, start, size, block, SIDE);
                                }
                        for (int e = from; is_last && e < to; e += SIDE)
                            for (int c = 0; c < C; c += SIDE)
                                write_block(blocks + c * (int64_t)E + e * SIDE, c, e, C, E, matrix == 0, matrices[2 + matrix]);
                    }
            }
#pragma omp for schedule(static)
            for (int64_t i = 0; i < count; i += LANES)
                for (int other = 1; other < threads; other++) add_to(all_sums + i, load(all_sums + other * count + i));
            const Sums all(layer, all_sums);
#pragma omp for schedule(static)
            for (int d = 0; d < D; d += SIDE)
                for (int p = 0; p < P; p += SIDE) {
                    write_block(all.token_fc1 + d * P + p * SIDE, d, p, D, tokens, false, matrices[0]);
                    write_block(all.token_fc2 + d * P + p * SIDE, d, p, D, tokens, true, matrices[1]);
                }
#pragma omp single
            {
                const float* parts[] = {
                    all.token_norm_weight, all.token_norm_bias, all.channel_norm_weight, all.channel_norm_bias,
                    all.token_fc1_bias, all.token_fc2_bias, all.channel_fc1_bias, all.channel_fc2_bias};
                const int sizes[] = {C, C, C, C, D, tokens, E, C};
                for (int i = 0; i < 8; i++) memcpy(vectors[i], parts[i], 4 * sizes[i]);
            }
        }
    }
    return failed;
}

}  // namespace

extern "C" {

// 1 if products use matrix units, 0 if they go without, and -1 if the system does not let this process use them. It has to be
// asked first.
int hf_mixer_matrix_units() {
#ifdef __AMX_BF16__
    constexpr long ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 ? 1 : -1;
#else
    return 0;
#endif
}

// A matrix of float32, or bfloat16, as an operand
void hf_mixer_pack(const void* matrix, int narrow, int rows, int columns, int right, int inner_is_last, Half* to, int threads) {
    if (narrow) pack_matrix((const Half*)matrix, rows, columns, right, inner_is_last, to, threads);
    else pack_matrix((const float*)matrix, rows, columns, right, inner_is_last, to, threads);
}

// Both return 0, or 1 without memory. Tokens are (images, tokens, channels).
int hf_mixer_forward(const Layer* layer, const Half* x, Half* out) {
    const int64_t size = (int64_t)layer->tokens * layer->channels;
    int failed = 0;
#pragma omp parallel num_threads(layer->threads) reduction(| : failed)
    {
        const bool ready = memory.reserve(forward_bytes(*layer));
        failed |= !ready;
        Tiles tiles;
#pragma omp for schedule(static)
        for (int i = 0; i < layer->images; i++)
            if (ready) forward_image(*layer, i, x + i * size, out + i * size);
    }
    return failed;
}

// `matrices` and `vectors` as cpu_operators.py has them. The gradients of the matrices are of their type, float32 or bfloat16.
int hf_mixer_backward(
    const Layer* layer, const Half* x, const Half* grad_output, Half* grad_input, int narrow, void* const* matrices,
    float* const* vectors
) {
    if (narrow) return backward(*layer, x, grad_output, grad_input, (Half* const*)matrices, vectors);
    return backward(*layer, x, grad_output, grad_input, (float* const*)matrices, vectors);
}

}  // extern "C"
