// Dot products of 4 rows of a weight with a few tokens at once.
//
// Every product is summed alike whatever the tile: lane i of an accumulator takes inputs i, i + 16, … (pairs of them
// for bf16), and the lanes are added in one fixed order. So a token's result does not depend on its neighbours.
#pragma once

#include "simd.h"

namespace trimtab {

constexpr long ROWS = 4;

struct Tile {
    const void* w[ROWS];     // the rows
    const char* ahead;  // weights that come soon, fetched meanwhile
    const void* x;           // (T, ·) inputs, zeros from k on to a multiple of 32
    long x_bytes;            // from one token to the next
    long k;                  // inputs
    float* y;                // (T, ·) outputs, 4 are written
    long y_stride;
};

#ifdef TT_AVX512
constexpr long TOKENS = 6;  // 24 accumulators, 4 rows, 1 input: 29 of 32 registers

static inline __m512 fold(__m512 a, __m512 b, __m512 c, __m512 d) {
    __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    __m512d l = _mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
    __m512d h = _mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
    return _mm512_add_ps(_mm512_castpd_ps(l), _mm512_castpd_ps(h));
}

static inline __m512 fold_halves(__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}

template <int T>
static inline void write(const __m512 (&acc)[T][ROWS], float* y, long stride) {
    __m512 quads[(T + 3) / 4 * 4];
#pragma GCC unroll 8
    for (int t = 0; t < (T + 3) / 4 * 4; t++)
        quads[t] = t < T ? fold(acc[t < T ? t : 0][0], acc[t < T ? t : 0][1], acc[t < T ? t : 0][2],
                                acc[t < T ? t : 0][3])
                         : quads[0];
#pragma GCC unroll 2
    for (int t = 0; t < T; t += 4) {
        __m512 four = fold_halves(fold_halves(quads[t], quads[t + 1]), fold_halves(quads[t + 2], quads[t + 3]));
        _mm_storeu_ps(y + t * stride, _mm512_castps512_ps128(four));
        if (t + 1 < T) _mm_storeu_ps(y + (t + 1) * stride, _mm512_extractf32x4_ps(four, 1));
        if (t + 2 < T) _mm_storeu_ps(y + (t + 2) * stride, _mm512_extractf32x4_ps(four, 2));
        if (t + 3 < T) _mm_storeu_ps(y + (t + 3) * stride, _mm512_extractf32x4_ps(four, 3));
    }
}
#else
constexpr long TOKENS = 2;
#endif

#ifdef TT_DOT
template <int T, int LINES>
static void dot_pairs(const Tile& tile) {
    const bf16 *w0 = (const bf16*)tile.w[0], *w1 = (const bf16*)tile.w[1], *w2 = (const bf16*)tile.w[2],
               *w3 = (const bf16*)tile.w[3];
    const char* x = (const char*)tile.x;
    const long stride = tile.x_bytes, k = tile.k;
    __m512 acc[T][ROWS];
#pragma GCC unroll 8
    for (int t = 0; t < T; t++)
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++) acc[t][r] = _mm512_setzero_ps();
    auto step = [&](long i, __m512i a, __m512i b, __m512i c, __m512i d) __attribute__((always_inline)) {
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) {
            __m512bh in = (__m512bh)_mm512_loadu_si512(x + t * stride + 2 * i);
            acc[t][0] = _mm512_dpbf16_ps(acc[t][0], (__m512bh)a, in);
            acc[t][1] = _mm512_dpbf16_ps(acc[t][1], (__m512bh)b, in);
            acc[t][2] = _mm512_dpbf16_ps(acc[t][2], (__m512bh)c, in);
            acc[t][3] = _mm512_dpbf16_ps(acc[t][3], (__m512bh)d, in);
        }
    };
    const char* ahead = tile.ahead;
    long i = 0;
    for (; i + 32 <= k; i += 32) {
#pragma GCC unroll 4
        for (int r = 0; r < LINES; r++) prefetch(ahead + 64 * r);
        ahead += 64 * LINES;
        step(i, _mm512_loadu_si512(w0 + i), _mm512_loadu_si512(w1 + i), _mm512_loadu_si512(w2 + i),
             _mm512_loadu_si512(w3 + i));
    }
    if (i < k) {
        __mmask32 m = (__mmask32)((1ull << (k - i)) - 1);
        step(i, _mm512_maskz_loadu_epi16(m, w0 + i), _mm512_maskz_loadu_epi16(m, w1 + i),
             _mm512_maskz_loadu_epi16(m, w2 + i), _mm512_maskz_loadu_epi16(m, w3 + i));
    }
    write<T>(acc, tile.y, tile.y_stride);
}
#endif

