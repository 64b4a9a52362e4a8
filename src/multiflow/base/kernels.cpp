// Products of a sparse matrix with dense inputs, from packed weights: one bit a weight and the values that are kept.
//
// Weights are (rows, cols). Bit b of word w of a row says whether column 64 w + b is kept; the words of a row hold its
// columns padded to a multiple of 64. The kept values stand row by row in the order of columns, row r from starts[r];
// behind the last are 64 bytes that may be read. Values are float, bfloat16 (the upper half of a float) or int8 times
// the scale of the row. Outputs are (tokens, rows) in float, bias added; inputs are (tokens, cols) in float.
//
//   few     expands 8 to 64 weights at a time in registers and multiplies them with each token
//   few8    the same in whole numbers: int8 weights, inputs rounded to 8 bits with one scale a token
//   look    the same from another form of the weights, with more bytes and without expanding
//   walk    goes from kept weight to kept weight, each times 16 to 64 tokens that lie side by side
//   unpack  writes the dense matrix
//   expand  writes a tensor of a packed file
//
// What the processor can is known when this file is compiled (-march=native): AVX-512 with VBMI2 and VNNI, AVX2 with
// FMA, or neither, for which the loops are left to the compiler.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>
#ifdef _OPENMP
#include <omp.h>
#endif

#ifdef MULTIFLOW_WIDE  // tests bring intrinsics of their own, so that this path is tested on every processor
#define WIDE 1
#elif defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VBMI2__) && \
    defined(__AVX512VNNI__)
#define WIDE 1
#include <immintrin.h>
#elif defined(__AVX2__) && defined(__FMA__)
#define NARROW 1
#include <immintrin.h>
#endif

namespace {

using Word = std::uint64_t;
using Half = std::uint16_t;
using Byte = std::int8_t;

struct Packed {  // as kernels.py fills it
    std::int64_t rows, cols;
    const Word* bits;
    const std::int64_t* starts;
    const void* values;
    const float* scales;  // of int8, else null
    std::int64_t kind;
    std::int64_t words() const { return (cols + 63) / 64; }
    std::int64_t width() const { return 64 * words(); }
    float scale(std::int64_t row) const { return scales ? scales[row] : 1.0f; }
    template <class V>
    const V* row(std::int64_t r) const {
        return static_cast<const V*>(values) + starts[r];
    }
};

inline float number(float value) { return value; }
inline float number(Byte value) { return value; }
inline float number(Half value) {
    const std::uint32_t bits = std::uint32_t(value) << 16;
    float out;
    std::memcpy(&out, &bits, 4);
    return out;
}

inline int count(Word bits) { return __builtin_popcountll(bits); }

// ---- expanding: the next LANES weights of a row as floats, zeros where no bit is set
#if WIDE
constexpr int LANES = 16;
using Floats = __m512;
inline Floats none() { return _mm512_setzero_ps(); }
inline Floats load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Floats a) { _mm512_storeu_ps(p, a); }
inline Floats spread(float a) { return _mm512_set1_ps(a); }
inline Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats expand(const float* v, unsigned bits) {
    return _mm512_maskz_expand_ps(__mmask16(bits), _mm512_loadu_ps(v));
}
inline Floats expand(const Half* v, unsigned bits) {
    const __m256i packed = _mm256_maskz_expand_epi16(__mmask16(bits), _mm256_loadu_si256((const __m256i*)v));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(packed), 16));
}
inline Floats expand(const Byte* v, unsigned bits) {
    const __m128i packed = _mm_maskz_expand_epi8(__mmask16(bits), _mm_loadu_si128((const __m128i*)v));
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(packed));
}
#elif NARROW
constexpr int LANES = 8;
using Floats = __m256;
struct Places {  // for 8 bits: where each of 8 lanes takes its value from, 0x80 = it is zero
    alignas(64) std::uint8_t bytes[257][8];  // one more: 16 bytes are read
    alignas(64) std::uint8_t pairs[256][16];
    alignas(64) std::uint8_t fours[256][32];  // a bfloat16 to the upper half of a float
    Places() {
        std::memset(this, 0x80, sizeof *this);
        for (int bits = 0; bits < 256; ++bits)
            for (int lane = 0, next = 0; lane < 8; ++lane)
                if (bits >> lane & 1) {
                    bytes[bits][lane] = next;
                    for (int half = 0; half < 2; ++half)
                        pairs[bits][2 * lane + half] = fours[bits][4 * lane + 2 + half] = 2 * next + half;
                    ++next;
                }
    }
};
const Places places;
inline Floats none() { return _mm256_setzero_ps(); }
inline Floats load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, Floats a) { _mm256_storeu_ps(p, a); }
inline Floats spread(float a) { return _mm256_set1_ps(a); }
inline Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline __m128i eight(const void* p) { return _mm_loadl_epi64((const __m128i*)p); }
inline Floats expand(const float* v, unsigned bits) {
    const __m256i from = _mm256_cvtepi8_epi32(eight(places.bytes[bits]));
    const Floats taken = _mm256_permutevar8x32_ps(_mm256_loadu_ps(v), from);
    return _mm256_blendv_ps(taken, _mm256_setzero_ps(), _mm256_castsi256_ps(from));
}
inline Floats expand(const Half* v, unsigned bits) {
    const __m256i both = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)v));
    return _mm256_castsi256_ps(_mm256_shuffle_epi8(both, _mm256_load_si256((const __m256i*)places.fours[bits])));
}
inline __m128i expand_bytes(const Byte* v, unsigned bits) {  // the lower half; nobody reads the upper one
    return _mm_shuffle_epi8(eight(v), _mm_loadu_si128((const __m128i*)places.bytes[bits]));
}
inline __m256i expand_32(const Byte*& v, std::uint32_t bits) {
    __m128i parts[4];
#pragma GCC unroll 4
    for (int part = 0; part < 4; ++part) {
        const unsigned some = bits >> (8 * part) & 255;
        parts[part] = expand_bytes(v, some);
        v += count(some);
    }
    return _mm256_set_m128i(_mm_unpacklo_epi64(parts[2], parts[3]), _mm_unpacklo_epi64(parts[0], parts[1]));
}
inline Floats expand(const Byte* v, unsigned bits) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(expand_bytes(v, bits)));
}
#else
constexpr int LANES = 8;
struct Floats {
    float at[LANES];
};
inline Floats none() { return Floats{}; }
inline Floats load(const float* p) {
    Floats a;
    std::memcpy(a.at, p, sizeof a);
    return a;
}
inline void store(float* p, Floats a) { std::memcpy(p, a.at, sizeof a); }
inline Floats spread(float a) {
    Floats out;
    for (float& one : out.at) one = a;
    return out;
}
inline Floats add(Floats a, Floats b) {
    for (int i = 0; i < LANES; ++i) a.at[i] += b.at[i];
    return a;
}
inline Floats fma(Floats a, Floats b, Floats c) {
    for (int i = 0; i < LANES; ++i) c.at[i] += a.at[i] * b.at[i];
    return c;
}
template <class V>
inline Floats expand(const V* v, unsigned bits) {
    Floats out;
    for (int i = 0; i < LANES; ++i) out.at[i] = bits >> i & 1 ? number(*v++) : 0.0f;
    return out;
}
#endif

