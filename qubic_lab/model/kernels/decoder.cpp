// The layers of one pipeline stage on a CPU, as one call a step.
//
// The bits of a row depend on its own request alone, at any number of rows, chunks and threads: each output element
// is one sum over k in ascending order, in one fp32 accumulator, and each query attends over its own positions in
// ascending order. Rows only share the reading of weights.
//
// Matrices are packed: groups of 64 output columns, for each group the words of k in order, for each word 64 columns.
// A word has 32 bits: two bf16 values of consecutive k, or one fp32 value. The KV cache has pages of 64 positions in the
// same form, so that products with weights, keys and values are one function.
//
// Decoding waits for memory, and the exponents of a matrix are few. Where the processor can unpack faster than memory
// delivers, bf16 matrices are dense: 12 bits a value, the same values.
//
// Quantised matrices have whole numbers of 8 or 4 bits and a scale for each 32 inputs of a column. Their inputs are
// rounded to 8 bits, too; sums over 32 inputs are whole numbers, and so exact in any order, and each output is one sum
// of these, times their scales, in ascending order, in one fp32 accumulator.

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <thread>
#include <type_traits>
#include <vector>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif
#if defined(__AVX512BW__)
#define DENSE 1
#endif
#define ALWAYS_INLINE inline __attribute__((always_inline))

namespace {

constexpr int COLUMNS = 64;  // of a group
constexpr int PAGE = 64;     // positions
constexpr int LANES = 16;    // fp32 values of a vector

// Rows and vectors of columns of the innermost tile: their accumulators and operands fit the registers.
#if defined(__AVX512F__)
constexpr int TILE_ROWS = 6, TILE_VECTORS = 4;
#else
constexpr int TILE_ROWS = 3, TILE_VECTORS = 2;
#endif

typedef float Vector __attribute__((vector_size(64)));
typedef int32_t IntVector __attribute__((vector_size(64)));
typedef uint32_t WordVector __attribute__((vector_size(64), aligned(4)));
typedef float LooseVector __attribute__((vector_size(64), aligned(4)));

inline Vector load(const float* from) { return *reinterpret_cast<const LooseVector*>(from); }
inline void store(float* to, Vector value) { *reinterpret_cast<LooseVector*>(to) = value; }
inline Vector splat(float value) { return Vector{} + value; }

// Storage types of weights, activations and the cache.
struct Bf16 {
    uint16_t bits;
    static constexpr int PER_WORD = 2;
};
struct Fp32 {
    float value;
    static constexpr int PER_WORD = 1;
};

inline float to_float(Bf16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
inline float to_float(Fp32 x) { return x.value; }

inline void from_float(float value, Fp32& x) { x.value = value; }
inline void from_float(float value, Bf16& x) {  // to the nearest, ties to even; a NaN stays one
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    x.bits = uint16_t(value != value ? (bits >> 16) | 0x40 : rounded);
}

// One step of a sum: two products of a bf16 word, or one of fp32.
template <class T>
inline Vector multiply_add(Vector sum, WordVector weights, uint32_t word) {
    if constexpr (std::is_same_v<T, Fp32>) {
        float x;
        memcpy(&x, &word, 4);
        return sum + (Vector)weights * splat(x);
    } else {
#if defined(__AVX512BF16__)
        return (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)weights, (__m512bh)_mm512_set1_epi32(int(word)));
#else
        uint32_t low = word << 16, high = word & 0xffff0000u;
        float x0, x1;
        memcpy(&x0, &low, 4);
        memcpy(&x1, &high, 4);
        sum = sum + (Vector)(weights & 0xffff0000u) * splat(x1);
        return sum + (Vector)(weights << 16) * splat(x0);
#endif
    }
}

// Of a dense matrix: what a word has in one column. Exceptions are in the order of words, and a last one is above all.
struct Exception {
    int32_t number;  // of the word, counted over all groups
    int32_t column;
    uint32_t word;
};

// Where a tile reads weights: word k of a group, `stride` words apart.
struct Packed {
    const uint32_t* words;
    int64_t stride;
    static constexpr int LINES = 4;  // of 64 bytes, of a word of all columns
    void advance(int count) { words += count * stride; }
    Packed from_column(int column) const { return {words + column, stride}; }

    template <int VECTORS>
    ALWAYS_INLINE void read(int k, WordVector (&weights)[VECTORS]) {
        for (int v = 0; v < VECTORS; v++)
            weights[v] = *reinterpret_cast<const WordVector*>(words + k * stride + v * LANES);
    }
};

#if defined(DENSE)
// A word of k in a dense matrix is three vectors with 16-bit lanes. Each lane of the first has the bytes of two values,
// of the columns' vectors 0 and 1, and of the second those of vectors 2 and 3: sign and mantissa. The third has four
// times four bits: exponents less `base`, or 0 for the exponent of zero. A column with another one is an exception, kept
// whole.
struct Dense {
    const uint32_t* words;
    const Exception* exception;  // the next one, then those after it
    int32_t number;     // of word 0
    __m512i exponents;  // by their four bits, twice, at their place in a value
    static constexpr int LINES = 3;
    static constexpr int WORDS_AN_EXCEPTION = 8;  // with more of them it would be no faster
    static bool excepts(uint16_t value, int base) {
        int exponent = value >> 7 & 255;
        return exponent && (exponent <= base || exponent > base + 15);
    }
    static bool excepts(uint32_t pair, int base) {
        return excepts(uint16_t(pair), base) || excepts(uint16_t(pair >> 16), base);
    }
    void advance(int count) {
        words += int64_t(count) * LINES * LANES;
        for (number += count; exception->number < number;) exception++;
    }
    Dense from_column(int) const { return *this; }  // a tile has all columns

    template <int VECTORS>
    ALWAYS_INLINE void read(int k, WordVector (&weights)[VECTORS]) {
        static_assert(VECTORS == 4);
        const __m512i swapped = _mm512_set4_epi32(0x0e0f0c0d, 0x0a0b0809, 0x06070405, 0x02030001);
        const __m512i sign_and_mantissa = _mm512_set1_epi16(int16_t(0x807f));
        const uint32_t* from = words + int64_t(k) * LINES * LANES;
        __m512i fours = _mm512_loadu_si512(from + 2 * LANES);
        for (int v = 0; v < 4; v++) {
            __m512i bytes = _mm512_loadu_si512(from + v / 2 * LANES);
            if (v % 2) bytes = _mm512_shuffle_epi8(bytes, swapped);
            __m512i exponent = _mm512_permutexvar_epi16(_mm512_srli_epi16(fours, 4 * v), exponents);
            weights[v] = (WordVector)_mm512_ternarylogic_epi32(bytes, sign_and_mantissa, exponent, 0xea);  // a & b | c
        }
        for (; number + k == exception->number; exception++)
            for (int v = 0; v < 4; v++) {
                __mmask16 lane = __mmask16(uint64_t(1) << exception->column >> v * LANES);
                weights[v] = (WordVector)_mm512_mask_set1_epi32((__m512i)weights[v], lane, int(exception->word));
            }
    }
};
#endif

// c (ROWS, 64 columns of ldc) = or += a (ROWS, words) times a group.
// `ahead` is prefetched, PREFETCH lines a word: into the first cache for a few rows, which use it soon, and else into the
// second, because what is read twice must stay in the first.
template <class T, int ROWS, int VECTORS, int PREFETCH, class Weights>
inline void tile(const uint32_t* a, int64_t lda, Weights b, int words, float* c, int64_t ldc, bool accumulate,
                 const char* ahead, int64_t ahead_stride) {
    constexpr int LOCALITY = ROWS <= 2 ? 3 : 2;
    Vector sums[ROWS][VECTORS];
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < VECTORS; v++) sums[r][v] = accumulate ? load(c + r * ldc + v * LANES) : Vector{};
    for (int k = 0; k < words; k++) {
        WordVector weights[VECTORS];
        b.template read<VECTORS>(k, weights);
        for (int p = 0; p < PREFETCH; p++) __builtin_prefetch(ahead + k * ahead_stride + p * 64, 0, LOCALITY);
        for (int r = 0; r < ROWS; r++)
            for (int v = 0; v < VECTORS; v++) sums[r][v] = multiply_add<T>(sums[r][v], weights[v], a[r * lda + k]);
    }
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < VECTORS; v++) store(c + r * ldc + v * LANES, sums[r][v]);
}

