// A range of a linear layer's outputs for a range of tokens.
#pragma once

#include "model.h"
#include "tiles.h"

namespace trimtab {

// Inputs of a linear layer, one row a token, zeros up to `width`.
struct Inputs {
    void* data;
    long bytes;  // from one token to the next
    bool half;   // of the type `Input`, else float

    char* row(long token) const { return (char*)data + token * bytes; }
};

static inline long input_bytes(long width, bool half) {
    long bytes = round_up(width, 32) * (long)(half ? sizeof(Input) : sizeof(float));
    return bytes % 1024 ? bytes : bytes + 64;  // rows a power of two apart would fight for the same cache lines
}

static inline void put_input_part(void* row, long i, vec v, long n, bool half) {
    if (!half)
        store_part((float*)row + i, v, n);
    else if (sizeof(Input) == 2)
        store_part((bf16*)row + i, v, n);
    else
        store_part((float*)row + i, rounded(v), n);
}

// ---- quantised rows ----------------------------------------------------------------------------------------------

// Codes as they are (the row's one scale is applied to the sum), or scaled and shifted where a row has many.
static inline bool one_scale(const Linear& w) { return w.kind == W_INT8 && w.group == w.d_in && !w.minima; }

static inline vec codes8(const int8_t* p) {
#ifdef TT_AVX512
    return (vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
#else
    typedef int8_t bytes __attribute__((vector_size(16)));
    bytes b;
    memcpy(&b, p, sizeof(b));
    return __builtin_convertvector(__builtin_convertvector(b, ivec), vec);
#endif
}

template <class Out>
static inline void put_pair(Out* out, vec low, vec high) {
#ifdef TT_DOT
    if (sizeof(Out) == 2) {
        _mm512_storeu_si512(out, (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low));
        return;
    }
#endif
    store(out, low);
    store(out + LANES, high);
}

template <class Out>
static void decode8(const Linear& w, long row, Out* out) {
    const int8_t* codes = (const int8_t*)w.weight + row * w.d_in;
    long k = w.d_in, groups = k / w.group;
    bool plain = one_scale(w);
    for (long g = 0; g < groups; g++) {
        vec scale = all(plain ? 1.0f : w.scales[row * groups + g]);
        vec low = all(w.minima ? w.minima[row * groups + g] : 0.0f);
        long end = (g + 1) * w.group, i = g * w.group;
        if (plain)
            for (; i + 2 * LANES <= end; i += 2 * LANES) put_pair(out + i, codes8(codes + i), codes8(codes + i + LANES));
        for (; i + 2 * LANES <= end; i += 2 * LANES)
            put_pair(out + i, codes8(codes + i) * scale + low, codes8(codes + i + LANES) * scale + low);
        for (; i < end; i++) {
            vec one = all((float)codes[i]) * scale + low;
            store_part(out + i, one, 1);
        }
    }
}

static const vec count = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

#ifdef TT_AVX512
// The bf16 numbers of 32 codes; `values` are what each of the 16 codes stands for.
static inline __m512i codes4(const uint8_t* p, vec values) {
    const __m128i both = _mm_loadu_si128((const __m128i*)p), mask = _mm_set1_epi8(15);
    const __m128i low = _mm_and_si128(both, mask), high = _mm_and_si128(_mm_srli_epi16(both, 4), mask);
    const __m512i index = _mm512_cvtepu8_epi16(_mm256_set_m128i(high, low));
    return _mm512_permutexvar_epi16(index, _mm512_castsi256_si512((__m256i)to_bf16(values)));
}
#endif

template <class Row>
static inline vec values4(const Row& row, long g) {
    return count * row.scales[g] + (row.minima ? row.minima[g] : 0.0f);
}

template <class Out>
static void decode4(const Linear& w, long row, Out* out) {
    const uint8_t* codes = (const uint8_t*)w.weight + row * w.d_in / 2;
    long groups = w.d_in / w.group;
    const float* scales = w.scales + row * groups;
    const float* minima = w.minima ? w.minima + row * groups : nullptr;
    for (long g = 0; g < groups; g++) {
        const vec values = count * scales[g] + (minima ? minima[g] : 0.0f);
        for (long i = g * w.group; i < (g + 1) * w.group; i += 32) {
            const uint8_t* p = codes + i / 2;
#ifdef TT_AVX512
            if (sizeof(Out) == 2) {
                _mm512_storeu_si512(out + i, codes4(p, values));
            } else {
                __m128i both = _mm_loadu_si128((const __m128i*)p), mask = _mm_set1_epi8(15);
                __m128i low = _mm_and_si128(both, mask), high = _mm_and_si128(_mm_srli_epi16(both, 4), mask);
                put_pair(out + i, (vec)_mm512_permutexvar_ps(_mm512_cvtepu8_epi32(low), (__m512)values),
                         (vec)_mm512_permutexvar_ps(_mm512_cvtepu8_epi32(high), (__m512)values));
            }
#else
            for (long j = 0; j < LANES; j++) {
                store_part(out + i + j, all(values[p[j] & 15]), 1);
                store_part(out + i + LANES + j, all(values[p[j] >> 4]), 1);
            }
#endif
        }
    }
}

template <class Out>
static void decode(const Linear& w, long row, Out* out) {
    if (w.kind == W_INT8)
        decode8(w, row, out);
    else
        decode4(w, row, out);
    for (long i = w.d_in; i < round_up(w.d_in, 32); i++) out[i] = 0;
}

constexpr long AHEAD = 8192;  // bytes of weights to fetch ahead, at least

static inline long row_bytes(const Linear& w) {
    return w.kind == W_F32 ? 4 * w.d_in : w.kind == W_BF16 ? 2 * w.d_in : w.kind == W_INT8 ? w.d_in : w.d_in / 2;
}

// ---- quantised rows and one or two tokens: from codes to products without leaving the registers -----------------------

#ifdef TT_DOT
constexpr long FEW = 2;

struct Codes8 {
    static constexpr int LINES = 2;  // cache lines of 4 rows' codes at each step
    const int8_t* codes;

    Codes8(const Linear& w, long row) : codes((const int8_t*)w.weight + row * w.d_in) {}
    __m512i at(long i) const {
        return (__m512i)_mm512_cvtne2ps_pbh((__m512)codes8(codes + i + LANES), (__m512)codes8(codes + i));
    }
};

struct Codes4 {
    static constexpr int LINES = 1;
    const uint8_t* codes;
    const float *scales, *minima;
    long group;

    Codes4(const Linear& w, long row)
        : codes((const uint8_t*)w.weight + row * w.d_in / 2),
          scales(w.scales + row * (w.d_in / w.group)),
          minima(w.minima ? w.minima + row * (w.d_in / w.group) : nullptr),
          group(w.group) {}
    __m512i at(long i) const { return codes4(codes + i / 2, values4(*this, group == 32 ? i >> 5 : i / group)); }
};

// As `decode` and the tile kernels after it: the same numbers in the same order, so the same bits.
template <int T, class Codes>
static void few_tokens(const Linear& w, const Inputs& x, long token, long o, long last, const char* ahead, float* y,
                       long y_stride) {
    const Codes w0(w, o), w1(w, least(o + 1, last)), w2(w, least(o + 2, last)), w3(w, least(o + 3, last));
    __m512 acc[T][ROWS];
    for (int t = 0; t < T; t++)
        for (int r = 0; r < ROWS; r++) acc[t][r] = _mm512_setzero_ps();
    for (long i = 0; i < w.d_in; i += 32) {
        for (int r = 0; r < Codes::LINES; r++) prefetch(ahead + 64 * r);
        ahead += 64 * Codes::LINES;
        const __m512i a = w0.at(i), b = w1.at(i), c = w2.at(i), d = w3.at(i);
#pragma GCC unroll 2
        for (int t = 0; t < T; t++) {
            __m512bh in = (__m512bh)_mm512_loadu_si512(x.row(token + t) + 2 * i);
            acc[t][0] = _mm512_dpbf16_ps(acc[t][0], (__m512bh)a, in);
            acc[t][1] = _mm512_dpbf16_ps(acc[t][1], (__m512bh)b, in);
            acc[t][2] = _mm512_dpbf16_ps(acc[t][2], (__m512bh)c, in);
            acc[t][3] = _mm512_dpbf16_ps(acc[t][3], (__m512bh)d, in);
        }
    }
    write<T>(acc, y, y_stride);
}

template <int T>
static void few_tokens(const Linear& w, const Inputs& x, long token, long from, long to, float* y, long y_stride) {
    const long size = row_bytes(w), last = w.d_out - 1;
    for (long o = from; o < to; o += ROWS) {
        const char* ahead = (const char*)w.weight + o * size + most(AHEAD, ROWS * size);
        if (w.kind == W_INT8)
            few_tokens<T, Codes8>(w, x, token, o, last, ahead, y + o - from, y_stride);
        else
            few_tokens<T, Codes4>(w, x, token, o, last, ahead, y + o - from, y_stride);
    }
}
#endif

// ---- the product -------------------------------------------------------------------------------------------------

constexpr long TOKEN_BLOCK = 96;  // tokens for which a tile of rows stays in the first cache

// Rows' worth of weights that one of `parts` groups of tokens fetches ahead; 4 in all.
static inline int lines_ahead(long part, long parts) {
    if (parts == 1) return 4;
    if (parts == 2 || (parts == 3 && part == 0)) return 2;
    return part < 4;
}

// y[t][o - from] of tokens [t0, t1) and outputs [from, to); `rows` holds 4 decoded rows. y has room for a multiple of
// 4 outputs. Returns raw sums: neither a row's scale nor the bias is in them.
static void product(const Linear& w, const Inputs& x, long t0, long t1, long from, long to, float* y, long y_stride,
                    char* rows) {
    const bool quantised = w.kind >= W_INT8, as_half = x.half && (quantised || w.kind == W_BF16);
    const auto& table = w.kind == W_BF16 || (quantised && x.half && sizeof(Input) == 2) ? HALF_KERNELS.table
                                                                                         : FLOAT_KERNELS.table;
    const long size = row_bytes(w), last = w.d_out - 1, padded = round_up(w.d_in, 32);
    const long item = as_half ? (long)sizeof(Input) : 4;
#ifdef TT_DOT
    if (quantised && as_half && t1 - t0 <= FEW && w.d_in % 32 == 0 && (w.kind == W_INT4 || one_scale(w))) {
        if (t1 - t0 == 1) few_tokens<1>(w, x, t0, from, to, y, y_stride);
        if (t1 - t0 == 2) few_tokens<2>(w, x, t0, from, to, y, y_stride);
        return;
    }
#endif
    Tile tile;
    tile.x_bytes = x.bytes;
    tile.k = quantised ? padded : w.d_in;
    tile.y_stride = y_stride;
    for (long b0 = t0; b0 < t1; b0 += TOKEN_BLOCK) {
        long b1 = least(b0 + TOKEN_BLOCK, t1), parts = (b1 - b0 + TOKENS - 1) / TOKENS;
        for (long o = from; o < to; o += ROWS) {
            // In the order of addresses: row by row would be four streams, at half the speed.
            const char* ahead = (const char*)w.weight + o * size + most(AHEAD, ROWS * size);
            for (long r = 0; r < ROWS; r++) {
                const long row = least(o + r, last);
                tile.w[r] = (const char*)w.weight + row * size;
                if (!quantised) continue;
                for (long i = 0; i < size; i += 64) prefetch(ahead + r * size + i);
                char* out = rows + r * padded * item;
                if (as_half)
                    decode(w, row, (Input*)out);
                else
                    decode(w, row, (float*)out);
                tile.w[r] = out;
            }
            long t = b0;
            for (long part = 0; part < parts; part++) {
                long n = (b1 - t + parts - part - 1) / (parts - part);
                const int lines = quantised ? 0 : lines_ahead(part, parts);
                tile.x = x.row(t);
                tile.y = y + (t - t0) * y_stride + (o - from);
                tile.ahead = ahead;
                table[n][lines == 4 ? 3 : lines](tile);
                ahead += lines * size;
                t += n;
            }
        }
    }
}

}  // namespace trimtab