constexpr unsigned LOWEST = (1u << LANES) - 1;

inline float total(Floats a) {
    float at[LANES];
    store(at, a);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; ++i) at[i] += at[i + half];
    return at[0];
}

// Inputs as (tokens, width), zeros behind the columns; not copied where they are so already.
const float* padded(const float* x, std::int64_t tokens, std::int64_t cols, std::int64_t width,
                    std::vector<float>& room) {
    if (cols == width) return x;
    room.resize(tokens * width);
    for (std::int64_t t = 0; t < tokens; ++t) {
        std::memcpy(room.data() + t * width, x + t * cols, 4 * cols);
        std::memset(room.data() + t * width + cols, 0, 4 * (width - cols));
    }
    return room.data();
}

// ---- few tokens
constexpr std::int64_t AHEAD = 2048;  // bytes: what is read from memory but once has to be asked for early

// Asks for what the row that lies AHEAD will read.
template <class V>
inline void ask(const Packed& p, std::int64_t r, bool reads_bits = true) {
    const char* bits = (const char*)(p.bits + r * p.words()) + AHEAD;
    for (std::int64_t at = 0; reads_bits && at < 8 * p.words(); at += 64) __builtin_prefetch(bits + at);
    const char* values = (const char*)p.row<V>(r) + AHEAD;
    const std::int64_t size = (p.starts[r + 1] - p.starts[r]) * sizeof(V);
    for (std::int64_t at = 0; at < size; at += 64) __builtin_prefetch(values + at);
}

#if WIDE
constexpr int UPPER = int(0xffff0000);

// 32 weights at once: expanding takes as long for these as for 16. A float has an even one in its upper half once it is
// moved there, and the odd one that follows as it is.
inline __m512i halves(const Half* v, std::uint32_t some) {
    const __m512i next = _mm512_loadu_si512((const void*)v);
    return __builtin_expect(some == ~0u, 0) ? next : _mm512_maskz_expand_epi16(__mmask32(some), next);
}

// Inputs as (tokens, width), of each 32 the 16 even ones before the odd ones, zeros behind the columns.
const float* split(const float* x, std::int64_t tokens, std::int64_t cols, std::int64_t width, std::vector<float>& room) {
    room.resize(tokens * width);
    for (std::int64_t t = 0; t < tokens; ++t)
        for (std::int64_t first = 0; first < width; first += 32) {
            const float* from = x + t * cols + first;
            float* to = room.data() + t * width + first;
            if (first + 32 <= cols) {
                for (int i = 0; i < 16; ++i) to[i] = from[2 * i], to[16 + i] = from[2 * i + 1];
            } else {
                for (int i = 0; i < 32; ++i) to[i % 2 * 16 + i / 2] = first + i < cols ? from[i] : 0.0f;
            }
        }
    return room.data();
}
#endif

template <class V, int T, bool SPLIT>
[[gnu::always_inline]] inline void few_row(const Packed& p, std::int64_t r, const float* x, float* y, const float* bias) {
    constexpr int CHAINS = T == 1 ? 4 : T == 2 ? 2 : 1;  // sums that do not wait for each other
    Floats sums[T][CHAINS];
    for (auto& of : sums)
        for (Floats& sum : of) sum = none();
    ask<V>(p, r);
    const Word* bits = p.bits + r * p.words();
    const V* v = p.row<V>(r);
    const std::int64_t width = p.width();
    for (std::int64_t w = 0; w < p.words(); ++w) {
        const Word word = bits[w];
#if WIDE
        if constexpr (SPLIT) {  // inputs lie as `split` lays them
#pragma GCC unroll 2
            for (int part = 0; part < 2; ++part) {
                const std::uint32_t some = std::uint32_t(word >> (32 * part));
                const __m512i both = halves(v, some);
                const Floats even = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
                const Floats odd = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(UPPER)));
                v += count(some);
                for (int t = 0; t < T; ++t) {
                    const float* in = x + t * width + 64 * w + 32 * part;
                    Floats &first = sums[t][2 * part % CHAINS], &second = sums[t][(2 * part + 1) % CHAINS];
                    first = fma(even, load(in), first);
                    second = fma(odd, load(in + 16), second);
                }
            }
            continue;
        }