template <class T, int VECTORS, int PREFETCH, class Weights>
inline void tile_rows(int rows, const uint32_t* a, int64_t lda, const Weights& b, int words, float* c, int64_t ldc,
                      bool accumulate, const char* ahead, int64_t ahead_stride) {
    auto run = [&]<int ROWS>() {
        tile<T, ROWS, VECTORS, PREFETCH>(a, lda, b, words, c, ldc, accumulate, ahead, ahead_stride);
    };
    switch (rows) {
        case 1: return run.template operator()<1>();
        case 2: return run.template operator()<2>();
        case 3: return run.template operator()<3>();
#if defined(__AVX512F__)
        case 4: return run.template operator()<4>();
        case 5: return run.template operator()<5>();
        case 6: return run.template operator()<6>();
#endif
    }
}

// c (rows, 64) = or += a (rows, words) times one group; `ahead` is what comes after it in memory, or null.
template <class T, class Weights>
void multiply(int rows, const uint32_t* a, int64_t lda, const Weights& b, int words, float* c, int64_t ldc, bool accumulate,
              const char* ahead) {
    constexpr int LINES = Weights::LINES;
    int sweeps = (rows + TILE_ROWS - 1) / TILE_ROWS;
    int line = 0;  // of a word's lines that are to be prefetched
    for (int sweep = 0, first = 0; sweep < sweeps; sweep++) {
        int count = (rows - first + sweeps - sweep - 1) / (sweeps - sweep);
        for (int v = 0; v < COLUMNS / LANES; v += TILE_VECTORS) {
            float* to = c + first * ldc + v * LANES;
            const char* next = ahead + line * 64;
            int lines = ahead == nullptr ? 0 : (LINES - line + sweeps - sweep - 1) / (sweeps - sweep);
            line += lines;
            auto run = [&]<int PREFETCH>() {
                tile_rows<T, TILE_VECTORS, PREFETCH>(count, a + first * lda, lda, b.from_column(v * LANES), words, to, ldc,
                                                     accumulate, next, LINES * 64);
            };
            switch (lines) {
                case 0: run.template operator()<0>(); break;
                case 1: run.template operator()<1>(); break;
                case 2: run.template operator()<2>(); break;
                default: run.template operator()<LINES>();
            }
        }
        first += count;
    }
}

// 32 inputs of a row as whole numbers: input ≈ value × scale.
constexpr int BLOCK = 32;
struct InputBlock {
    uint32_t words[BLOCK / 4];  // four values of 8 bits each
    float scale;
    int32_t start;  // of a sum: undoes that weights are stored without sign
};

// One step of a sum: four products of a weight without sign and an input with one.
inline IntVector multiply_add_bytes(IntVector sum, WordVector weights, uint32_t word) {
#if defined(__AVX512VNNI__)
    return (IntVector)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)weights, _mm512_set1_epi32(int(word)));
#else
    for (int shift = 0; shift < 32; shift += 8)
        sum += (IntVector)(weights >> shift & 255u) * int32_t(int8_t(word >> shift));
    return sum;
#endif
}

// The values of 16 numbers in fp16, none of them infinite.
inline Vector load_halves(const uint16_t* from) {
#if defined(__AVX512F__)
    return (Vector)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#else
    WordVector bits{};
    for (int i = 0; i < LANES; i++) bits[i] = from[i];
    Vector magnitude = (Vector)((bits & 0x7fffu) << 13) * 0x1p112f;  // also of numbers that are not normal
    return (Vector)((WordVector)magnitude | (bits & 0x8000u) << 16);
#endif
}

// A group of a quantised matrix: for each 32 inputs the 64 scales in fp16, then four times the words of 16 columns. A word
// has four inputs of 8 bits, or the same four of 4 bits in its lower halves of bytes and the 16th after them in the upper.
template <int BITS>
struct Blocks {
    static constexpr int BYTES = COLUMNS * (2 + BLOCK * BITS / 8), OFFSET = 1 << (BITS - 1);
    static constexpr int WORDS = BLOCK / 4;

    static ALWAYS_INLINE void read(const char* block, int v, WordVector (&weights)[WORDS]) {
        const WordVector* from = reinterpret_cast<const WordVector*>(block + COLUMNS * 2) + v * WORDS * BITS / 8;
        for (int i = 0; i < WORDS * BITS / 8; i++) {
            if constexpr (BITS == 8) {
                weights[i] = from[i];
            } else {
                weights[i] = from[i] & 0x0f0f0f0fu;
                weights[i + WORDS / 2] = from[i] >> 4 & 0x0f0f0f0fu;
            }
        }
    }
};

// c (rows, 64) = a (rows, blocks) times one group. Sums are kept in memory, so that registers hold a block of weights.
// Nothing is prefetched: the processor does that better alone.
template <int BITS>
void multiply_blocks(int rows, const InputBlock* a, const char* b, int blocks, float* c) {
    typedef Blocks<BITS> B;
    constexpr int ROWS = 32;  // whose sums stay in the first cache
    memset(c, 0, sizeof(float) * rows * COLUMNS);
    for (int first = 0; first < rows; first += ROWS) {
        int end = std::min(rows, first + ROWS);
        for (int k = 0; k < blocks; k++) {
            const char* block = b + int64_t(k) * B::BYTES;
#pragma GCC unroll 1
            for (int v = 0; v < COLUMNS / LANES; v++) {
                WordVector weights[B::WORDS];
                B::read(block, v, weights);
                Vector scale = load_halves(reinterpret_cast<const uint16_t*>(block) + v * LANES);
#pragma GCC unroll 1
                for (int r = first; r < end; r++) {
                    const InputBlock& input = a[int64_t(r) * blocks + k];
                    IntVector sum = IntVector{} + input.start;
                    for (int i = 0; i < B::WORDS; i++) sum = multiply_add_bytes(sum, weights[i], input.words[i]);
                    float* to = c + r * COLUMNS + v * LANES;
                    store(to, load(to) + __builtin_convertvector(sum, Vector) * input.scale * scale);
                }
            }
        }
    }
}

// exp for x ≤ 0 and moderate x > 0, with a relative error of about 2e-7; below -87 it is 0.
inline Vector exponential(Vector x) {
    IntVector tiny = x < -87.0f;
    x = tiny ? splat(-87.0f) : x;
    x = x > 88.0f ? splat(88.0f) : x;
    Vector scaled = x * 1.44269504f;
    Vector half = scaled < 0.0f ? splat(-0.5f) : splat(0.5f);
    IntVector power = __builtin_convertvector(scaled + half, IntVector);
    Vector n = __builtin_convertvector(power, Vector);
    Vector f = x - n * 0.693359375f;
    f = f + n * 2.12194440e-4f;
    Vector sum = splat(1.9875691500e-4f);
    sum = sum * f + 1.3981999507e-3f;
    sum = sum * f + 8.3334519073e-3f;
    sum = sum * f + 4.1665795894e-2f;
    sum = sum * f + 1.6666665459e-1f;
    sum = sum * f + 5.0000001201e-1f;
    sum = sum * f * f + f + 1.0f;
    IntVector bits = (IntVector)sum + (power << 23);
    return tiny ? Vector{} : (Vector)bits;
}

