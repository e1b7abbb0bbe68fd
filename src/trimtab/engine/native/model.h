// What the caller describes: a model once, a batch each step. The Python side mirrors these structs field by field.
#pragma once

#include <cstdint>

namespace trimtab {

enum WeightKind { W_F32 = 0, W_BF16 = 1, W_INT8 = 2, W_INT4 = 3 };
enum DeltaKind { D_PLAIN = 0, D_MODULATED = 1, D_BILINEAR = 2 };

// y = x Wᵀ + b. `group` inputs share a scale and a minimum; d_in of them where a row has one.
struct Linear {
    const void* weight;
    const void* bias;  // in the model's dtype
    const float* scales;
    const float* minima;
    int64_t kind, d_in, d_out, group;
};

// y += f(x Aᵀ) Bᵀ + c; A is (R, D_in), b_t (R, D_out), in the model's dtype. Conditions are numbered in blocks.
struct Delta {
    const void* a;  // null where the slot leaves the layer alone
    const void* b_t;
    const void* bias;
    int64_t rank, kind;
    int64_t first;   // γ, or the bilinear part; -1 for none
    int64_t second;  // δ; -1 for none
};

struct Layer {
    Linear q, k, v, o, gate, up, down;
    const float *input_norm, *q_norm, *k_norm, *attention_out_norm, *mlp_norm, *mlp_out_norm;
    void* keys;    // (pages, H_kv, 16, D) in the model's dtype
    void* values;  // likewise
    int64_t rope;    // which tables, -1 for none
    int64_t window;  // 0 for all
};

struct Model {
    const Layer* layers;
    const Linear* head;
    const Delta* deltas;  // [linear][slot]; linears are 7 a layer in the order above, then the head
    const void* embedding;
    const float* final_norm;
    const float* const* cosines;
    const float* const* sines;
    const int64_t* rope_dims;  // D_rot / 2
    int64_t n_layers, slots, hidden, heads, kv_heads, head_dim, intermediate, bf16, gelu;
    float norm_eps, embedding_scale, attention_scale, attention_softcap, logit_softcap;  // softcaps: 0 for none
};

struct Batch {
    int64_t spans, tokens, kept, threads;
    const int32_t* ids;         // (tokens,)
    const int32_t* counts;      // (spans,) tokens
    const int32_t* starts;      // (spans,) tokens before
    const int32_t* keeps;       // (spans,)
    const int32_t* slots;       // (spans,) -1 for none, ascending
    const int32_t* first_page;  // (spans,) into `pages`
    const int32_t* pages;
    const void* const* conditions;    // (spans,)
    const int32_t* conditions_bf16;  // (spans,)
    float* logits;                    // (kept, D_out of the head)
};

}  // namespace trimtab