#endif
#pragma GCC unroll 8
        for (int part = 0; part < 64 / LANES; ++part) {
            const unsigned some = unsigned(word >> (part * LANES)) & LOWEST;
            const Floats weights = expand(v, some);
            v += count(some);
            for (int t = 0; t < T; ++t) {
                Floats& sum = sums[t][part % CHAINS];
                sum = fma(weights, load(x + t * width + 64 * w + part * LANES), sum);
            }
        }
    }
    for (int t = 0; t < T; ++t) {
        for (int chain = 1; chain < CHAINS; ++chain) sums[t][0] = add(sums[t][0], sums[t][chain]);
        y[t * p.rows + r] = total(sums[t][0]) * p.scale(r) + (bias ? bias[r] : 0.0f);
    }
}

template <class V, bool SPLIT>
void few_rows(const Packed& p, const float* in, std::int64_t tokens, const float* bias, float* y, int threads) {
    const std::int64_t width = p.width();
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (std::int64_t r = 0; r < p.rows; ++r) {
        std::int64_t t = 0;
        for (; t + 8 <= tokens; t += 8) few_row<V, 8, SPLIT>(p, r, in + t * width, y + t * p.rows, bias);
        for (; t + 4 <= tokens; t += 4) few_row<V, 4, SPLIT>(p, r, in + t * width, y + t * p.rows, bias);
        for (; t + 2 <= tokens; t += 2) few_row<V, 2, SPLIT>(p, r, in + t * width, y + t * p.rows, bias);
        for (; t < tokens; ++t) few_row<V, 1, SPLIT>(p, r, in + t * width, y + t * p.rows, bias);
    }
}

template <class V>
void few(const Packed& p, const float* x, std::int64_t tokens, const float* bias, float* y, int threads) {
    static thread_local std::vector<float> room;
#if WIDE
    if constexpr (sizeof(V) == sizeof(Half))
        if (tokens < 4)  // for more, products take the time, and not expanding
            return few_rows<V, true>(p, split(x, tokens, p.cols, p.width(), room), tokens, bias, y, threads);
#endif
    few_rows<V, false>(p, padded(x, tokens, p.cols, p.width(), room), tokens, bias, y, threads);
}

// ---- few tokens in whole numbers
#if WIDE
using Input = std::uint8_t;  // moved up by 128: the instruction multiplies unsigned with signed bytes
constexpr int MOVED = 128;
#elif NARROW
using Input = std::int8_t;
constexpr int MOVED = 0;
#else
using Input = std::int16_t;
constexpr int MOVED = 0;
#endif

#if WIDE
constexpr std::int64_t FITTING = 131072;  // columns whose products of up to 127 x 127 sum to less than 32 bits hold

// Sums of four vectors.
inline void four_sums(const __m512i* of, std::int32_t* out) {
    const __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(of[0], of[1]), _mm512_unpackhi_epi32(of[0], of[1]));
    const __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(of[2], of[3]), _mm512_unpackhi_epi32(of[2], of[3]));
    const __m512i c = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    const __m256i d = _mm256_add_epi32(_mm512_castsi512_si256(c), _mm512_extracti64x4_epi64(c, 1));
    _mm_storeu_si128((__m128i*)out, _mm_add_epi32(_mm256_castsi256_si128(d), _mm256_extracti128_si256(d, 1)));
}

// What lies behind some rows, asked for step by step: all at once would be more than can be under way.
struct Ahead {
    const char *bits, *values;
    std::int64_t bits_step, values_step;
    Ahead(const Packed& p, std::int64_t r, std::int64_t rows) {
        const std::int64_t words = p.words() ? p.words() : 1, size = p.starts[r + rows] - p.starts[r];
        bits_step = 8 * rows;
        values_step = (size + words - 1) / words;
        bits = (const char*)(p.bits + r * p.words()) + (bits_step * words < AHEAD ? AHEAD : bits_step * words);
        values = (const char*)p.row<Byte>(r) + (size < AHEAD ? AHEAD : size);
    }
    void ask() {
        __builtin_prefetch(bits);
        for (std::int64_t at = 0; at < values_step; at += 64) __builtin_prefetch(values + at);
        bits += bits_step, values += values_step;
    }
};

// Four rows at once: inputs are read once for all, and no row waits until the values of another are counted.
template <int T>
[[gnu::always_inline]] inline void few8_four(const Packed& p, std::int64_t r, const Input* x, const float* scales,
                                             float* y, const float* bias) {
    const std::int64_t words = p.words(), width = p.width();
    const Word* bits = p.bits + r * words;
    const Byte* v[4];
    __m512i lanes[T][4], moved[4];
    const __m512i by = _mm512_set1_epi8(Byte(MOVED));
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        v[i] = p.row<Byte>(r + i);
        moved[i] = _mm512_setzero_si512();
#pragma GCC unroll 4
        for (int t = 0; t < T; ++t) lanes[t][i] = _mm512_setzero_si512();
    }
    Ahead ahead(p, r, 4);
    for (std::int64_t w = 0; w < words; ++w) {
        ahead.ask();
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            const Word some = bits[i * words + w];
            const __m512i weights = _mm512_maskz_expand_epi8(__mmask64(some), _mm512_loadu_si512((const void*)v[i]));
            v[i] += count(some);
            moved[i] = _mm512_dpbusd_epi32(moved[i], by, weights);
#pragma GCC unroll 4
            for (int t = 0; t < T; ++t) {
                const __m512i in = _mm512_loadu_si512((const void*)(x + t * width + 64 * w));
                lanes[t][i] = _mm512_dpbusd_epi32(lanes[t][i], in, weights);
            }
        }
    }
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) {
        std::int32_t sums[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) lanes[t][i] = _mm512_sub_epi32(lanes[t][i], moved[i]);
        four_sums(lanes[t], sums);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i)
            y[t * p.rows + r + i] = float(sums[i]) * (scales[t] * p.scale(r + i)) + (bias ? bias[r + i] : 0.0f);
    }
}
#endif