inline float total(Vector x) {
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += x[i];
    return sum;
}

template <class T>
inline Vector load_as_float(const T* from) {
    if constexpr (std::is_same_v<T, Fp32>) {
        return load(&from->value);
    } else {
        typedef uint16_t Halves __attribute__((vector_size(32), aligned(2)));
        Halves halves = *reinterpret_cast<const Halves*>(from);
        WordVector words = __builtin_convertvector(halves, WordVector);
        return (Vector)(words << 16);
    }
}

template <class T>
inline void store_from_float(T* to, Vector x) {
    if constexpr (std::is_same_v<T, Fp32>) {
        store(&to->value, x);
    } else {
        typedef uint16_t Halves __attribute__((vector_size(32), aligned(2)));
        WordVector bits = (WordVector)x;
        WordVector rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
        WordVector kept = x != x ? ((bits >> 16) | 0x40u) : rounded;
        *reinterpret_cast<Halves*>(to) = __builtin_convertvector(kept, Halves);
    }
}

int round_up(int value, int unit) { return (value + unit - 1) / unit * unit; }

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

// Wait until the word changes: spin for some microseconds, then let others have the core, because the thread that is
// waited for may need it, and sleep only after a while, because to wake a thread takes longer than a small layer.
void await_change(std::atomic<uint32_t>& word, uint32_t old) {
    for (int spin = 0; spin < 500; spin++) {
        if (word.load(std::memory_order_acquire) != old) return;
        pause();
    }
    auto until = std::chrono::steady_clock::now() + std::chrono::microseconds(500);
    while (std::chrono::steady_clock::now() < until) {
        if (word.load(std::memory_order_acquire) != old) return;
        std::this_thread::yield();
    }
    word.wait(old, std::memory_order_acquire);
}

}  // namespace

extern "C" {

// What Python fills in; the same fields in the same order stand in build.py.
struct Matrix {
    const uint32_t* words;  // packed, dense or quantised
    const float* bias;      // one per padded column, or null
    int32_t columns;        // padded to whole groups
    int32_t inputs;         // words of k
    // of a dense matrix
    const Exception* exceptions;
    int32_t exception_count;
    int32_t base;  // of its exponents; of other matrices 0
    int32_t bits;  // of a quantised matrix; of others 0
};
struct Layer {
    const float* input_norm;
    Matrix qkv;
    Matrix output;
    const float* post_norm;
    Matrix gate_up;  // groups of 32 gate and 32 up columns
    Matrix down;
};
struct Shape {
    int32_t layers, hidden, heads, kv_heads, head_dim, intermediate, bf16, threads;
    float norm_eps;
    const float* frequencies;  // (head_dim / 2,)
    const float* final_norm;   // or null
    Matrix head;
};
struct Segment {  // rows that follow each other in a request
    int32_t start, count;
    char** pages;  // of the request's slot, in order of position
};
}

namespace {

struct Scratch {  // of one thread
    std::vector<float> product, scores, sums, mixed;
    std::vector<uint32_t> queries, weights;
    template <class V>
    static auto* at_least(V& buffer, size_t size) {
        if (buffer.size() < size) buffer.resize(size);
        return buffer.data();
    }
};

struct Decoder {
    Shape shape;
    std::vector<Layer> layers;
    enum Phase { QKV, ATTEND, OUTPUT, GATE_UP, DOWN, PHASES };  // of a layer, that threads share by tasks
    std::vector<std::thread> workers;
    std::vector<Scratch> scratch;
    std::atomic<uint32_t> round{0}, arrived{0}, phase{0};
    bool closing = false;
    void (*job)(Decoder&, int) = nullptr;

    // of the running step
    const Segment* segments;
    int segment_count, rows;
    bool ends_only;  // after the last layer only the last row of each segment is wanted
    void* hidden;
    float* logits;
    std::vector<int> row_position, row_segment;
    std::vector<char> normed, mixed, activated, ends;
    std::vector<float> qkv, cosines, sines;
    std::vector<InputBlock> rounded;  // of a quantised matrix
    std::vector<std::atomic<int>> taken;  // tasks of each layer's phases, and of the head
    std::function<void()> draw;

    Decoder(const Shape& shape, const Layer* first)
        : shape(shape), layers(first, first + shape.layers), scratch(shape.threads), taken(shape.layers * PHASES + 1) {
        for (int thread = 1; thread < shape.threads; thread++) workers.emplace_back([this, thread] { work(thread); });
    }

    ~Decoder() {
        closing = true;
        start(nullptr);
        for (std::thread& worker : workers) worker.join();
    }

    bool quantised() const { return shape.head.bits || (shape.layers && layers[0].qkv.bits); }

    void start(void (*next)(Decoder&, int)) {
        job = next;
        round.fetch_add(1, std::memory_order_release);
        round.notify_all();
    }

    void work(int thread) {
        for (uint32_t seen = 0;; seen++) {
            await_change(round, seen);
            if (closing) return;
            job(*this, thread);
        }
    }

    void run(void (*next)(Decoder&, int)) {
        start(next);
        next(*this, 0);
    }

    void barrier() {
        uint32_t now = phase.load(std::memory_order_acquire);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == uint32_t(shape.threads)) {
            arrived.store(0, std::memory_order_relaxed);
            phase.fetch_add(1, std::memory_order_release);
            phase.notify_all();
        } else {
            await_change(phase, now);
        }
    }
};

template <class T>
void norm_row(const T* x, const float* weight, int width, float eps, T* to) {
    Vector squares{};
    int i = 0;
    for (; i + LANES <= width; i += LANES) {
        Vector value = load_as_float(x + i);
        squares += value * value;
    }
    float sum = total(squares);
    for (; i < width; i++) sum += to_float(x[i]) * to_float(x[i]);
    float scale = 1.0f / sqrtf(sum / float(width) + eps);
    for (i = 0; i + LANES <= width; i += LANES) store_from_float(to + i, load_as_float(x + i) * scale * load(weight + i));
    for (; i < width; i++) from_float(to_float(x[i]) * scale * weight[i], to[i]);
}

template <class T>
void norm_rows(Decoder& d, int thread, const T* x, const float* weight) {
    int width = d.shape.hidden;
    T* to = reinterpret_cast<T*>(d.normed.data());
    for (int row = thread; row < d.rows; row += d.shape.threads)
        norm_row(x + int64_t(row) * width, weight, width, d.shape.norm_eps, to + int64_t(row) * width);
}

#if defined(DENSE)
// `near` is where the group before ended, or null.
inline Dense dense_from(const Matrix& matrix, int32_t number, const Exception* near) {
    uint16_t exponents[32];
    for (int i = 0; i < 32; i++) exponents[i] = uint16_t(i % 16 ? (matrix.base + i % 16) << 7 : 0);
    if (!near || near->number < number || (near > matrix.exceptions && near[-1].number >= number))
        near = std::lower_bound(matrix.exceptions, matrix.exceptions + matrix.exception_count, number,
                                [](const Exception& exception, int32_t number) { return exception.number < number; });
    return {matrix.words + int64_t(number) * Dense::LINES * LANES, near, number, _mm512_loadu_si512(exponents)};
}
#endif

