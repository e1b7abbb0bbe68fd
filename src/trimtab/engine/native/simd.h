// Vectors of 16 floats and what is done with them, for every CPU that gcc or clang knows.
//
// Two levels: AVX-512 by intrinsics (with AVX512-BF16 where the CPU has it), and everything else by the compilers'
// vector extension. TRIMTAB_PORTABLE asks for the second, so that it can be tested on any machine.
#pragma once

#include <cstdint>
#include <cstring>

#if !defined(TRIMTAB_PORTABLE) && defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && \
    defined(__AVX512DQ__)
#define TT_AVX512 1
#include <immintrin.h>
#endif
#if defined(TT_AVX512) && defined(__AVX512BF16__)
#define TT_DOT 1  // products of bf16 pairs, summed in float
#endif

namespace trimtab {

typedef float vec __attribute__((vector_size(64)));
typedef int32_t ivec __attribute__((vector_size(64)));
typedef uint32_t uvec __attribute__((vector_size(64)));
typedef uint16_t bf16;
typedef uint16_t bf16x16 __attribute__((vector_size(32)));

constexpr long LANES = 16;

static inline long round_up(long n, long to) { return (n + to - 1) / to * to; }
static inline long least(long a, long b) { return a < b ? a : b; }
static inline long most(long a, long b) { return a > b ? a : b; }

template <class To, class From>
static inline To bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
    To to;
    memcpy(&to, &from, sizeof(to));
    return to;
}

static inline vec load(const float* p) {
    vec v;
    memcpy(&v, p, sizeof(v));
    return v;
}

static inline void store(float* p, vec v) { memcpy(p, &v, sizeof(v)); }

static inline vec all(float x) { return vec{} + x; }

static inline vec load(const bf16* p) {
    bf16x16 half;
    memcpy(&half, p, sizeof(half));
#ifdef TT_AVX512
    return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)half), 16);
#else
    return bits<vec>(__builtin_convertvector(half, uvec) << 16);
#endif
}

// The first n numbers at p, and zeros.
template <class T>
static inline vec load_part(const T* p, long n) {
    if (n >= LANES) return load(p);
    T part[LANES] = {};
    for (long i = 0; i < n; i++) part[i] = p[i];
    return load(part);
}

static inline bf16x16 to_bf16(vec v) {
#ifdef TT_DOT
    return (bf16x16)_mm512_cvtneps_pbh((__m512)v);
#else
    uvec u = bits<uvec>(v);
    uvec rounded = u + 0x7fffu + ((u >> 16) & 1u);
    uvec nan = u | 0x400000u;  // rounding up could turn a NaN into a number
    ivec is_nan = (ivec)((u & 0x7fffffffu) > (uvec{} + 0x7f800000u));
    uvec mask = (uvec)is_nan;
    return __builtin_convertvector(((nan & mask) | (rounded & ~mask)) >> 16, bf16x16);
#endif
}

static inline vec rounded(vec v) {
    bf16x16 half = to_bf16(v);
    return load((const bf16*)&half);
}

static inline void store(bf16* p, vec v) {
    bf16x16 half = to_bf16(v);
    memcpy(p, &half, sizeof(half));
}

template <class T>
static inline void store_part(T* p, vec v, long n) {
    if (n >= LANES) return store(p, v);
    T part[LANES];
    store(part, v);
    for (long i = 0; i < n; i++) p[i] = part[i];
}

static inline vec pick(ivec mask, vec yes, vec no) {
    uvec m = (uvec)mask;
    return bits<vec>((bits<uvec>(yes) & m) | (bits<uvec>(no) & ~m));
}

static inline vec larger(vec a, vec b) { return pick((ivec)(a > b), a, b); }

static inline float sum(vec v) {
    float x[LANES];
    store(x, v);
    for (long half = 8; half; half /= 2)
        for (long i = 0; i < half; i++) x[i] += x[i + half];
    return x[0];
}

static inline float largest(vec v) {
#ifdef TT_AVX512
    return _mm512_reduce_max_ps((__m512)v);
#else
    float x[LANES];
    store(x, v);
    for (long half = 8; half; half /= 2)
        for (long i = 0; i < half; i++) x[i] = x[i] > x[i + half] ? x[i] : x[i + half];
    return x[0];
#endif
}

// exp to about one unit in the last place; 0 below -87, so that exp(-inf) is 0.
static inline vec exponential(vec x) {
    const float round = 12582912.0f;  // 1.5 · 2^23: adding it rounds to an integer
    vec low = all(-87.0f);
    ivec gone = (ivec)(x < low);
    x = pick(gone, low, x);
    x = pick((ivec)(x > all(88.0f)), all(88.0f), x);
    vec n = (x * 1.44269504088896341f + round) - round;
    vec f = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec p = all(1.9875691500e-4f);
    p = p * f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = p * f * f + f + 1.0f;
    ivec power = __builtin_convertvector(n, ivec) + 127;
    return pick(gone, vec{}, p * bits<vec>(power << 23));
}

static inline float exponential(float x) { return exponential(all(x))[0]; }

static inline vec hyperbolic_tangent(vec x) { return 1.0f - 2.0f / (exponential(x + x) + 1.0f); }

static inline vec silu(vec x) { return x / (exponential(-x) + 1.0f); }

static inline vec gelu_tanh(vec x) {
    vec inner = 0.7978845608028654f * (x + 0.044715f * x * x * x);
    return 0.5f * x * (1.0f + hyperbolic_tangent(inner));
}

// Into the second cache: weights that come soon would crowd the first one, where the inputs are.
static inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

}  // namespace trimtab