template <int T, bool DENSE>
[[gnu::always_inline]] inline void few8_row(const Packed& p, std::int64_t r, const Input* x, const float* scales,
                                            float* y, const float* bias) {
    ask<Byte>(p, r, !DENSE);
    const Word* bits = p.bits + r * p.words();
    const Byte* v = p.row<Byte>(r);
    const std::int64_t width = p.width();
    std::int64_t sums[T] = {};
#if WIDE
    __m512i lanes[T], moved = _mm512_setzero_si512();
    const __m512i by = _mm512_set1_epi8(Byte(MOVED));
    for (__m512i& lane : lanes) lane = _mm512_setzero_si512();
    for (std::int64_t w = 0; w < p.words(); ++w) {
        __m512i weights = _mm512_loadu_si512((const void*)v);
        if (!DENSE) weights = _mm512_maskz_expand_epi8(__mmask64(bits[w]), weights);
        v += DENSE ? 64 : count(bits[w]);
        moved = _mm512_dpbusd_epi32(moved, by, weights);
        for (int t = 0; t < T; ++t)
            lanes[t] = _mm512_dpbusd_epi32(lanes[t], _mm512_loadu_si512((const void*)(x + t * width + 64 * w)), weights);
    }
    for (int t = 0; t < T; ++t) {
        std::int32_t at[16];
        _mm512_storeu_si512((void*)at, _mm512_sub_epi32(lanes[t], moved));
        for (std::int32_t one : at) sums[t] += one;
    }
#elif NARROW
    // |input| times the weight with the input's sign: pairs of products of up to 127 x 127 fit into 16 bits
    __m256i lanes[T];
    for (__m256i& lane : lanes) lane = _mm256_setzero_si256();
    const __m256i ones = _mm256_set1_epi16(1);
    for (std::int64_t w = 0; w < p.words(); ++w)
#pragma GCC unroll 2
        for (int part = 0; part < 2; ++part) {
            __m256i weights;
            if (DENSE) {
                weights = _mm256_loadu_si256((const __m256i*)v);
                v += 32;
            } else {
                weights = expand_32(v, std::uint32_t(bits[w] >> (32 * part)));
            }
            for (int t = 0; t < T; ++t) {
                const __m256i in = _mm256_load_si256((const __m256i*)(x + t * width + 64 * w + 32 * part));
                const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(in), _mm256_sign_epi8(weights, in));
                lanes[t] = _mm256_add_epi32(lanes[t], _mm256_madd_epi16(pairs, ones));
            }
        }
    for (int t = 0; t < T; ++t) {
        const __m256i low = _mm256_cvtepi32_epi64(_mm256_castsi256_si128(lanes[t]));
        const __m256i four = _mm256_add_epi64(low, _mm256_cvtepi32_epi64(_mm256_extracti128_si256(lanes[t], 1)));
        const __m128i two = _mm_add_epi64(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1));
        sums[t] = _mm_cvtsi128_si64(two) + _mm_extract_epi64(two, 1);
    }
#else
    for (std::int64_t w = 0; w < p.words(); ++w)
        for (Word word = bits[w]; word; word &= word - 1, ++v)
            for (int t = 0; t < T; ++t)
                sums[t] += std::int64_t(*v) * x[t * width + 64 * w + __builtin_ctzll(word)];
#endif
    for (int t = 0; t < T; ++t)
        y[t * p.rows + r] = float(sums[t]) * (scales[t] * p.scale(r)) + (bias ? bias[r] : 0.0f);
}

template <bool DENSE>
inline void few8_tokens(const Packed& p, std::int64_t r, const Input* x, std::int64_t tokens, const float* scales, float* y,
                        const float* bias) {
    const std::int64_t width = p.width();
    std::int64_t t = 0;
    for (; t + 8 <= tokens; t += 8) few8_row<8, DENSE>(p, r, x + t * width, scales + t, y + t * p.rows, bias);
    for (; t + 4 <= tokens; t += 4) few8_row<4, DENSE>(p, r, x + t * width, scales + t, y + t * p.rows, bias);
    for (; t + 2 <= tokens; t += 2) few8_row<2, DENSE>(p, r, x + t * width, scales + t, y + t * p.rows, bias);
    for (; t < tokens; ++t) few8_row<1, DENSE>(p, r, x + t * width, scales + t, y + t * p.rows, bias);
}

// Rounds a token to -127..127 times its scale; one that is not finite has the scale NaN.
float shorten(const float* x, std::int64_t cols, std::int64_t width, Input* out) {
    float most = 0.0f, zero = 0.0f;
    std::int64_t c = 0;
#if NARROW
    __m256 mosts = _mm256_setzero_ps(), zeros = mosts;
    for (; c + 8 <= cols; c += 8) {
        const __m256 in = _mm256_loadu_ps(x + c);
        mosts = _mm256_max_ps(_mm256_andnot_ps(_mm256_set1_ps(-0.0f), in), mosts);
        zeros = _mm256_fmadd_ps(in, _mm256_setzero_ps(), zeros);
    }
    float at[8];
    _mm256_storeu_ps(at, mosts);
    for (float one : at) most = one > most ? one : most;
    zero = total(zeros);
#elif WIDE
    __m512 mosts = _mm512_setzero_ps(), zeros = mosts;
    for (; c + 16 <= cols; c += 16) {
        const __m512 in = _mm512_loadu_ps(x + c);
        mosts = _mm512_max_ps(_mm512_abs_ps(in), mosts);
        zeros = _mm512_fmadd_ps(in, _mm512_setzero_ps(), zeros);
    }
    float at[16];
    _mm512_storeu_ps(at, mosts);
    for (float one : at) most = one > most ? one : most;
    zero = total(zeros);
#endif
    for (; c < cols; ++c) {
        most = std::fabs(x[c]) > most ? std::fabs(x[c]) : most;
        zero += x[c] * 0.0f;
    }
    const bool finite = zero == 0.0f;
    const float scale = most / 127.0f, by = finite && scale > 0.0f ? 1.0f / scale : 0.0f;
    const bool tiny = !(by <= std::numeric_limits<float>::max());  // most is so small that its inverse is infinite
    c = 0;
#if NARROW
    const __m256 by_all = _mm256_set1_ps(finite && !tiny ? by : 0.0f);
    for (; finite && c + 8 <= cols; c += 8) {
        const __m256i whole = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + c), by_all));
        const __m128i pairs = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
        _mm_storel_epi64((__m128i*)(out + c), _mm_packs_epi16(pairs, pairs));
    }