inline int32_t highest_of(IntVector x) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_epi32((__m512i)x);
#else
    int32_t highest = x[0];
    for (int i = 1; i < LANES; i++) highest = std::max(highest, x[i]);
    return highest;
#endif
}

inline int32_t sum_of(IntVector x) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_epi32((__m512i)x);
#else
    int32_t sum = 0;
    for (int i = 0; i < LANES; i++) sum += x[i];
    return sum;
#endif
}

// Round up to 32 inputs, for a matrix of `bits`; if one is not finite, the scale is a NaN.
template <class T>
void round_inputs(const T* x, int count, int bits, InputBlock& to) {
    T padded[BLOCK]{};
    if (count < BLOCK) {
        memcpy(padded, x, count * sizeof(T));
        x = padded;
    }
    Vector values[2] = {load_as_float(x), load_as_float(x + LANES)};
    IntVector sizes[2] = {(IntVector)values[0] & 0x7fffffff, (IntVector)values[1] & 0x7fffffff}, sums{};
    int32_t peak = highest_of(sizes[0] > sizes[1] ? sizes[0] : sizes[1]);  // sizes are in the order of their bits
    float highest;
    memcpy(&highest, &peak, 4);
    float inverse = peak > 0 ? 127.0f / highest : 0.0f;
    for (int half = 0; half < 2; half++) {
        Vector scaled = values[half] * inverse;
        IntVector whole = __builtin_convertvector(scaled + (scaled < 0.0f ? splat(-0.5f) : splat(0.5f)), IntVector);
        typedef int8_t Bytes __attribute__((vector_size(16)));
        Bytes bytes = __builtin_convertvector(whole, Bytes);
        memcpy(to.words + half * LANES / 4, &bytes, LANES);
        sums += whole;
    }
    to.scale = peak < 0x7f800000 ? highest / 127.0f : NAN;
    to.start = -int32_t(uint32_t(sum_of(sums)) << (bits - 1));
}

// Multiply all rows with a matrix; `use` gets each row's columns of a group: (row, first column, values). Threads share
// the work in pieces of a group and a block of rows: most in equal shares, in the order of memory; the last ones are
// `taken` by whoever is ready.
template <class T, class Use>
void project(Decoder& d, int thread, const Matrix& matrix, const void* input, std::atomic<int>& taken, Use use) {
    constexpr int ROWS = 64;
    int blocks = (d.rows + ROWS - 1) / ROWS, pieces = matrix.columns / COLUMNS * blocks, threads = d.shape.threads;
    const uint32_t* a = static_cast<const uint32_t*>(input);
    float* product = Scratch::at_least(d.scratch[thread].product, size_t(blocks) * ROWS * COLUMNS);
    int width = matrix.inputs * T::PER_WORD, row_blocks = (width + BLOCK - 1) / BLOCK;
    if (matrix.bits) {
        InputBlock* rounded = d.rounded.data();
        int64_t all = int64_t(d.rows) * row_blocks;
        for (int64_t i = all * thread / threads; i < all * (thread + 1) / threads; i++) {
            int first = int(i % row_blocks) * BLOCK;
            round_inputs(static_cast<const T*>(input) + i / row_blocks * width + first, std::min(BLOCK, width - first),
                         matrix.bits, rounded[i]);
        }
        d.barrier();
    }
    auto multiply_rounded = [&]<int BITS>(int group, int row, int rows) {
        const char* weights = reinterpret_cast<const char*>(matrix.words);
        multiply_blocks<BITS>(rows, d.rounded.data() + int64_t(row) * row_blocks,
                              weights + int64_t(group) * row_blocks * Blocks<BITS>::BYTES, row_blocks, product);
    };
    [[maybe_unused]] const Exception* near = nullptr;
    auto compute = [&](int group, int row, int rows) {
        int32_t number = group * matrix.inputs;  // of the group's first word
        // Several tiles of rows share a block of weights in a cache, while the next block is prefetched.
        int step = rows <= TILE_ROWS ? matrix.inputs : rows <= 32 ? 64 : 256, ahead = rows <= TILE_ROWS ? 64 : step;
        auto multiply_all = [&](auto weights) {
            for (int k = 0, words; k < matrix.inputs; k += words) {
                words = std::min(step, matrix.inputs - k);
                multiply<T>(rows, a + int64_t(row) * matrix.inputs + k, matrix.inputs, weights, words, product, COLUMNS,
                            k > 0, reinterpret_cast<const char*>(weights.words + ahead * weights.LINES * LANES));
                weights.advance(words);
            }
            return weights;
        };
        if (matrix.bits == 8) {
            multiply_rounded.template operator()<8>(group, row, rows);
        } else if (matrix.bits == 4) {
            multiply_rounded.template operator()<4>(group, row, rows);
        } else
#if defined(DENSE)
            if (std::is_same_v<T, Bf16> && matrix.base) {
            near = multiply_all(dense_from(matrix, number, near)).exception;
        } else
#endif
            multiply_all(Packed{matrix.words + int64_t(number) * COLUMNS, COLUMNS});
        for (int r = 0; r < rows; r++) {
            float* values = product + r * COLUMNS;
            if (matrix.bias)
                for (int v = 0; v < COLUMNS; v += LANES)
                    store(values + v, load(values + v) + load(matrix.bias + group * COLUMNS + v));
            use(row + r, group * COLUMNS, values);
        }
    };
    auto compute_pieces = [&](int piece, int end) {
        for (int next; piece < end; piece = next) {  // all pieces of a group at once
            next = std::min(end, (piece / blocks + 1) * blocks);
            int row = piece % blocks * ROWS;
            compute(piece / blocks, row, std::min(d.rows - row, (next - piece) * ROWS));
        }
    };
    int own = pieces * 7 / 8 / threads;
    compute_pieces(own * thread, own * (thread + 1));
    for (int piece; (piece = own * threads + taken.fetch_add(1, std::memory_order_relaxed)) < pieces;)
        compute_pieces(piece, piece + 1);
}

template <class T>
struct Step {
    Decoder& d;
    int thread;
    const Shape& shape = d.shape;
    int words_of(int values) const { return (values + T::PER_WORD - 1) / T::PER_WORD; }
    int value_columns() const { return round_up(shape.head_dim, COLUMNS); }
    int64_t key_words() const { return int64_t(words_of(shape.head_dim)) * PAGE; }
    int64_t value_words() const { return int64_t(words_of(PAGE)) * value_columns(); }

    int64_t head_words() const { return key_words() + value_words(); }

    // The keys of a layer and a head in a page; the values follow.
    uint32_t* page_keys(char* page, int layer, int head) const {
        return reinterpret_cast<uint32_t*>(page) + (int64_t(layer) * shape.kv_heads + head) * head_words();
    }

    void rotate(const float* x, int row, T* to) const {
        int half = shape.head_dim / 2, i = 0;
        const float *cosine = d.cosines.data() + int64_t(row) * half, *sine = d.sines.data() + int64_t(row) * half;
        for (; i + LANES <= half; i += LANES) {
            Vector low = load(x + i), high = load(x + i + half), c = load(cosine + i), s = load(sine + i);
            store_from_float(to + i, low * c - high * s);
            store_from_float(to + i + half, high * c + low * s);
        }
        for (; i < half; i++) {
            from_float(x[i] * cosine[i] - x[i + half] * sine[i], to[i]);
            from_float(x[i + half] * cosine[i] + x[i] * sine[i], to[i + half]);
        }
    }