// Weights of any type W, inputs and sums in float.
#ifdef TT_AVX512
typedef vec lanes;
#else
typedef float lanes __attribute__((vector_size(32)));
#endif
constexpr long WIDTH = sizeof(lanes) / sizeof(float);

static inline lanes wide(const float* p) {
    lanes v;
    memcpy(&v, p, sizeof(v));
    return v;
}

static inline lanes wide(const bf16* p) {
#ifdef TT_AVX512
    return load(p);
#else
    typedef bf16 half __attribute__((vector_size(2 * WIDTH)));
    typedef uint32_t full __attribute__((vector_size(4 * WIDTH)));
    half h;
    memcpy(&h, p, sizeof(h));
    return bits<lanes>(__builtin_convertvector(h, full) << 16);
#endif
}

template <class W, int T, int LINES>
static void dot_floats(const Tile& tile) {
    const long stride = tile.x_bytes / (long)sizeof(float), k = tile.k;
    const float* x = (const float*)tile.x;
    lanes acc[T][ROWS] = {};
    auto step = [&](long i, lanes a, lanes b, lanes c, lanes d) __attribute__((always_inline)) {
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) {
            lanes in = wide(x + t * stride + i);
#ifdef TT_AVX512
            asm("" : "+v"(in));  // held in a register: gcc would load it again for each row
#endif
            acc[t][0] += a * in;
            acc[t][1] += b * in;
            acc[t][2] += c * in;
            acc[t][3] += d * in;
        }
    };
    const W *w0 = (const W*)tile.w[0], *w1 = (const W*)tile.w[1], *w2 = (const W*)tile.w[2], *w3 = (const W*)tile.w[3];
    const char* ahead = tile.ahead;
    long i = 0;
    for (; i + WIDTH <= k; i += WIDTH) {
#pragma GCC unroll 4
        for (int r = 0; r < LINES; r++) prefetch(ahead + 64 * r);
        ahead += 64 * LINES;
        step(i, wide(w0 + i), wide(w1 + i), wide(w2 + i), wide(w3 + i));
    }
    if (i < k) {
        W part[ROWS][WIDTH] = {};
        for (int r = 0; r < ROWS; r++)
            for (long j = i; j < k; j++) part[r][j - i] = ((const W*)tile.w[r])[j];
        step(i, wide(part[0]), wide(part[1]), wide(part[2]), wide(part[3]));
    }
#ifdef TT_AVX512
    __m512 sums[T][ROWS];
    for (int t = 0; t < T; t++)
        for (int r = 0; r < ROWS; r++) sums[t][r] = (__m512)acc[t][r];
    write<T>(sums, tile.y, tile.y_stride);
#else
    for (int t = 0; t < T; t++)
        for (int r = 0; r < ROWS; r++) {
            float s[WIDTH];
            memcpy(s, &acc[t][r], sizeof(s));
            for (long half = WIDTH / 2; half; half /= 2)
                for (long j = 0; j < half; j++) s[j] += s[j + half];
            tile.y[t * tile.y_stride + r] = s[0];
        }
#endif
}

typedef void (*TileKernel)(const Tile&);

// Kernels by tokens, and by how many cache lines they fetch ahead at each step.
constexpr int FETCHES = 4;  // 0, 1, 2 and 4 lines

template <template <int, int> class Kernel, int T>
static void fill(TileKernel (&table)[TOKENS + 1][FETCHES]) {
    table[T][0] = Kernel<T, 0>::run;
    table[T][1] = Kernel<T, 1>::run;
    table[T][2] = Kernel<T, 2>::run;
    table[T][3] = Kernel<T, 4>::run;
    if constexpr (T > 1) fill<Kernel, T - 1>(table);
}

template <template <int, int> class Kernel>
struct Kernels {
    TileKernel table[TOKENS + 1][FETCHES];
    Kernels() { fill<Kernel, TOKENS>(table); }
};

template <int T, int LINES>
struct FloatKernel {
    static void run(const Tile& tile) { dot_floats<float, T, LINES>(tile); }
};
template <int T, int LINES>
struct HalfKernel {
#ifdef TT_DOT
    static void run(const Tile& tile) { dot_pairs<T, LINES>(tile); }
#else
    static void run(const Tile& tile) { dot_floats<bf16, T, LINES>(tile); }
#endif
};

static const Kernels<FloatKernel> FLOAT_KERNELS;
static const Kernels<HalfKernel> HALF_KERNELS;

#ifdef TT_DOT
typedef bf16 Input;  // how the input of a bf16 layer is held
#else
typedef float Input;
#endif

}  // namespace trimtab