#elif WIDE
    const __m512 by_all = _mm512_set1_ps(finite && !tiny ? by : 0.0f);
    for (; finite && c + 16 <= cols; c += 16) {
        const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + c), by_all));
        _mm_storeu_si128((__m128i*)(out + c), _mm512_cvtepi32_epi8(_mm512_add_epi32(whole, _mm512_set1_epi32(MOVED))));
    }
#endif
    for (; c < cols; ++c) out[c] = Input((finite && !tiny ? int(std::nearbyint(x[c] * by)) : 0) + MOVED);
    for (; c < width; ++c) out[c] = Input(MOVED);
    return finite ? (tiny ? 0.0f : scale) : std::numeric_limits<float>::quiet_NaN();
}

void few8(const Packed& p, const float* x, std::int64_t tokens, const float* bias, float* y, int threads) {
    static thread_local std::vector<Input> room;
    static thread_local std::vector<float> scale_room;
    const std::int64_t width = p.width();
    room.resize(tokens * width + 64);
    scale_room.resize(tokens);
    Input* in = room.data() + (64 - std::uintptr_t(room.data()) % 64) % 64 / sizeof(Input);
    float* scales = scale_room.data();
    for (std::int64_t t = 0; t < tokens; ++t) scales[t] = shorten(x + t * p.cols, p.cols, width, in + t * width);
    const bool dense = p.cols % 64 == 0 && p.starts[p.rows] == p.rows * p.cols;  // nothing is dropped
    std::int64_t done = 0;
#if WIDE
    if (p.cols <= FITTING && !dense) done = p.rows / 4 * 4;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (std::int64_t r = 0; r < done; r += 4) {
        std::int64_t t = 0;
        for (; t + 4 <= tokens; t += 4) few8_four<4>(p, r, in + t * width, scales + t, y + t * p.rows, bias);
        for (; t + 2 <= tokens; t += 2) few8_four<2>(p, r, in + t * width, scales + t, y + t * p.rows, bias);
        for (; t < tokens; ++t) few8_four<1>(p, r, in + t * width, scales + t, y + t * p.rows, bias);
    }
#endif
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (std::int64_t r = done; r < p.rows; ++r)
        if (dense)
            few8_tokens<true>(p, r, in, tokens, scales, y, bias);
        else
            few8_tokens<false>(p, r, in, tokens, scales, y, bias);
}

// ---- few tokens in whole numbers, without expanding: 16 rows meet the same 16 inputs, which lie in a register, and each
// kept weight looks its own up. A block is such a square: `steps` times two weights of each row, 32 bytes, and their
// columns, 16 bytes (of rows 0 to 7 in the lower halves, of 8 to 15 in the upper ones). What does not fit into the
// steps stands row by row behind them.
struct Looked {  // as kernels.py fills it
    std::int64_t rows, cols, steps;
    const std::uint8_t* blocks;
    const std::int32_t* starts;
    const std::uint16_t* columns;
    const Byte* values;
    const float* scales;
};
constexpr std::int64_t SIDE = 16, STEP = 48, MOST_STEPS = 8;

template <int T>
void look_rows(const Looked& p, std::int64_t first, const Input* x, std::int64_t width, const float* scales, float* y,
               const float* bias) {
    const std::int64_t windows = (p.cols + SIDE - 1) / SIDE;
    const std::uint8_t* block = p.blocks + first / SIDE * windows * p.steps * STEP;
    std::int32_t sums[T][SIDE] = {};
#if NARROW
    const __m256i even = _mm256_set1_epi32(1), odd = _mm256_set1_epi32(1 << 16), low = _mm256_set1_epi8(15);
    __m256i evens[T], odds[T], inputs[T];
    for (int t = 0; t < T; ++t) evens[t] = odds[t] = _mm256_setzero_si256();
    for (std::int64_t w = 0; w < windows; ++w) {
        for (int t = 0; t < T; ++t)
            inputs[t] = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)(x + t * width + SIDE * w)));
        for (std::int64_t s = 0; s < p.steps; ++s, block += STEP) {
            const __m256i weights = _mm256_loadu_si256((const __m256i*)block);
            const __m128i both = _mm_loadu_si128((const __m128i*)(block + 32));
            const __m256i from = _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(both, 4), both), low);
            for (int t = 0; t < T; ++t) {
                const __m256i in = _mm256_shuffle_epi8(inputs[t], from);
                const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(in), _mm256_sign_epi8(weights, in));
                evens[t] = _mm256_add_epi32(evens[t], _mm256_madd_epi16(pairs, even));
                odds[t] = _mm256_add_epi32(odds[t], _mm256_madd_epi16(pairs, odd));
            }
        }
    }
    for (int t = 0; t < T; ++t) {
        std::int32_t at[2][8];
        _mm256_storeu_si256((__m256i*)at[0], evens[t]);
        _mm256_storeu_si256((__m256i*)at[1], odds[t]);
        for (int i = 0; i < SIDE; ++i) sums[t][i] = at[i % 2][i / 2];
    }
#else
    for (std::int64_t w = 0; w < windows; ++w)
        for (std::int64_t s = 0; s < p.steps; ++s, block += STEP)
            for (int place = 0; place < 32; ++place) {
                const int weight = Byte(block[place]), from = block[32 + place % 16] >> (place < 16 ? 0 : 4) & 15;
                for (int t = 0; t < T; ++t)
                    sums[t][place / 2] += weight * (int(x[t * width + SIDE * w + from]) - MOVED);
            }