    void append(int layer) {
        int dim = shape.head_dim, kv_heads = shape.kv_heads, width = round_up((shape.heads + 2 * kv_heads) * dim, COLUMNS);
        std::vector<uint32_t>& buffer = d.scratch[thread].queries;
        T* key = reinterpret_cast<T*>(Scratch::at_least(buffer, dim));
        for (int task = thread; task < d.rows * kv_heads; task += shape.threads) {
            int row = task / kv_heads, head = task % kv_heads, position = d.row_position[row];
            const float* k = d.qkv.data() + int64_t(row) * width + (shape.heads + head) * dim;
            const float* v = k + kv_heads * dim;
            char* page = d.segments[d.row_segment[row]].pages[position / PAGE];
            uint32_t* keys = page_keys(page, layer, head);
            T* values = reinterpret_cast<T*>(keys + key_words());
            int place = position % PAGE, columns = value_columns();
            rotate(k, row, key);
            for (int word = 0; word < words_of(dim); word++)
                memcpy(keys + word * PAGE + place, key + word * T::PER_WORD, 4);
            T* to = values + (int64_t(place / T::PER_WORD) * columns) * T::PER_WORD + place % T::PER_WORD;
            for (int i = 0; i < dim; i++) from_float(v[i], to[i * T::PER_WORD]);
        }
    }

    // Softmax of a query's scores over its own positions; the result is rounded to T, and 0 up to `padded`.
    static float soften(float* scores, int length, int padded, float scale, T* to) {
        float highest = -INFINITY;
        Vector most = splat(-INFINITY);
        for (int i = length; i < padded; i++) scores[i] = -INFINITY;
        for (int i = 0; i < padded; i += LANES) {
            Vector x = load(scores + i);
            most = x > most ? x : most;
        }
        for (int i = 0; i < LANES; i++) highest = most[i] > highest ? most[i] : highest;
        Vector sums{};
        for (int i = 0; i < padded; i += LANES) {
            Vector weight = exponential((load(scores + i) - highest) * scale);
            sums += weight;
            store_from_float(to + i, weight);
        }
        return total(sums);
    }

    // Rows of requests that share pages, such as samples of a prompt, share the reading of these.
    // `to_row` is where the result of the block's first row goes.
    void attend_block(int layer, int first_row, int count, int head, int to_row) {
        int dim = shape.head_dim, group = shape.heads / shape.kv_heads, rows = count * group, columns = value_columns();
        int width = round_up((shape.heads + 2 * shape.kv_heads) * dim, COLUMNS);
        auto pages_of = [&](int r) { return d.row_position[first_row + r] / PAGE + 1; };
        auto page_of = [&](int r, int page) {
            return page < pages_of(r) ? d.segments[d.row_segment[first_row + r]].pages[page] : nullptr;
        };
        int pages = 0;
        for (int r = 0; r < count; r++) pages = std::max(pages, pages_of(r));
        auto each_page = [&](auto use) {  // with the queries of rows that follow each other
            for (int page = 0; page < pages; page++)
                for (int first = 0, end; first < count; first = end) {
                    char* shared = page_of(first, page);
                    for (end = first + 1; end < count && page_of(end, page) == shared;) end++;
                    if (shared) use(page, page_keys(shared, layer, head), first * group, (end - first) * group);
                }
        };
        Scratch& own = d.scratch[thread];
        int query_words = words_of(dim), padded = pages * PAGE, weight_words = words_of(padded);
        T* queries = reinterpret_cast<T*>(Scratch::at_least(own.queries, size_t(rows) * query_words));
        float* scores = Scratch::at_least(own.scores, size_t(rows) * padded);
        uint32_t* weights = Scratch::at_least(own.weights, size_t(rows) * weight_words);
        float* mixed = Scratch::at_least(own.mixed, size_t(rows) * columns);
        for (int r = 0; r < rows; r++) {
            int row = first_row + r / group;
            rotate(d.qkv.data() + int64_t(row) * width + (head * group + r % group) * dim, row, queries + int64_t(r) * dim);
        }
        const uint32_t* a = reinterpret_cast<const uint32_t*>(queries);
        each_page([&](int page, const uint32_t* keys, int first, int rows) {
            multiply<T>(rows, a + first * query_words, query_words, Packed{keys, PAGE}, query_words,
                        scores + int64_t(first) * padded + page * PAGE, padded, false,
                        reinterpret_cast<const char*>(keys + key_words()));
        });
        float scale = 1.0f / sqrtf(float(dim));
        float* sums = Scratch::at_least(own.sums, rows);
        for (int r = 0; r < rows; r++)
            sums[r] = soften(scores + int64_t(r) * padded, d.row_position[first_row + r / group] + 1,
                             pages_of(r / group) * PAGE, scale, reinterpret_cast<T*>(weights + int64_t(r) * weight_words));
        each_page([&](int page, const uint32_t* keys, int first, int rows) {
            for (int column = 0; column < columns; column += COLUMNS)
                multiply<T>(rows, weights + int64_t(first) * weight_words + words_of(PAGE) * page, weight_words,
                            Packed{keys + key_words() + column, columns}, words_of(PAGE),
                            mixed + int64_t(first) * columns + column, columns, page > 0, nullptr);
        });
        T* to = reinterpret_cast<T*>(d.mixed.data());
        for (int r = 0; r < rows; r++) {
            T* own_row = to + (int64_t(to_row + r / group) * shape.heads + head * group + r % group) * dim;
            const float* sum = mixed + int64_t(r) * columns;
            int i = 0;
            for (; i + LANES <= dim; i += LANES) store_from_float(own_row + i, load(sum + i) / sums[r]);
            for (; i < dim; i++) from_float(sum[i] / sums[r], own_row[i]);
        }
    }

    void attend(int layer, bool ends) {
        constexpr int MOST_QUERIES = 24, MOST_REQUESTS = 4;  // of a task
        int group = shape.heads / shape.kv_heads, block = std::max(1, MOST_QUERIES / group), task = 0;
        int mine = taken(layer, Decoder::ATTEND).fetch_add(1, std::memory_order_relaxed), first_row = 0;
        auto run = [&](int row, int count, int to_row) {
            for (int head = 0; head < shape.kv_heads; head++, task++) {
                if (task != mine) continue;
                attend_block(layer, row, count, head, to_row);
                mine = taken(layer, Decoder::ATTEND).fetch_add(1, std::memory_order_relaxed);
            }
        };
        for (int s = 0, end; s < d.segment_count;) {
            const Segment& segment = d.segments[s];
            auto joins = [&](const Segment& next) { return next.count == 1 && next.pages[0] == segment.pages[0]; };
            end = s + 1;  // of the segments that share tasks
            if (ends) {
                run(first_row + segment.count - 1, 1, s);
            } else if (segment.count == 1) {
                int most = std::min({d.segment_count, s + block, s + MOST_REQUESTS});
                while (end < most && joins(d.segments[end])) end++;
                run(first_row, end - s, first_row);
            } else {
                for (int first = 0; first < segment.count; first += block)
                    run(first_row + first, std::min(block, segment.count - first), first_row + first);
            }
            while (s < end) first_row += d.segments[s++].count;
        }
    }

    std::atomic<int>& taken(int layer, Decoder::Phase phase) { return d.taken[layer * Decoder::PHASES + phase]; }

    void add_projection(const Matrix& matrix, const void* input, std::atomic<int>& taken) {
        T* x = static_cast<T*>(d.hidden);
        int width = shape.hidden;
        project<T>(d, thread, matrix, input, taken, [=](int row, int column, float* values) {
            T* to = x + int64_t(row) * width + column;
            int count = width - column < COLUMNS ? width - column : COLUMNS, i = 0;
            for (; i + LANES <= count; i += LANES) store_from_float(to + i, load_as_float(to + i) + load(values + i));
            for (; i < count; i++) from_float(to_float(to[i]) + values[i], to[i]);
        });
    }

