// The AVX-512 intrinsics that the kernels use, in plain C++, so that what is written with them is tested everywhere.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

struct __m128i { std::int8_t b[16]; };
struct __m256i { std::int8_t b[32]; };
struct __m512i { std::int8_t b[64]; };
struct __m512 { float f[16]; };
using __mmask16 = std::uint16_t;
using __mmask32 = std::uint32_t;
using __mmask64 = std::uint64_t;

namespace wide {
template <class To, class From> To cast(const From& from) {
    static_assert(sizeof(To) == sizeof(From), "sizes");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}
template <class V> V load(const void* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
template <class One, class V> V expand(std::uint64_t mask, V from) {
    constexpr int N = sizeof(V) / sizeof(One);
    One in[N], out[N];
    std::memcpy(in, &from, sizeof from);
    for (int i = 0, next = 0; i < N; ++i) out[i] = mask >> i & 1 ? in[next++] : One(0);
    return load<V>(out);
}
template <class One> __m512i widen(const void* from) {
    One in[16];
    std::int32_t out[16];
    std::memcpy(in, from, sizeof in);
    for (int i = 0; i < 16; ++i) out[i] = in[i];
    return load<__m512i>(out);
}
struct Ints { std::int32_t i[16]; };
template <class V> V add(V a, V b) {
    constexpr int N = sizeof(V) / 4;
    std::uint32_t x[N], y[N];
    std::memcpy(x, &a, sizeof a);
    std::memcpy(y, &b, sizeof b);
    for (int i = 0; i < N; ++i) x[i] += y[i];
    return load<V>(x);
}
// In each 16 bytes: the lower or upper half of both, in turns.
template <class One> __m512i unpack(__m512i a, __m512i b, int upper) {
    constexpr int N = 16 / sizeof(One);
    One x[4 * N], y[4 * N], out[4 * N];
    std::memcpy(x, &a, sizeof a);
    std::memcpy(y, &b, sizeof b);
    for (int lane = 0; lane < 4; ++lane)
        for (int i = 0; i < N / 2; ++i) {
            out[lane * N + 2 * i] = x[lane * N + upper * N / 2 + i];
            out[lane * N + 2 * i + 1] = y[lane * N + upper * N / 2 + i];
        }
    return load<__m512i>(out);
}
}  // namespace wide

inline __m512 _mm512_set1_ps(float a) { __m512 v; for (float& one : v.f) one = a; return v; }
inline __m512 _mm512_setzero_ps() { return _mm512_set1_ps(0.0f); }
inline __m512 _mm512_loadu_ps(const void* p) { return wide::load<__m512>(p); }
inline void _mm512_storeu_ps(void* p, __m512 a) { std::memcpy(p, &a, sizeof a); }
inline __m512 _mm512_add_ps(__m512 a, __m512 b) { for (int i = 0; i < 16; ++i) a.f[i] += b.f[i]; return a; }
inline __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) {
    for (int i = 0; i < 16; ++i) c.f[i] += a.f[i] * b.f[i];
    return c;
}
inline __m512 _mm512_maskz_expand_ps(__mmask16 mask, __m512 a) { return wide::expand<float>(mask, a); }
inline __m128i _mm_loadu_si128(const __m128i* p) { return wide::load<__m128i>(p); }
inline __m256i _mm256_loadu_si256(const __m256i* p) { return wide::load<__m256i>(p); }
inline __m512i _mm512_loadu_si512(const void* p) { return wide::load<__m512i>(p); }
inline void _mm512_storeu_si512(void* p, __m512i a) { std::memcpy(p, &a, sizeof a); }
inline __m128i _mm_maskz_expand_epi8(__mmask16 mask, __m128i a) { return wide::expand<std::int8_t>(mask, a); }
inline __m256i _mm256_maskz_expand_epi16(__mmask16 mask, __m256i a) { return wide::expand<std::int16_t>(mask, a); }
inline __m512i _mm512_maskz_expand_epi8(__mmask64 mask, __m512i a) { return wide::expand<std::int8_t>(mask, a); }
inline __m512i _mm512_maskz_expand_epi16(__mmask32 mask, __m512i a) { return wide::expand<std::int16_t>(mask, a); }
inline __m512i _mm512_cvtepu16_epi32(__m256i a) { return wide::widen<std::uint16_t>(&a); }
inline __m512i _mm512_cvtepi8_epi32(__m128i a) { return wide::widen<std::int8_t>(&a); }
inline __m512 _mm512_castsi512_ps(__m512i a) { return wide::cast<__m512>(a); }
inline __m512i _mm512_slli_epi32(__m512i a, unsigned by) {
    auto v = wide::cast<wide::Ints>(a);
    for (auto& one : v.i) one = std::int32_t(std::uint32_t(one) << by);
    return wide::cast<__m512i>(v);
}
inline __m512i _mm512_set1_epi32(int a) {
    wide::Ints v;
    for (auto& one : v.i) one = a;
    return wide::cast<__m512i>(v);
}
inline __m512i _mm512_and_si512(__m512i a, __m512i b) {
    for (int i = 0; i < 64; ++i) a.b[i] &= b.b[i];
    return a;
}
inline __m512 _mm512_cvtepi32_ps(__m512i a) {
    const auto v = wide::cast<wide::Ints>(a);
    __m512 out;
    for (int i = 0; i < 16; ++i) out.f[i] = float(v.i[i]);
    return out;
}
inline __m512i _mm512_setzero_si512() { return __m512i{}; }
inline __m512i _mm512_set1_epi8(char a) { __m512i v; std::memset(&v, a, sizeof v); return v; }
inline __m512i _mm512_sub_epi32(__m512i a, __m512i b) {
    auto x = wide::cast<wide::Ints>(a);
    const auto y = wide::cast<wide::Ints>(b);
    for (int i = 0; i < 16; ++i) x.i[i] -= y.i[i];
    return wide::cast<__m512i>(x);
}
inline __m512i _mm512_add_epi32(__m512i a, __m512i b) { return wide::add(a, b); }
inline __m256i _mm256_add_epi32(__m256i a, __m256i b) { return wide::add(a, b); }
inline __m128i _mm_add_epi32(__m128i a, __m128i b) { return wide::add(a, b); }
inline __m512i _mm512_unpacklo_epi32(__m512i a, __m512i b) { return wide::unpack<std::int32_t>(a, b, 0); }
inline __m512i _mm512_unpackhi_epi32(__m512i a, __m512i b) { return wide::unpack<std::int32_t>(a, b, 1); }
inline __m512i _mm512_unpacklo_epi64(__m512i a, __m512i b) { return wide::unpack<std::int64_t>(a, b, 0); }
inline __m512i _mm512_unpackhi_epi64(__m512i a, __m512i b) { return wide::unpack<std::int64_t>(a, b, 1); }
inline __m256i _mm512_castsi512_si256(__m512i a) { return wide::load<__m256i>(&a); }
inline __m256i _mm512_extracti64x4_epi64(__m512i a, int half) { return wide::load<__m256i>(a.b + 32 * half); }
inline __m128i _mm256_castsi256_si128(__m256i a) { return wide::load<__m128i>(&a); }
inline __m128i _mm256_extracti128_si256(__m256i a, int half) { return wide::load<__m128i>(a.b + 16 * half); }
inline void _mm_storeu_si128(__m128i* p, __m128i a) { std::memcpy(p, &a, sizeof a); }
inline __m512 _mm512_mul_ps(__m512 a, __m512 b) { for (int i = 0; i < 16; ++i) a.f[i] *= b.f[i]; return a; }
inline __m512 _mm512_abs_ps(__m512 a) { for (float& one : a.f) one = std::fabs(one); return a; }
inline __m512 _mm512_max_ps(__m512 a, __m512 b) {  // the second one where either is no number
    for (int i = 0; i < 16; ++i) a.f[i] = a.f[i] > b.f[i] ? a.f[i] : b.f[i];
    return a;
}
inline __m512i _mm512_cvtps_epi32(__m512 a) {
    wide::Ints v;
    for (int i = 0; i < 16; ++i) v.i[i] = int(std::nearbyint(a.f[i]));
    return wide::cast<__m512i>(v);
}
inline __m128i _mm512_cvtepi32_epi8(__m512i a) {
    const auto v = wide::cast<wide::Ints>(a);
    __m128i out;
    for (int i = 0; i < 16; ++i) out.b[i] = std::int8_t(v.i[i]);
    return out;
}
inline __m512i _mm512_dpbusd_epi32(__m512i sum, __m512i a, __m512i b) {  // unsigned bytes of a times signed ones of b
    auto x = wide::cast<wide::Ints>(sum);
    for (int i = 0; i < 64; ++i) x.i[i / 4] += int(std::uint8_t(a.b[i])) * int(b.b[i]);
    return wide::cast<__m512i>(x);
}