#endif
    for (std::int64_t i = 0, r = first; i < SIDE && r < p.rows; ++i, ++r)
        for (int t = 0; t < T; ++t) {
            for (std::int32_t at = p.starts[r]; at < p.starts[r + 1]; ++at)
                sums[t][i] += int(p.values[at]) * (int(x[t * width + p.columns[at]]) - MOVED);
            y[t * p.rows + r] = float(sums[t][i]) * (scales[t] * p.scales[r]) + (bias ? bias[r] : 0.0f);
        }
}

void look(const Looked& p, const float* x, std::int64_t tokens, const float* bias, float* y, int threads) {
    static thread_local std::vector<Input> room;
    static thread_local std::vector<float> scale_room;
    const std::int64_t width = (p.cols + 63) / 64 * 64;
    room.resize(tokens * width);
    scale_room.resize(tokens);
    Input* in = room.data();
    float* scales = scale_room.data();
    for (std::int64_t t = 0; t < tokens; ++t) scales[t] = shorten(x + t * p.cols, p.cols, width, in + t * width);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (std::int64_t r = 0; r < p.rows; r += SIDE) {
        std::int64_t t = 0;
        for (; t + 4 <= tokens; t += 4) look_rows<4>(p, r, in + t * width, width, scales + t, y + t * p.rows, bias);
        for (; t + 2 <= tokens; t += 2) look_rows<2>(p, r, in + t * width, width, scales + t, y + t * p.rows, bias);
        for (; t < tokens; ++t) look_rows<1>(p, r, in + t * width, width, scales + t, y + t * p.rows, bias);
    }
}

// Calls f(row, window, column in the window, how many of the row stand before it there, value) for each kept weight.
template <class F>
void each_kept(const Packed& p, F f) {
    for (std::int64_t r = 0; r < p.rows; ++r) {
        const Byte* v = p.row<Byte>(r);
        for (std::int64_t w = 0; w < 4 * p.words(); ++w) {
            unsigned some = unsigned(p.bits[r * p.words() + w / 4] >> (w % 4 * SIDE)) & 0xffff;
            for (int before = 0; some; some &= some - 1, ++before) f(r, w, __builtin_ctz(some), before, *v++);
        }
    }
}

// ---- many tokens: they lie side by side in tiles; columns in blocks whose inputs stay in the first cache, rows in
// blocks whose sums stay in the second
constexpr std::int64_t MOST = 64;   // tokens of a tile; those of the 64 columns of a word are 16 KB
constexpr std::int64_t ROWS = 256;  // their sums are 64 KB