    // Go on with the last row of each segment alone.
    void keep_ends() {
        size_t row_bytes = shape.hidden * sizeof(T);
        const char* x = static_cast<const char*>(d.hidden);
        for (int s = 0, row = 0; s < d.segment_count; s++)
            memcpy(d.ends.data() + s * row_bytes, x + ((row += d.segments[s].count) - 1) * row_bytes, row_bytes);
        d.hidden = d.ends.data();
        d.rows = d.segment_count;
    }

    void run_layers() {
        T* x = static_cast<T*>(d.hidden);
        int width = round_up((shape.heads + 2 * shape.kv_heads) * shape.head_dim, COLUMNS);
        int inner = round_up(shape.intermediate, COLUMNS / 2);
        float* qkv = d.qkv.data();
        T* activated = reinterpret_cast<T*>(d.activated.data());
        for (int index = 0; index < shape.layers; index++) {
            const Layer& layer = d.layers[index];
            norm_rows(d, thread, x, layer.input_norm);
            d.barrier();
            auto& qkv_taken = taken(index, Decoder::QKV);
            project<T>(d, thread, layer.qkv, d.normed.data(), qkv_taken, [=](int row, int column, const float* values) {
                memcpy(qkv + int64_t(row) * width + column, values, COLUMNS * sizeof(float));
            });
            d.barrier();
            append(index);
            d.barrier();
            bool ends = d.ends_only && index == shape.layers - 1;
            if (ends && thread == 0) keep_ends();
            attend(index, ends);
            d.barrier();
            x = static_cast<T*>(d.hidden);
            add_projection(layer.output, d.mixed.data(), taken(index, Decoder::OUTPUT));
            d.barrier();
            norm_rows(d, thread, x, layer.post_norm);
            d.barrier();
            auto& gates = taken(index, Decoder::GATE_UP);
            project<T>(d, thread, layer.gate_up, d.normed.data(), gates, [=](int row, int column, const float* values) {
                T* to = activated + int64_t(row) * inner + column / 2;
                for (int i = 0; i < COLUMNS / 2; i += LANES) {
                    Vector gate = load(values + i), up = load(values + COLUMNS / 2 + i);
                    store_from_float(to + i, gate / (1.0f + exponential(-gate)) * up);
                }
            });
            d.barrier();
            add_projection(layer.down, d.activated.data(), taken(index, Decoder::DOWN));
            d.barrier();
        }
    }

    void run_head() {
        norm_rows(d, thread, static_cast<const T*>(d.hidden), shape.final_norm);
        d.barrier();
        float* logits = d.logits;
        int64_t columns = shape.head.columns;
        project<T>(d, thread, shape.head, d.normed.data(), d.taken.back(), [=](int row, int column, const float* values) {
            memcpy(logits + row * columns + column, values, COLUMNS * sizeof(float));
        });
        d.barrier();
    }
};

template <class T>
void layers_job(Decoder& d, int thread) { Step<T>{d, thread}.run_layers(); }
template <class T>
void head_job(Decoder& d, int thread) { Step<T>{d, thread}.run_head(); }

void reserve(Decoder& d, int rows) {
    const Shape& s = d.shape;
    size_t bytes = s.bf16 ? 2 : 4, n = rows;
    Scratch::at_least(d.normed, n * s.hidden * bytes);
    Scratch::at_least(d.mixed, n * s.heads * s.head_dim * bytes);
    Scratch::at_least(d.ends, n * s.hidden * bytes);
    Scratch::at_least(d.activated, n * round_up(s.intermediate, COLUMNS / 2) * bytes);
    int widest = std::max({s.hidden, s.heads * s.head_dim, round_up(s.intermediate, COLUMNS / 2)});
    if (d.quantised()) Scratch::at_least(d.rounded, n * (round_up(widest, BLOCK) / BLOCK));
    Scratch::at_least(d.qkv, n * round_up((s.heads + 2 * s.kv_heads) * s.head_dim, COLUMNS));
    Scratch::at_least(d.cosines, n * s.head_dim / 2);
    Scratch::at_least(d.sines, n * s.head_dim / 2);
}

// The nearest number in fp16, ties to even; too large ones become the largest.
uint16_t to_half(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint16_t sign = bits >> 16 & 0x8000;
    float size = fminf(fabsf(value), 65504.0f);
    memcpy(&bits, &size, 4);
    if (bits < 113u << 23) {  // not normal in fp16: whole numbers of 2^-24
        return sign | uint16_t(nearbyintf(size * 0x1p24f));
    }
    return sign | uint16_t((bits + 0xfff + (bits >> 13 & 1) - (112u << 23)) >> 13);
}

float from_half(uint16_t half) {
    uint32_t bits = uint32_t(half & 0x7fff) << 13;
    float value;
    memcpy(&value, &bits, 4);
    value *= 0x1p112f;
    return half & 0x8000 ? -value : value;
}

// Round 32 values to whole numbers without sign, `OFFSET` more than theirs; returns the scale in fp16. Values that came
// from whole numbers of this form get these again.
template <int BITS>
uint16_t quantise_block(const float* x, uint8_t* whole) {
    constexpr int OFFSET = Blocks<BITS>::OFFSET, HALVES = BLOCK / LANES;
    const float least = (BITS == 8 ? 1 : 0) - OFFSET, most = OFFSET - 1, whole_only = 0x1.8p23f;  // adding it rounds
    Vector low = load(x), high = load(x + LANES);
    IntVector sizes[2] = {(IntVector)low & 0x7fffffff, (IntVector)high & 0x7fffffff};
    int32_t peak_bits = highest_of(sizes[0] > sizes[1] ? sizes[0] : sizes[1]);  // sizes are in the order of their bits
    float peak, least_error = INFINITY;  // the value of the largest size
    memcpy(&peak, &peak_bits, 4);
    if (!sum_of((low == peak) | (high == peak))) peak = -peak;
    uint16_t best = 0;
    // 4 bits reach from -8 to 7: the peak becomes -8, or another number near it or near 8.
    for (int step = 0; step < (BITS == 8 ? 1 : 9); step++) {
        float number = BITS == 4 ? (step % 2 ? 7.5f - step / 2 * 0.5f : -8.0f + step / 2 * 0.5f) : peak < 0 ? -127 : 127;
        uint16_t half = to_half(peak / number);
        float exact = from_half(half), inverse = exact == 0.0f ? 0.0f : 1.0f / exact;
        Vector errors{}, rounded[HALVES];
        for (int i = 0; i < HALVES; i++) {
            Vector value = load(x + i * LANES), near = value * inverse;
            near = near < least ? splat(least) : near > most ? splat(most) : near;
            rounded[i] = near + whole_only - whole_only;
            Vector missed = value - rounded[i] * exact;
            errors += missed * missed;
        }
        if (float error = total(errors); error < least_error) {
            least_error = error;
            best = half;
            for (int i = 0; i < HALVES; i++) {
                typedef uint8_t Bytes __attribute__((vector_size(16)));
                Bytes bytes = __builtin_convertvector(__builtin_convertvector(rounded[i], IntVector) + OFFSET, Bytes);
                memcpy(whole + i * LANES, &bytes, LANES);
            }
        }
    }
    return best;
}

typedef double Doubles __attribute__((vector_size(64), aligned(8)));

