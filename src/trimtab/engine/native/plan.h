// What is decided once a step, before the threads start: tokens, runs, attention tasks, room.
#pragma once

#include "step.h"

namespace trimtab {

inline void Step::plan_tokens() {
    w.runs.clear(), w.kept_runs.clear();
    w.conditions.resize(tokens), w.positions.resize(tokens), w.span_of.resize(tokens);
    w.kept_tokens.clear(), w.kept_conditions.clear();
    long t = 0;
    for (long s = 0; s < batch.spans; s++) {
        long n = batch.counts[s], slot = batch.slots[s];
        Conditions c = {batch.conditions[s], batch.conditions_bf16[s] != 0};
        if (slot >= 0 && n) extend(w.runs, slot, t, n);
        if (slot >= 0 && batch.keeps[s]) extend(w.kept_runs, slot, (long)w.kept_tokens.size(), batch.keeps[s]);
        for (long i = 0; i < n; i++, t++) {
            w.conditions[t] = c, w.positions[t] = batch.starts[s] + i, w.span_of[t] = (int32_t)s;
            if (i < n - batch.keeps[s]) continue;
            w.kept_tokens.push_back(t), w.kept_conditions.push_back(c);
        }
    }
}

inline void Step::extend(std::vector<Run>& runs, long slot, long from, long n) {
    if (!runs.empty() && runs.back().slot == slot && runs.back().to == from)
        runs.back().to += n;
    else
        runs.push_back({slot, from, from + n});
}

inline void Step::plan_attention() {
    const long shared = m.heads / m.kv_heads, tile = most(1, QUERIES / shared), enough = 4 * w.team.size;
    long tiles = 0, blocks = 0, t = 0, room = 0;
    for (long s = 0; s < batch.spans; s++)
        for (long i = 0; i < batch.counts[s]; i += tile)
            tiles++, blocks += (batch.starts[s] + least(i + tile, batch.counts[s]) - 1) / BLOCK + 1;
    // Few long rows are dealt out by blocks of positions, and fewer still by heads; what is summed stays the same.
    const bool split = w.team.size > 1 && tiles < enough, by_head = split && blocks < enough;
    w.tasks.clear(), w.merges.clear();
    for (long s = 0; s < batch.spans; t += batch.counts[s], s++)
        for (long i = 0; i < batch.counts[s]; i += tile) {
            const long n = least(tile, batch.counts[s] - i), position = batch.starts[s] + i;
            const long heads = by_head ? 1 : most(1, QUERIES / (n * shared));
            for (long head = 0; head < m.kv_heads; head += heads) {
                AttentionTask task = {t + i, n, position, head, least(heads, m.kv_heads - head), 0,
                                      (position + n - 1) / BLOCK + 1, batch.pages + batch.first_page[s], nullptr, -1};
                if (!split || task.last == 1) {
                    w.tasks.push_back(task);
                    continue;
                }
                task.room = room;
                w.merges.push_back(task);
                for (long block = 0; block < task.last; block++) {
                    AttentionTask part = task;
                    part.room = room, part.first = block;
                    w.tasks.push_back(part);
                    w.tasks.back().last = block + 1;
                    room += task.queries(shared) * result_size(m);
                }
            }
        }
    float* partial = w.partial.floats(room);
    for (auto& task : w.tasks)
        if (task.room >= 0) task.partial = partial + task.room;
    for (auto& task : w.merges) task.partial = partial + task.room;
}

inline void Step::prepare() {
    const Layer& first = m.layers[0];
    q_width = first.q.d_out, kv_width = first.k.d_out;
    plan_tokens();
    for (const Run& run : w.runs)
        for (long number = 0; number < 7 * m.n_layers + 1; number++)
            if (const Delta* d = delta(number, run.slot)) max_rank = most(max_rank, d->rank);
    residual = w.residual.floats(tokens * round_up(m.hidden, LANES));
    qkv = w.qkv.floats(tokens * qkv_stride());
    added = w.added.floats(tokens * round_up(m.hidden, LANES));
    shared_hidden = w.hidden.floats(3 * tokens * rank_stride(max_rank));
    auto inputs = [&](Buffer& buffer, long width, long rows) {
        long bytes = input_bytes(width, half);
        return Inputs{buffer.need((size_t)(bytes * rows)), bytes, half};
    };
    normed = inputs(w.normed, m.hidden, tokens);
    attended = inputs(w.attended, q_width, tokens);
    active = inputs(w.active, m.intermediate, tokens);
    kept = inputs(w.kept, m.hidden, most(1, batch.kept));
    size_t phases = (size_t)(6 * m.n_layers + 1);
    if (w.counters.size() != phases) w.counters = std::vector<std::atomic<long>>(phases);
    for (auto& counter : w.counters) counter.store(0, std::memory_order_relaxed);
}

// Room of one thread, taken by the thread itself.
inline void Step::prepare_private(Private& p) {
    long widest = most(most(m.hidden, q_width), m.intermediate);
    p.rows.need((size_t)most(4 * round_up(widest, 32) * 4, 4 * max_rank + 64));
    p.y.floats(CHUNK_TOKENS * CHUNK), p.y2.floats(CHUNK_TOKENS * CHUNK);
    p.hidden.floats(3 * ALONE_RANKS * rank_stride(max_rank));
    p.inputs.need((size_t)(ALONE * input_bytes(m.hidden, half)));
    long queries = queries_of(m), results = queries * result_size(m);
    p.queries.floats(queries * m.head_dim), p.scores.floats(queries * BLOCK), p.weights.floats(queries * BLOCK);
    p.page.floats(PAGE * round_up(padded_dim(m), 2 * LANES)), p.sum.floats(results), p.out.floats(results);
}

}  // namespace trimtab