// 8 rows of 8 numbers become columns.
inline void turn(const float* from, std::int64_t step, float* to, std::int64_t apart) {
#if NARROW
    __m256 row[8], two[8], four[8];
    for (int i = 0; i < 8; ++i) row[i] = _mm256_loadu_ps(from + i * step);
    for (int i = 0; i < 8; i += 2) {
        two[i] = _mm256_unpacklo_ps(row[i], row[i + 1]);
        two[i + 1] = _mm256_unpackhi_ps(row[i], row[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; ++j) {
            four[i + 2 * j] = _mm256_shuffle_ps(two[i + j], two[i + 2 + j], 0x44);
            four[i + 2 * j + 1] = _mm256_shuffle_ps(two[i + j], two[i + 2 + j], 0xee);
        }
    for (int i = 0; i < 4; ++i) {
        _mm256_storeu_ps(to + i * apart, _mm256_permute2f128_ps(four[i], four[i + 4], 0x20));
        _mm256_storeu_ps(to + (i + 4) * apart, _mm256_permute2f128_ps(four[i], four[i + 4], 0x31));
    }
#else
    for (int i = 0; i < 8; ++i)
        for (int j = 0; j < 8; ++j) to[i * apart + j] = from[j * step + i];
#endif
}

// Tokens side by side: (cols, TILE) from (tokens, cols), zeros behind the tokens.
template <int TILE>
void lay(const float* x, std::int64_t tokens, std::int64_t cols, std::int64_t first, std::int64_t last, float* side) {
    for (std::int64_t t = 0; t < TILE; t += 8)
        for (std::int64_t c = first; c < last; c += 8) {
            if (t + 8 <= tokens && c + 8 <= last) {
                turn(x + t * cols + c, cols, side + c * TILE + t, TILE);
                continue;
            }
            for (std::int64_t i = c; i < c + 8 && i < last; ++i)
                for (std::int64_t one = t; one < t + 8; ++one)
                    side[i * TILE + one] = one < tokens ? x[one * cols + i] : 0.0f;
        }
}

template <class V, int N>  // N vectors of tokens
void walk_rows(const Packed& p, std::int64_t first, std::int64_t last, const float* side, float* sums) {
    constexpr int TILE = N * LANES;
    const V* next[ROWS];
    for (std::int64_t r = first; r < last; ++r) next[r - first] = p.row<V>(r);
    for (std::int64_t w = 0; w < p.words(); ++w)
        for (std::int64_t r = first; r < last; ++r) {
            Floats sum[N];
            float* at = sums + (r - first) * TILE;
            for (int n = 0; n < N; ++n) sum[n] = w ? load(at + n * LANES) : none();
            const V* v = next[r - first];
            for (Word word = p.bits[r * p.words() + w]; word; word &= word - 1) {
                const Floats weight = spread(number(*v++));
                const float* in = side + (64 * w + __builtin_ctzll(word)) * TILE;
                for (int n = 0; n < N; ++n) sum[n] = fma(weight, load(in + n * LANES), sum[n]);
            }
            next[r - first] = v;
            for (int n = 0; n < N; ++n) store(at + n * LANES, sum[n]);
        }
}

// Sums (rows, TILE) times scales, bias added, to outputs (tokens, rows).
template <int TILE>
void give(const Packed& p, std::int64_t first, std::int64_t last, std::int64_t tokens, const float* sums,
          const float* bias, float* y) {
    for (std::int64_t r = first; r < last; ++r) {
        const Floats scale = spread(p.scale(r)), more = spread(bias ? bias[r] : 0.0f);
        float* at = const_cast<float*>(sums) + (r - first) * TILE;
        for (int n = 0; n < TILE; n += LANES) store(at + n, fma(load(at + n), scale, more));
    }
    for (std::int64_t r = first; r < last; r += 8)
        for (std::int64_t t = 0; t < tokens; t += 8) {
            const float* from = sums + (r - first) * TILE + t;
            if (r + 8 <= last && t + 8 <= tokens) {
                turn(from, TILE, y + t * p.rows + r, p.rows);
                continue;
            }
            for (std::int64_t one = 0; one < 8 && t + one < tokens; ++one)
                for (std::int64_t i = 0; i < 8 && r + i < last; ++i)
                    y[(t + one) * p.rows + r + i] = from[i * TILE + one];
        }
}

template <class V, int N>
void walk_tile(const Packed& p, const float* x, std::int64_t tokens, const float* bias, float* y, int threads) {
    constexpr int TILE = N * LANES;
    static thread_local std::vector<float> room;
    room.resize(p.cols * TILE + 16);
    float* side = room.data() + (64 - std::uintptr_t(room.data()) % 64) % 64 / 4;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp for schedule(static)
        for (std::int64_t c = 0; c < p.cols; c += 128)
            lay<TILE>(x, tokens, p.cols, c, c + 128 < p.cols ? c + 128 : p.cols, side);
#pragma omp for schedule(dynamic)
        for (std::int64_t first = 0; first < p.rows; first += ROWS) {
            alignas(64) float sums[ROWS * TILE];
            const std::int64_t last = first + ROWS < p.rows ? first + ROWS : p.rows;
            if (p.cols == 0) std::memset(sums, 0, sizeof sums);
            walk_rows<V, N>(p, first, last, side, sums);
            give<TILE>(p, first, last, tokens, sums, bias, y);
        }
    }
}

// Takes the tile of N vectors into which the tokens fit.
template <class V, int N>
void walk_fitting(const Packed& p, const float* x, std::int64_t tokens, const float* bias, float* y, int threads) {
    if constexpr (N > 1)
        if (tokens <= (N - 1) * LANES) return walk_fitting<V, N - 1>(p, x, tokens, bias, y, threads);
    walk_tile<V, N>(p, x, tokens, bias, y, threads);
}

template <class V>
void walk(const Packed& p, const float* x, std::int64_t tokens, const float* bias, float* y, int threads) {
    const std::int64_t tiles = (tokens + MOST - 1) / MOST;
    for (std::int64_t tile = 0; tile < tiles; ++tile) {
        const std::int64_t first = tokens * tile / tiles, next = tokens * (tile + 1) / tiles;
        walk_fitting<V, MOST / LANES>(p, x + first * p.cols, next - first, bias, y + first * p.rows, threads);
    }
}

// ---- the dense matrix
template <class V>
void unpack(const Packed& p, float* out, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (std::int64_t r = 0; r < p.rows; ++r) {
        const V* v = p.row<V>(r);
        const Floats scale = spread(p.scale(r));
        for (std::int64_t c = 0; c < p.cols; c += LANES) {
            const unsigned some = unsigned(p.bits[r * p.words() + c / 64] >> (c % 64)) & LOWEST;
            const Floats weights = fma(expand(v, some), scale, none());
            v += count(some);
            if (c + LANES <= p.cols) {
                store(out + r * p.cols + c, weights);
            } else {
                float rest[LANES];
                store(rest, weights);
                std::memcpy(out + r * p.cols + c, rest, 4 * (p.cols - c));
            }
        }
    }
}

void unpack_halves(const Packed& p, Half* out, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (std::int64_t r = 0; r < p.rows; ++r) {
        const Half* v = p.row<Half>(r);
        Half* to = out + r * p.cols;
        for (std::int64_t w = 0; w < p.words(); ++w) {
            const std::int64_t left = p.cols - 64 * w < 64 ? p.cols - 64 * w : 64;
            Word word = p.bits[r * p.words() + w];
            alignas(64) Half next[64];
#if WIDE
            for (int part = 0; part < 2; ++part) {
                const __mmask32 some = __mmask32(word >> (32 * part));
                _mm512_storeu_si512((void*)(next + 32 * part),
                                    _mm512_maskz_expand_epi16(some, _mm512_loadu_si512((const void*)v)));
                v += count(some);
            }
#elif NARROW
            for (int part = 0; part < 8; ++part) {
                const unsigned some = unsigned(word >> (8 * part)) & 255;
                _mm_store_si128((__m128i*)(next + 8 * part),
                                _mm_shuffle_epi8(_mm_loadu_si128((const __m128i*)v),
                                                 _mm_load_si128((const __m128i*)places.pairs[some])));
                v += count(some);
            }
#else
            for (int i = 0; i < 64; ++i) next[i] = word >> i & 1 ? *v++ : 0;
#endif
            std::memcpy(to + 64 * w, next, 2 * left);
        }
    }
}

// ---- packed files: the bits of a tensor highest first, its values in planes of bytes, as docs/formats.md says
inline void expand_64(const Byte* v, Word bits, std::uint8_t* out) {  // reads 64 bytes
#if WIDE
    _mm512_storeu_si512((void*)out, _mm512_maskz_expand_epi8(__mmask64(bits), _mm512_loadu_si512((const void*)v)));
#elif NARROW
    for (int part = 0; part < 2; ++part)
        _mm256_storeu_si256((__m256i*)(out + 32 * part), expand_32(v, std::uint32_t(bits >> (32 * part))));
#else
    for (int i = 0; i < 64; ++i) out[i] = bits >> i & 1 ? std::uint8_t(*v++) : 0;
#endif
}

// Bytes of which each has its first bit where its last one was.
inline Word turned(Word bytes) {
    bytes = (bytes >> 1 & 0x5555555555555555) | (bytes & 0x5555555555555555) << 1;
    bytes = (bytes >> 2 & 0x3333333333333333) | (bytes & 0x3333333333333333) << 2;
    return (bytes >> 4 & 0x0f0f0f0f0f0f0f0f) | (bytes & 0x0f0f0f0f0f0f0f0f) << 4;
}

// Returns how many entries are marked; -1 if they are more than are stored, or one lies behind the last entry.
template <class N>
std::int64_t expand_file(const std::uint8_t* bits, std::int64_t size, const Byte* values, std::int64_t stored, N* out) {
    std::int64_t done = 0;
    for (std::int64_t first = 0; first < size; first += 64) {
        const std::int64_t left = size - first < 64 ? size - first : 64;
        Word word = 0;
        std::memcpy(&word, bits + first / 8, (left + 7) / 8);
        word = turned(word);
        if ((left < 64 && word >> left) || count(word) > stored - done) return -1;
        alignas(64) std::uint8_t planes[sizeof(N)][64];
        for (std::size_t plane = 0; plane < sizeof(N); ++plane) {
            const Byte* from = values + plane * stored + done;
            Byte last[64] = {};
            if (stored - done < 64) from = static_cast<const Byte*>(std::memcpy(last, from, stored - done));
            expand_64(from, word, planes[plane]);
        }
        alignas(64) N rest[64];
        N* to = left < 64 ? rest : out + first;
        for (int i = 0; i < 64; ++i) {
            N whole = 0;
            for (std::size_t plane = 0; plane < sizeof(N); ++plane) whole |= N(N(planes[plane][i]) << (8 * plane));
            to[i] = whole;
        }
        if (left < 64) std::memcpy(out + first, rest, left * sizeof(N));
        done += count(word);
    }
    return done;
}

enum Kind { FLOAT = 0, HALF = 1, BYTE = 2 };

}  // namespace