// exp((logit - largest) × scale) of eight logits, with a relative error of about 1e-15 times the exponent.
inline Doubles weigh_eight(const float* logits, double largest, double scale) {
    typedef int64_t Longs __attribute__((vector_size(64)));
    typedef float Floats __attribute__((vector_size(32), aligned(4)));
    const double rounder = 0x1.8p52;  // adding it makes whole numbers of sums, in their lowest bits
    Doubles x = (__builtin_convertvector(*reinterpret_cast<const Floats*>(logits), Doubles) - largest) * scale;
    Longs tiny = x < -700.0;
    x = tiny ? Doubles{} - 700.0 : x;
    Doubles shifted = x * 1.4426950408889634 + rounder, n = shifted - rounder;
    Doubles f = x - n * 0x1.62e42fefa3800p-1 - n * 0x1.ef35793c76730p-45;  // ln 2 in two parts
    Doubles sum = Doubles{} + 1.0 / 479001600;
    const double terms[] = {1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040, 1.0 / 720,
                            1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5, 1.0, 1.0};
    for (double term : terms) sum = sum * f + term;
    Longs bits = (Longs)sum + ((Longs)shifted << 52);
    return tiny ? Doubles{} : (Doubles)bits;
}

// The first number in [0, 1) that NumPy's Philox gives for a key and a counter (Philox4x64-10, Salmon et al. 2011).
double uniform_of(uint64_t key, uint64_t counter) {
    typedef unsigned __int128 Product;
    uint64_t c[4] = {counter + 1, 0, 0, 0}, keys[2] = {key, 0};
    for (int round = 0; round < 10; round++) {
        Product low = Product(c[0]) * 0xd2e7470ee14c6c93, high = Product(c[2]) * 0xca5a826395121157;
        c[0] = uint64_t(high >> 64) ^ c[1] ^ keys[0];
        c[1] = uint64_t(high);
        c[2] = uint64_t(low >> 64) ^ c[3] ^ keys[1];
        c[3] = uint64_t(low);
        keys[0] += 0x9e3779b97f4a7c15;
        keys[1] += 0xbb67ae8584caa73b;
    }
    return double(c[0] >> 11) * 0x1p-53;
}

// The token at which the cumulative distribution of exp(logit / temperature) passes `uniform`, or -1 where sums in another
// order could find another one.
int32_t draw_token(const float* row, int32_t vocabulary, double temperature, double uniform) {
    constexpr int BLOCK_TOKENS = 512;
    constexpr double SURE = 1e-9;  // of the total; far more than sums differ by their order
    int blocks = (vocabulary + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
    std::vector<double> before(blocks + 1);
    double weights[BLOCK_TOKENS];
    Vector most = splat(-INFINITY);
    int token = 0;
    for (; token + LANES <= vocabulary; token += LANES) {
        Vector x = load(row + token);
        most = x > most ? x : most;
    }
    double largest = most[0];
    for (int lane = 1; lane < LANES; lane++) largest = std::max(largest, double(most[lane]));
    for (; token < vocabulary; token++) largest = std::max(largest, double(row[token]));
    double scale = 1.0 / temperature;
    auto weigh = [&](int block) {
        int first = block * BLOCK_TOKENS, size = std::min(BLOCK_TOKENS, vocabulary - first);
        float last[8];
        Doubles sums{};
        for (int t = 0; t < size; t += 8) {
            const float* from = row + first + t;
            if (size - t < 8) {
                std::fill(last, last + 8, -INFINITY);
                from = static_cast<const float*>(memcpy(last, from, (size - t) * sizeof(float)));
            }
            Doubles eight = weigh_eight(from, largest, scale);
            sums += eight;
            *reinterpret_cast<Doubles*>(weights + t) = eight;
        }
        double sum = 0;
        for (int lane = 0; lane < 8; lane++) sum += sums[lane];
        return sum;
    };
    before[0] = 0;
    for (int block = 0; block < blocks; block++) before[block + 1] = before[block] + weigh(block);
    double total = before[blocks], at = uniform * total;
    auto step_of = [&](const double* sums, int steps) {
        int step = int(std::upper_bound(sums, sums + steps + 1, at) - sums) - 1;
        bool sure = step >= 0 && step < steps && at - sums[step] > SURE * total && sums[step + 1] - at > SURE * total;
        return sure ? step : -1;
    };
    int block = step_of(before.data(), blocks);
    if (block < 0) return -1;
    weigh(block);
    int size = std::min(BLOCK_TOKENS, vocabulary - block * BLOCK_TOKENS);
    double sums[BLOCK_TOKENS + 1];
    sums[0] = before[block];
    for (int t = 0; t < size; t++) sums[t + 1] = sums[t] + weights[t];
    int step = step_of(sums, size);
    return step < 0 ? -1 : block * BLOCK_TOKENS + step;
}

// Write a column's scale and the bytes of its numbers to their place in a block of a group.
void place_block(char* block, int column, int bits, uint16_t scale, const uint8_t* bytes) {
    memcpy(block + column * 2, &scale, 2);
    char* words = block + COLUMNS * 2 + column / LANES * (LANES * BLOCK * bits / 8) + column % LANES * 4;
    for (int word = 0; word < BLOCK * bits / 32; word++) memcpy(words + word * 4 * LANES, bytes + word * 4, 4);
}

}  // namespace

