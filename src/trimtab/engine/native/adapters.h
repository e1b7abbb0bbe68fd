// Low-rank additions to a linear layer's output, on the tokens that have an adapter.
#pragma once

#include "product.h"

namespace trimtab {

// Neighbouring tokens that use one slot.
struct Run {
    long slot, from, to;
};

// What a token's span brings for a conditioned adapter.
struct Conditions {
    const void* data;
    bool half;

    vec at(long i, long n) const {
        return half ? load_part((const bf16*)data + i, n) : load_part((const float*)data + i, n);
    }
    float one(long i) const { return at(i, 1)[0]; }
};

static inline long rank_stride(long rank) { return round_up(rank, LANES); }

// h ← γ ⊙ h + δ.
static void modulate(const Delta& delta, const Conditions& c, float* h) {
    for (long i = 0; i < delta.rank; i += LANES) {
        long n = delta.rank - i;
        vec v = load(h + i);
        if (delta.first >= 0) v = v * c.at(delta.first * delta.rank + i, n);
        if (delta.second >= 0) v = v + c.at(delta.second * delta.rank + i, n);
        store(h + i, v);
    }
}

// h ← h P, P being (R, R); `old` has room for R numbers.
static void bilinear(const Delta& delta, const Conditions& c, float* h, float* old) {
    const long r = delta.rank, base = delta.first * r * r;
    memcpy(old, h, sizeof(float) * r);
    for (long i = 0; i < r; i += LANES) {
        vec v = {};
        for (long j = 0; j < r; j++) v += c.at(base + j * r + i, r - i) * old[j];
        store(h + i, v);
    }
}

// h = f(x Aᵀ), (tokens, rank_stride) from token `from` on.
static void low_rank(const Delta& delta, const Inputs& x, long d_in, bool half, long from, long to,
                     const Conditions* conditions, float* h, char* rows) {
    const long stride = rank_stride(delta.rank);
    const Linear a = {delta.a, nullptr, nullptr, nullptr, half ? W_BF16 : W_F32, d_in, delta.rank, d_in};
    product(a, x, from, to, 0, delta.rank, h, stride, rows);
    if (delta.kind == D_PLAIN) return;
    for (long t = from; t < to; t++) {
        float* row = h + (t - from) * stride;
        if (delta.kind == D_MODULATED)
            modulate(delta, conditions[t], row);
        else
            bilinear(delta, conditions[t], row, (float*)rows);
    }
}

// y[t] += h[t] b_t + c for tokens of one run and outputs [from, to).
template <class T>
static void add_low_rank(const Delta& delta, long d_out, const float* h, long tokens, long from, long to, float* y,
                         long y_stride) {
    const long r = delta.rank, stride = rank_stride(r);
    constexpr long PART = 16;  // ranks whose rows of b_t are held at once
    for (long o = from; o < to; o += LANES) {
        long n = least(to - o, LANES);
        for (long r0 = 0; r0 < r; r0 += PART) {
            long ranks = least(PART, r - r0);
            vec b[PART];
            for (long i = 0; i < ranks; i++) b[i] = load_part((const T*)delta.b_t + (r0 + i) * d_out + o, n);
            for (long t = 0; t < tokens; t++) {
                const float* ht = h + t * stride + r0;
                vec acc = load(y + t * y_stride + o - from);
                for (long i = 0; i < ranks; i++) acc += b[i] * ht[i];
                store(y + t * y_stride + o - from, acc);
            }
        }
        if (!delta.bias) continue;
        vec bias = load_part((const T*)delta.bias + o, n);
        for (long t = 0; t < tokens; t++)
            store(y + t * y_stride + o - from, load(y + t * y_stride + o - from) + bias);
    }
}

}  // namespace trimtab