extern "C" {

// 2 = AVX-512, 1 = AVX2, 0 = neither
int multiflow_level() {
#if WIDE
    return 2;
#elif NARROW
    return 1;
#else
    return 0;
#endif
}

int multiflow_threads() {
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}

void multiflow_few(const Packed* p, const float* x, std::int64_t tokens, const float* bias, float* y, int threads) {
    if (p->kind == FLOAT) few<float>(*p, x, tokens, bias, y, threads);
    else if (p->kind == HALF) few<Half>(*p, x, tokens, bias, y, threads);
    else few<Byte>(*p, x, tokens, bias, y, threads);
}

void multiflow_few8(const Packed* p, const float* x, std::int64_t tokens, const float* bias, float* y, int threads) {
    if (p->kind == BYTE) few8(*p, x, tokens, bias, y, threads);
}

void multiflow_look(const Looked* p, const float* x, std::int64_t tokens, const float* bias, float* y, int threads) {
    look(*p, x, tokens, bias, y, threads);
}

// How many weights do not fit into 1 to 8 steps.
void multiflow_look_beyond(const Packed* p, std::int64_t* beyond) {
    each_kept(*p, [&](std::int64_t, std::int64_t, int, int before, Byte) {
        for (int steps = 1; steps <= MOST_STEPS; ++steps) beyond[steps - 1] += before >= 2 * steps;
    });
}

// Fills what `Looked` points to; blocks come as zeros.
void multiflow_look_fill(const Packed* p, std::int64_t steps, std::uint8_t* blocks, std::int32_t* starts,
                         std::uint16_t* columns, Byte* values) {
    const std::int64_t windows = (p->cols + SIDE - 1) / SIDE;
    std::int32_t next = 0;
    std::int64_t last = -1;
    each_kept(*p, [&](std::int64_t r, std::int64_t w, int from, int before, Byte value) {
        while (last < r) starts[++last] = next;
        if (before >= 2 * steps) {
            columns[next] = std::uint16_t(SIDE * w + from);
            values[next++] = value;
            return;
        }
        std::uint8_t* step = blocks + ((r / SIDE * windows + w) * steps + before / 2) * STEP;
        const std::int64_t place = 2 * (r % SIDE) + before % 2;
        step[place] = std::uint8_t(value);
        step[32 + place % 16] |= from << (place < 16 ? 0 : 4);
    });
    while (last < p->rows) starts[++last] = next;
}

void multiflow_walk(const Packed* p, const float* x, std::int64_t tokens, const float* bias, float* y, int threads) {
    if (p->kind == FLOAT) walk<float>(*p, x, tokens, bias, y, threads);
    else if (p->kind == HALF) walk<Half>(*p, x, tokens, bias, y, threads);
    else walk<Byte>(*p, x, tokens, bias, y, threads);
}

void multiflow_unpack(const Packed* p, void* out, int halves, int threads) {
    if (halves && p->kind == HALF) unpack_halves(*p, static_cast<Half*>(out), threads);
    else if (p->kind == FLOAT) unpack<float>(*p, static_cast<float*>(out), threads);
    else if (p->kind == HALF) unpack<Half>(*p, static_cast<float*>(out), threads);
    else unpack<Byte>(*p, static_cast<float*>(out), threads);
}

// A tensor of a packed file whose values have 1, 2 or 4 bytes; see expand_file.
std::int64_t multiflow_expand(const std::uint8_t* bits, std::int64_t size, const Byte* values, std::int64_t stored,
                              std::int64_t width, void* out) {
    if (width == 1) return expand_file(bits, size, values, stored, static_cast<std::uint8_t*>(out));
    if (width == 2) return expand_file(bits, size, values, stored, static_cast<std::uint16_t*>(out));
    return expand_file(bits, size, values, stored, static_cast<std::uint32_t*>(out));
}

}  // extern "C"