extern "C" {

void* decoder_create(const Shape* shape, const Layer* layers) { return new Decoder(*shape, layers); }
// The 32-bit words of a page of the KV cache, over all layers.
int64_t decoder_page_words(void* decoder) {
    Decoder& d = *static_cast<Decoder*>(decoder);
    int64_t head = d.shape.bf16 ? Step<Bf16>{d, 0}.head_words() : Step<Fp32>{d, 0}.head_words();
    return head * d.shape.kv_heads * d.shape.layers;
}

// Quantise columns of a matrix, each with `inputs` values in bf16 (`width` 2) or fp32 (4), or take them as blocks of GGUF in
// these bits (0), and pack them in groups, the last one filled up with zeros. `bits` are 8 (Q8_0 of GGUF) or 4 (Q4_0, of several scales the one with the least squared
// error). Returns whether all values are finite.
int32_t quantise(const char* values, int32_t width, int64_t columns, int64_t inputs, int32_t bits, char* packed) {
    int64_t blocks = (inputs + BLOCK - 1) / BLOCK, bytes = COLUMNS * (2 + BLOCK * bits / 8);
    for (int64_t column = 0; column < round_up(int(columns), COLUMNS); column++)
        for (int64_t k = 0; k < blocks; k++) {
            char* block = packed + (column / COLUMNS * blocks + k) * bytes;
            uint8_t whole[BLOCK];
            uint16_t scale = 0;
            if (width == 0 && column < columns) {
                const char* from = values + (column * blocks + k) * (2 + BLOCK * bits / 8);
                memcpy(&scale, from, 2);
                memcpy(whole, from + 2, BLOCK * bits / 8);
                for (uint8_t& byte : whole) byte ^= bits == 8 ? 0x80 : 0;
                if ((scale & 0x7c00) == 0x7c00) return false;
                place_block(block, column % COLUMNS, bits, scale, whole);
                continue;
            }
            float x[BLOCK] = {};
            int count = column < columns ? int(std::min<int64_t>(BLOCK, inputs - k * BLOCK)) : 0;
            const char* from = values + (column * inputs + k * BLOCK) * width;
            if (width == 4) memcpy(x, from, count * 4);
            else
                for (int i = 0; i < count; i++) x[i] = to_float(reinterpret_cast<const Bf16*>(from)[i]);
            bool finite = true;
            for (float value : x) finite &= fabsf(value) < INFINITY;
            if (!finite) return false;
            scale = bits == 8 ? quantise_block<8>(x, whole) : quantise_block<4>(x, whole);
            for (int i = 0; bits == 4 && i < BLOCK / 2; i++) whole[i] |= whole[i + BLOCK / 2] << 4;
            place_block(block, column % COLUMNS, bits, scale, whole);
        }
    return true;
}

// Return a base of exponents for the dense form of a bf16 matrix, by a sample of `words` of its packed words, or 0: there
// are too many exceptions, or dense matrices would be slow on this processor.
int32_t dense_base(const uint32_t* packed, int64_t words) {
    int32_t base = 0;
#if defined(DENSE)
    int64_t counts[256] = {}, covered = 0, best = -1, looked = 0, found = 0;
    auto sample = [&](auto&& look) {
        for (int64_t word = 0; word < words; word += std::max<int64_t>(1, words / 1024))
            for (int column = 0; column < COLUMNS; column++) look(packed[word * COLUMNS + column]);
    };
    sample([&](uint32_t pair) { counts[pair >> 7 & 255]++, counts[pair >> 23 & 255]++; });
    for (int exponent = 1; exponent < 256; exponent++) {
        covered += counts[exponent] - (exponent > 15 ? counts[exponent - 15] : 0);
        if (exponent > 15 && covered > best) best = covered, base = exponent - 15;
    }
    sample([&](uint32_t pair) { looked++, found += Dense::excepts(pair, base); });
    if (found * Dense::WORDS_AN_EXCEPTION > looked / COLUMNS) base = 0;
#endif
    return base;
}

// Write `words` packed words of a bf16 matrix, the first of which has the number `first`, as dense ones of 48 words of 32
// bits each, and append their exceptions to the `found` ones. Returns how many there are then, or -1: more than `most`.
int64_t dense_pack(const uint32_t* packed, int64_t words, int64_t first, int32_t base, uint32_t* dense,
                   Exception* exceptions, int64_t found, int64_t most) {
#if defined(DENSE)
    typedef uint16_t Halves __attribute__((vector_size(64)));
    for (int64_t word = 0; word < words; word++) {
        Halves from[4], bytes[4], fours{}, beyond{};
        memcpy(from, packed + word * COLUMNS, sizeof from);
        Halves* to = reinterpret_cast<Halves*>(dense + (first + word) * Dense::LINES * LANES);
        for (int v = 0; v < 4; v++) {
            Halves exponent = from[v] >> 7 & 255, four = exponent - uint16_t(base);
            beyond |= (Halves)(exponent != 0) & ((four & 0xfff0) | (Halves)(four == 0));
            fours |= ((Halves)(exponent != 0) & four & 15) << 4 * v;
            bytes[v] = from[v] & 0x807f;
        }
        for (int i = 0; i < 2; i++) to[i] = bytes[2 * i] | bytes[2 * i + 1] << 8 | bytes[2 * i + 1] >> 8;
        to[2] = fours;
        if (!_mm512_test_epi16_mask((__m512i)beyond, (__m512i)beyond)) continue;
        for (int column = 0; column < COLUMNS; column++) {
            uint32_t pair = reinterpret_cast<const uint32_t*>(from)[column];
            if (!Dense::excepts(pair, base)) continue;
            if (found == most) return -1;
            exceptions[found++] = {int32_t(first + word), column, pair};
        }
    }
    return found;
#else
    return -1;
#endif
}

void decoder_destroy(void* decoder) { delete static_cast<Decoder*>(decoder); }

// Run the rows of all segments, `hidden` (rows, H), through the layers, in place. With `ends_only` the last row of each
// segment alone gets through all of the last layer; the others keep that layer's input.
void decoder_run(void* decoder, void* hidden, const Segment* segments, int32_t count, int32_t ends_only) {
    Decoder& d = *static_cast<Decoder*>(decoder);
    d.row_position.clear();
    d.row_segment.clear();
    for (int s = 0; s < count; s++)
        for (int i = 0; i < segments[s].count; i++) {
            d.row_position.push_back(segments[s].start + i);
            d.row_segment.push_back(s);
        }
    d.rows = int(d.row_position.size());
    d.segments = segments;
    d.segment_count = count;
    d.hidden = hidden;
    d.ends_only = ends_only && count < d.rows;
    reserve(d, d.rows);
    int half = d.shape.head_dim / 2;
    for (int row = 0; row < d.rows; row++)
        for (int i = 0; i < half; i++) {
            float angle = float(d.row_position[row]) * d.shape.frequencies[i];
            d.cosines[row * half + i] = cosf(angle);
            d.sines[row * half + i] = sinf(angle);
        }
    for (std::atomic<int>& tasks : d.taken) tasks.store(0, std::memory_order_relaxed);
    d.run(d.shape.bf16 ? layers_job<Bf16> : layers_job<Fp32>);
    size_t row_bytes = d.shape.hidden * (d.shape.bf16 ? 2 : 4);
    for (int s = 0, row = 0; s < count && d.ends_only; s++)
        memcpy(static_cast<char*>(hidden) + ((row += segments[s].count) - 1) * row_bytes, d.ends.data() + s * row_bytes,
               row_bytes);
}

// Write the logits (rows, padded vocabulary) of `hidden` (rows, H).
void decoder_logits(void* decoder, void* hidden, int32_t rows, float* logits) {
    Decoder& d = *static_cast<Decoder*>(decoder);
    d.rows = rows;
    d.hidden = hidden;
    d.logits = logits;
    d.taken.back().store(0, std::memory_order_relaxed);
    reserve(d, rows);
    d.run(d.shape.bf16 ? head_job<Bf16> : head_job<Fp32>);
}

// For each of `rows` of logits (`stride` apart), draw from exp(logit / temperature) with the number that its seed and index
// give: the token, or -1 where sums in another order could find another one.
void draw_tokens(void* decoder, const float* logits, int64_t stride, int32_t vocabulary, int32_t count, const int32_t* rows,
                 const double* temperatures, const uint64_t* seeds, const uint64_t* indices, int32_t* tokens) {
    std::atomic<int> taken{0};
    auto draw = [&] {
        for (int i; (i = taken.fetch_add(1, std::memory_order_relaxed)) < count;)
            tokens[i] = draw_token(logits + rows[i] * stride, vocabulary, temperatures[i], uniform_of(seeds[i], indices[i]));
    };
    if (count <= 1) return draw();  // nobody is woken for it
    Decoder& d = *static_cast<Decoder*>(decoder);
    d.draw = std::ref(draw);
    d.run([](Decoder& d, int) {
        d.draw();
        d.barrier();
    });
}

// Whether rows of bf16 or fp32 numbers, `stride` apart, have neither infinities nor NaN.
int32_t all_finite(const char* values, int64_t stride, int32_t rows, int32_t width, int32_t bf16) {
    auto finite = [&]<class T>(const T* row) {
        constexpr uint32_t EXPONENT = 0x7f800000;
        IntVector bad{};
        int i = 0;
        for (; i + LANES <= width; i += LANES) {
            WordVector bits = (WordVector)load_as_float(row + i) & EXPONENT;
            bad |= bits == EXPONENT;
        }
        bool rest = true;
        for (; i < width; i++) rest &= fabsf(to_float(row[i])) < INFINITY;
        return rest && !sum_of(bad);
    };
    for (int64_t row = 0; row < rows; row++)
        if (!(bf16 ? finite(reinterpret_cast<const Bf16*>(values) + row * stride)
                   : finite(reinterpret_cast<const Fp32*>(values) + row * stride)))
            return false;
    return true;
}
}
