// Linear layers with their adapters, dealt out to the threads in chunks of outputs.
#pragma once

#include "step.h"

namespace trimtab {

// The adapters' hidden states of each layer of a group: (layer, row, rank). Few rows: every thread computes all of
// them for itself, so that there is no barrier.
inline const float* Step::low_ranks(int id, const Group& group, const Rows& rows) {
    long adapted = 0;
    for (const Run& run : *rows.runs)
        for (int i = 0; i < group.count; i++)
            if (delta(group.number[i], run.slot)) {
                adapted += run.to - run.from;
                break;
            }
    if (!adapted) return nullptr;
    const long stride = rank_stride(max_rank);
    const bool alone = rows.count <= ALONE_RANKS || w.team.size == 1;
    Private& p = *w.privates[id];
    float* hidden = alone ? p.hidden.floats(3 * rows.count * stride) : shared_hidden;
    for (int i = 0; i < group.count; i++)
        for (const Run& run : *rows.runs) {
            const Delta* d = delta(group.number[i], run.slot);
            if (!d) continue;
            long from = 0, to = run.to - run.from;
            if (!alone) share(id, run.to - run.from, from, to);
            low_rank(*d, rows.x, group.linear[i]->d_in, half, run.from + from, run.from + to, rows.conditions,
                     hidden + (i * rows.count + run.from) * stride + from * rank_stride(d->rank), p.rows.data);
        }
    if (!alone) w.team.wait();
    return hidden;
}

// Outputs [from, to) of one layer for rows [t0, t1), with all that is added to them, into y (·, CHUNK).
inline void Step::chunk(int id, const Group& group, int which, const Rows& rows, const float* hidden, long t0, long t1,
                        long from, long to, float* y) {
    const Linear& l = *group.linear[which];
    product(l, rows.x, t0, t1, from, to, y, CHUNK, w.privates[id]->rows.data);
    const bool scaled = one_scale(l);
    if (scaled || l.bias)
        for (long o = from; o < to; o += LANES) {
            vec scale = scaled ? load_part(l.scales + o, to - o) : all(1.0f), bias = {};
            if (l.bias)
                bias = half ? load_part((const bf16*)l.bias + o, to - o) : load_part((const float*)l.bias + o, to - o);
            for (long t = 0; t < t1 - t0; t++) {
                float* at = y + t * CHUNK + o - from;
                store(at, load(at) * scale + bias);
            }
        }
    if (!hidden) return;
    const long stride = rank_stride(max_rank);
    for (const Run& run : *rows.runs) {
        const Delta* d = delta(group.number[which], run.slot);
        long a = most(run.from, t0), b = least(run.to, t1);
        if (!d || a >= b) continue;
        const float* h = hidden + (which * rows.count + run.from) * stride + (a - run.from) * rank_stride(d->rank);
        if (half)
            add_low_rank<bf16>(*d, l.d_out, h, b - a, from, to, y + (a - t0) * CHUNK, CHUNK);
        else
            add_low_rank<float>(*d, l.d_out, h, b - a, from, to, y + (a - t0) * CHUNK, CHUNK);
    }
}

// n outputs of one row: into y, onto y, or through the activation into the next layer's input.
inline void Step::deliver(Target target, const float* from, const float* gate, long n, float* y, char* input,
                          long column) {
    for (long j = 0; j < n; j += LANES) {
        vec v = load(from + j);
        if (target == ACTIVATE) {
            vec g = load(gate + j);
            put_input_part(input, column + j, (m.gelu ? gelu_tanh(g) : silu(g)) * v, n - j, half);
            continue;
        }
        if (target == ADD) v = v + load_part(y + j, n - j);
        if (target == LOGITS && m.logit_softcap > 0)
            v = m.logit_softcap * hyperbolic_tangent(v * (1.0f / m.logit_softcap));
        store_part(y + j, v, n - j);
    }
}

// All layers of a group; ACTIVATE takes gate and up as a pair. The outputs of layer i follow those of layer i - 1.
inline void Step::linear(int id, long phase, const Group& group, const Rows& rows, Target target, float* y,
                         long y_stride) {
    const float* hidden = low_ranks(id, group, rows);
    const int layers = target == ACTIVATE ? 1 : group.count;
    long outputs = 0, starts[4] = {0, 0, 0, 0};
    for (int i = 0; i < layers; i++) outputs += group.linear[i]->d_out;
    const long size = least(CHUNK, most(LANES, outputs / (w.team.size * 4) / LANES * LANES));
    for (int i = 0; i < layers; i++) starts[i + 1] = starts[i] + (group.linear[i]->d_out + size - 1) / size;
    Private& p = *w.privates[id];
    while (true) {
        long c = w.counters[phase].fetch_add(1, std::memory_order_relaxed), column = 0;
        if (c >= starts[layers]) return;
        int i = 0;
        for (; c >= starts[i + 1]; i++) column += group.linear[i]->d_out;
        const long from = (c - starts[i]) * size, to = least(from + size, group.linear[i]->d_out);
        for (long t0 = 0; t0 < rows.count; t0 += CHUNK_TOKENS) {
            long t1 = least(t0 + CHUNK_TOKENS, rows.count);
            chunk(id, group, i, rows, hidden, t0, t1, from, to, (float*)p.y.data);
            if (target == ACTIVATE) chunk(id, group, 1, rows, hidden, t0, t1, from, to, (float*)p.y2.data);
            for (long t = t0; t < t1; t++) {
                const float *first = (float*)p.y.data + (t - t0) * CHUNK, *second = (float*)p.y2.data + (t - t0) * CHUNK;
                if (target == ACTIVATE)
                    deliver(target, second, first, to - from, nullptr, active.row(t), from);
                else
                    deliver(target, first, nullptr, to - from, y + t * y_stride + column + from, nullptr, 0);
            }
        }
    }
}

}  // namespace trimtab
