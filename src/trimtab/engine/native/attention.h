// Attention over pages of keys and values.
//
// Positions are taken in blocks of 256 that start at multiples of 256. A block gives its largest score, its sum of
// exponentials and its weighted sum of values; blocks are merged one after the other. What a token gets depends on
// its own positions only, however tokens are grouped and blocks are dealt to threads.
#pragma once

#include <cmath>

#include "product.h"

namespace trimtab {

constexpr long PAGE = 16;
constexpr long BLOCK_PAGES = 16;
constexpr long BLOCK = PAGE * BLOCK_PAGES;
constexpr long QUERIES = 32;  // queries of one task: heads that share keys, times tokens

// Some tokens of one span, what shares the key heads [head, head + heads), and the blocks [first, last). A task that
// takes all heads reads whole pages, one after the other, at twice the speed. Queries are in the order of key heads,
// then tokens, then what shares the key head.
struct AttentionTask {
    long token, tokens, position, head, heads, first, last;
    const int32_t* pages;
    float* partial;  // where the blocks' results go, to be merged by another task; null where this task merges
    long room;       // where `partial` is, in floats; -1 for none

    long queries(long shared) const { return heads * tokens * shared; }
};

struct AttentionScratch {
    char* queries;     // [q][D], bf16 or float
    float* scores;     // [q][256]
    char* weights;     // [q][256], bf16 or float
    char* page;        // one page of keys or values, turned round
    float *sum, *out;  // [q][D padded + 2]: of the block, of all blocks
};

static inline long padded_dim(const Model& m) { return round_up(m.head_dim, LANES); }
static inline long result_size(const Model& m) { return padded_dim(m) + LANES; }  // values, largest score, sum
static inline long queries_of(const Model& m) { return most(QUERIES, m.heads / m.kv_heads); }

// How bf16 is multiplied here: by pairs, or as floats.
template <class C>
struct Arithmetic {
    typedef float Number;
    static constexpr long STEP = 1;
};
#ifdef TT_DOT
template <>
struct Arithmetic<bf16> {
    typedef bf16 Number;
    static constexpr long STEP = 2;
};
#endif

static inline vec multiply_add(vec acc, const float* left, const float* one) { return acc + load(left) * *one; }
#ifdef TT_DOT
static inline vec multiply_add(vec acc, const bf16* left, const bf16* one) {
    int32_t pair;
    memcpy(&pair, one, sizeof(pair));
    return (vec)_mm512_dpbf16_ps((__m512)acc, (__m512bh)_mm512_loadu_si512(left), (__m512bh)_mm512_set1_epi32(pair));
}
#endif

#ifdef TT_AVX512
// A 16 by 16 block of 32-bit numbers turned round; rows shorter than 16 by the mask.
static inline void turn(const uint32_t* from, long stride, __mmask16 mask, uint32_t* to) {
    __m512i a[16], b[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) a[i] = _mm512_maskz_loadu_epi32(mask, from + i * stride);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        b[2 * i] = _mm512_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
        b[2 * i + 1] = _mm512_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        a[4 * i] = _mm512_unpacklo_epi64(b[4 * i], b[4 * i + 2]);
        a[4 * i + 1] = _mm512_unpackhi_epi64(b[4 * i], b[4 * i + 2]);
        a[4 * i + 2] = _mm512_unpacklo_epi64(b[4 * i + 1], b[4 * i + 3]);
        a[4 * i + 3] = _mm512_unpackhi_epi64(b[4 * i + 1], b[4 * i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m512i low01 = _mm512_shuffle_i32x4(a[i], a[4 + i], 0x88), high01 = _mm512_shuffle_i32x4(a[i], a[4 + i], 0xdd);
        __m512i low23 = _mm512_shuffle_i32x4(a[8 + i], a[12 + i], 0x88),
                high23 = _mm512_shuffle_i32x4(a[8 + i], a[12 + i], 0xdd);
        _mm512_storeu_si512(to + 16 * i, _mm512_shuffle_i32x4(low01, low23, 0x88));
        _mm512_storeu_si512(to + 16 * (4 + i), _mm512_shuffle_i32x4(high01, high23, 0x88));
        _mm512_storeu_si512(to + 16 * (8 + i), _mm512_shuffle_i32x4(low01, low23, 0xdd));
        _mm512_storeu_si512(to + 16 * (12 + i), _mm512_shuffle_i32x4(high01, high23, 0xdd));
    }
}
#endif

// Keys (16, D) to (D / STEP, 16, STEP): one vector holds one input, or one pair, of all positions.
template <class C>
static void turn_keys(const C* keys, long d, typename Arithmetic<C>::Number* to) {
#ifdef TT_AVX512
    if (sizeof(C) == sizeof(typename Arithmetic<C>::Number)) {
        long words = d * (long)sizeof(C) / 4;
        for (long j = 0; j < words; j += 16) {
            __mmask16 mask = words - j >= 16 ? 0xffff : (__mmask16)((1u << (words - j)) - 1);
            turn((const uint32_t*)keys + j, words, mask, (uint32_t*)to + 16 * j);
        }
        return;
    }
#endif
    for (long p = 0; p < PAGE; p++)
        for (long j = 0; j < d; j++) to[j * PAGE + p] = load_part(keys + p * d + j, 1)[0];
}

// Values (16, D), of which `valid` rows hold something, to (16 / STEP, D padded, STEP).
template <class C>
static void turn_values(const C* values, long d, long padded, long valid, typename Arithmetic<C>::Number* to) {
#ifdef TT_DOT
    if (sizeof(typename Arithmetic<C>::Number) == 2) {
        const __m512i low_high = _mm512_set1_epi32(0xffff0000);
        for (long p = 0; p < PAGE; p += 2)
            for (long j = 0; j < d; j += 16) {
                __mmask16 mask = d - j >= 16 ? 0xffff : (__mmask16)((1u << (d - j)) - 1);
                __m256i a = _mm256_maskz_loadu_epi16(p < valid ? mask : 0, values + p * d + j);
                __m256i b = _mm256_maskz_loadu_epi16(p + 1 < valid ? mask : 0, values + (p + 1) * d + j);
                __m512i high = _mm512_and_si512(_mm512_slli_epi32(_mm512_cvtepu16_epi32(b), 16), low_high);
                _mm512_storeu_si512(to + (p * padded) + 2 * j, _mm512_or_si512(_mm512_cvtepu16_epi32(a), high));
            }
        return;
    }
#endif
    for (long p = 0; p < PAGE; p++)
        for (long j = 0; j < padded; j += LANES)
            store((float*)to + p * padded + j, p < valid && j < d ? load_part(values + p * d + j, d - j) : vec{});
}

// scores[n][0..15] of N queries with one page of turned keys; even and odd inputs in two sums each.
template <class T, long STEP, int N>
static void score_page(const T* keys, const T* queries, long d, float* scores) {
    vec even[N] = {}, odd[N] = {};
    long j = 0;
    for (; j + 2 * STEP <= d; j += 2 * STEP)
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) {
            even[n] = multiply_add(even[n], keys + j * PAGE, queries + n * d + j);
            odd[n] = multiply_add(odd[n], keys + (j + STEP) * PAGE, queries + n * d + j + STEP);
        }
    if (j < d)
        for (int n = 0; n < N; n++) even[n] = multiply_add(even[n], keys + j * PAGE, queries + n * d + j);
    for (int n = 0; n < N; n++) store(scores + n * BLOCK, even[n] + odd[n]);
}

// sums[n][16·V numbers] += weights[n] · values of one page.
template <class T, long STEP, int N, int V>
static void add_values(const T* values, const T* weights, long padded, float* sums, long stride) {
    vec acc[N][V];
#pragma GCC unroll 4
    for (int n = 0; n < N; n++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) acc[n][v] = load(sums + n * stride + v * LANES);
    for (long p = 0; p < PAGE; p += STEP)
#pragma GCC unroll 4
        for (int n = 0; n < N; n++)
#pragma GCC unroll 4
            for (int v = 0; v < V; v++)
                acc[n][v] =
                    multiply_add(acc[n][v], values + p * padded + v * LANES * STEP, weights + n * BLOCK + p);
#pragma GCC unroll 4
    for (int n = 0; n < N; n++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) store(sums + n * stride + v * LANES, acc[n][v]);
}

template <class T, long STEP, int N>
static void add_all_values(const T* values, const T* weights, long padded, float* sums, long stride) {
    long j = 0;
    for (; j + 4 * LANES <= padded; j += 4 * LANES)
        add_values<T, STEP, N, 4>(values + j * STEP, weights, padded, sums + j, stride);
    for (; j < padded; j += LANES) add_values<T, STEP, N, 1>(values + j * STEP, weights, padded, sums + j, stride);
}

// Call `f` with the number of queries of each group of at most 4, as a constant.
template <class F>
static inline void by_fours(long n, F f) {
    long i = 0;
    for (; i + 4 <= n; i += 4) f(i, std::integral_constant<int, 4>());
    if (n - i == 3) f(i, std::integral_constant<int, 3>());
    if (n - i == 2) f(i, std::integral_constant<int, 2>());
    if (n - i == 1) f(i, std::integral_constant<int, 1>());
}

// Scores to exponentials less the largest, by query; fills the largest and the sum into `sums`.
template <class T>
static void weigh(const Model& m, const AttentionTask& task, long window, long first, long pages, long shared,
                  const AttentionScratch& s) {
    const vec count = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const long stride = result_size(m), padded = padded_dim(m);
    for (long q = 0; q < task.queries(shared); q++) {
        float *row = s.scores + q * BLOCK, *result = s.sum + q * stride + padded;
        T* weights = (T*)s.weights + q * BLOCK;
        long position = task.position + q / shared % task.tokens, lowest = window ? position - window + 1 : 0;
        vec top = all(-INFINITY);
        for (long p = 0; p < pages; p++) {
            long start = (first + p) * PAGE;
            vec score = load(row + p * PAGE) * m.attention_scale;
            if (m.attention_softcap > 0)
                score = m.attention_softcap * hyperbolic_tangent(score * (1.0f / m.attention_softcap));
            if (start < lowest) score = pick((ivec)(count < all((float)(lowest - start))), all(-INFINITY), score);
            if (start + PAGE - 1 > position)
                score = pick((ivec)(count > all((float)(position - start))), all(-INFINITY), score);
            store(row + p * PAGE, score);
            top = larger(score, top);
        }
        float largest_score = largest(top);
        vec total = {};
        for (long p = 0; p < pages; p++) {
            vec weight = {};
            if (largest_score > -INFINITY) weight = exponential(load(row + p * PAGE) - largest_score);
            total += weight;
            store(weights + p * PAGE, weight);
        }
        result[0] = largest_score;
        result[1] = sum(total);
    }
}

// The results of one block, for all queries of a task, into s.sum.
template <class C>
static void attend_block(const Model& m, const Layer& layer, const AttentionTask& task, long block,
                         const AttentionScratch& s) {
    typedef typename Arithmetic<C>::Number T;
    constexpr long STEP = Arithmetic<C>::STEP;
    const long d = m.head_dim, padded = padded_dim(m), stride = result_size(m), shared = m.heads / m.kv_heads;
    const long each = task.tokens * shared, queries = task.heads * each;
    const long end = task.position + task.tokens;  // positions written so far
    const long lowest = layer.window ? most(0, task.position - layer.window + 1) : 0;
    const long first = most(block * BLOCK_PAGES, lowest / PAGE);
    const long pages = least((block + 1) * BLOCK_PAGES, (end - 1) / PAGE + 1) - first;
    const long page_size = PAGE * d;
    T* turned = (T*)s.page;
    auto page_of = [&](const void* cache, long p, long head) {
        return (const C*)cache + ((long)task.pages[first + p] * m.kv_heads + task.head + head) * page_size;
    };
    for (long p = 0; p < pages; p++)
        for (long head = 0; head < task.heads; head++) {
            turn_keys(page_of(layer.keys, p, head), d, turned);
            by_fours(each, [&](long i, auto n) {
                const long q = head * each + i;
                score_page<T, STEP, n>(turned, (const T*)s.queries + q * d, d, s.scores + q * BLOCK + p * PAGE);
            });
        }
    for (long q = 0; q < queries; q++) memset(s.sum + q * stride, 0, sizeof(float) * stride);
    weigh<T>(m, task, layer.window, first, pages, shared, s);
    for (long p = 0; p < pages; p++)
        for (long head = 0; head < task.heads; head++) {
            turn_values(page_of(layer.values, p, head), d, padded, end - (first + p) * PAGE, turned);
            by_fours(each, [&](long i, auto n) {
                const long q = head * each + i;
                add_all_values<T, STEP, n>(turned, (const T*)s.weights + q * BLOCK + p * PAGE, padded,
                                           s.sum + q * stride, stride);
            });
        }
}

// One more block into a query's running result.
static inline void merge(const Model& m, float* out, const float* block) {
    const long padded = padded_dim(m);
    float old_top = out[padded], new_top = block[padded];
    if (new_top == -INFINITY) return;
    if (old_top == -INFINITY) {
        memcpy(out, block, sizeof(float) * result_size(m));
        return;
    }
    float top = old_top > new_top ? old_top : new_top;
    float a = exponential(old_top - top), b = exponential(new_top - top);
    for (long j = 0; j < padded; j += LANES) store(out + j, load(out + j) * a + load(block + j) * b);
    out[padded] = top;
    out[padded + 1] = out[padded + 1] * a + block[padded + 1] * b;
}

// A query's result, divided by its sum, into the input of the next layer.
static inline void finish(const Model& m, const AttentionTask& task, long q, const float* out, const Inputs& to) {
    const long shared = m.heads / m.kv_heads, d = m.head_dim, padded = padded_dim(m);
    char* row = to.row(task.token + q / shared % task.tokens);
    long column = ((task.head + q / (shared * task.tokens)) * shared + q % shared) * d;
    float inverse = 1.0f / out[padded + 1];
    for (long j = 0; j < d; j += LANES) put_input_part(row, column + j, load(out + j) * inverse, d - j, to.half);
}

template <class C>
static void load_queries(const Model& m, const AttentionTask& task, const float* q, long q_stride, char* to) {
    typedef typename Arithmetic<C>::Number T;
    const long shared = m.heads / m.kv_heads, width = shared * m.head_dim;
    for (long i = 0; i < task.heads * task.tokens; i++) {
        const float* row = q + (task.token + i % task.tokens) * q_stride + (task.head + i / task.tokens) * width;
        for (long j = 0; j < width; j += LANES) {
            vec v = load_part(row + j, width - j);
            if (sizeof(C) == 2) v = rounded(v);
            store_part((T*)to + i * width + j, v, width - j);
        }
    }
}

// `q`: (tokens, heads · D) floats after RoPE.
template <class C>
static void attend(const Model& m, const Layer& layer, const AttentionTask& task, const float* q, long q_stride,
                   const AttentionScratch& s, const Inputs& to) {
    const long queries = task.queries(m.heads / m.kv_heads), stride = result_size(m), padded = padded_dim(m);
    const long lowest = layer.window ? most(0, task.position - layer.window + 1) / BLOCK : 0;
    load_queries<C>(m, task, q, q_stride, s.queries);
    for (long i = 0; i < queries; i++) s.out[i * stride + padded] = -INFINITY;
    for (long block = most(task.first, lowest); block < task.last; block++) {
        attend_block<C>(m, layer, task, block, s);
        for (long i = 0; i < queries; i++) merge(m, s.out + i * stride, s.sum + i * stride);
    }
    if (task.partial) {
        memcpy(task.partial, s.out, sizeof(float) * queries * stride);
        return;
    }
    for (long i = 0; i < queries; i++) finish(m, task, i, s.out + i * stride, to);
}

// What the tasks of one block each have left, merged in the order of the blocks.
static void merge_blocks(const Model& m, const AttentionTask& task, const AttentionScratch& s, const Inputs& to) {
    const long queries = task.queries(m.heads / m.kv_heads), stride = result_size(m), padded = padded_dim(m);
    for (long i = 0; i < queries; i++) {
        float* out = s.out + i * stride;
        out[padded] = -INFINITY;
        for (long block = 0; block < task.last; block++) merge(m, out, task.partial + (block * queries + i) * stride);
        finish(m, task, i, out, to);
    }
}

}  // namespace trimtab
