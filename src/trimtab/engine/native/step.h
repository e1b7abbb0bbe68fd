// One step: the phases of a forward, which all threads walk through together.
#pragma once

#include <cstdlib>
#include <vector>

#include "adapters.h"
#include "attention.h"
#include "team.h"

namespace trimtab {

constexpr long ALONE = 8;         // up to this many tokens every thread normalises all by itself, without a barrier
constexpr long ALONE_RANKS = 64;  // likewise for the adapters' x Aᵀ
constexpr long CHUNK = 64;        // outputs a thread takes at a time, at most
constexpr long CHUNK_TOKENS = TOKEN_BLOCK;

struct Buffer {
    char* data = nullptr;
    size_t size = 0;

    Buffer() = default;
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() { free(data); }
    char* need(size_t bytes) {
        if (bytes > size) {
            free(data);
            size = (bytes + bytes / 4 + 4095) / 4096 * 4096;
            data = (char*)aligned_alloc(4096, size);
            memset(data, 0, size);  // the ends of input rows stay zero
        }
        return data;
    }
    float* floats(long n) { return (float*)need(sizeof(float) * (size_t)n); }
};

// What one thread needs for itself.
struct Private {
    Buffer rows, y, y2, hidden, inputs, queries, scores, weights, page, sum, out;
};

struct Workspace {
    OpenMP openmp;
    Pool pool;
    Team team;
    Buffer residual, normed, qkv, attended, active, added, kept, hidden, partial;
    std::vector<Private*> privates;
    std::vector<Run> runs, kept_runs;
    std::vector<Conditions> conditions, kept_conditions;
    std::vector<long> positions, kept_tokens;
    std::vector<int32_t> span_of;
    std::vector<AttentionTask> tasks, merges;
    std::vector<std::atomic<long>> counters;

    ~Workspace() {
        for (auto p : privates) delete p;
    }
};

// Linear layers with the same input, and their numbers among all, by which deltas are found.
struct Group {
    const Linear* linear[3];
    long number[3];
    int count;
};

// Rows that go through linear layers together, and which of them have an adapter.
struct Rows {
    Inputs x;
    long count;
    const std::vector<Run>* runs;
    const Conditions* conditions;
};

enum Target { STORE, ADD, ACTIVATE, LOGITS };

class Step {
  public:
    Step(const Model& model, const Batch& batch, Workspace& space)
        : m(model), batch(batch), w(space), half(model.bf16 != 0), tokens(batch.tokens) {}

    void prepare();
    void plan_attention();  // when it is known how many threads there are
    void run(int id);

  private:
    const Model& m;
    const Batch& batch;
    Workspace& w;
    const bool half;
    const long tokens;
    long max_rank = 0, q_width = 0, kv_width = 0;
    Inputs normed, attended, active, kept;
    float *residual = nullptr, *qkv = nullptr, *added = nullptr, *shared_hidden = nullptr;

    const Delta* delta(long number, long slot) const {
        const Delta* d = m.deltas ? m.deltas + number * m.slots + slot : nullptr;
        return d && d->a ? d : nullptr;
    }
    long qkv_stride() const { return round_up(q_width + 2 * kv_width, LANES); }
    long hidden_stride() const { return round_up(m.hidden, LANES); }
    void share(int id, long n, long& from, long& to) const { from = n * id / w.team.size, to = n * (id + 1) / w.team.size; }

    // plan.h, linear.h and kernels.cpp
    void plan_tokens();
    void prepare_private(Private& p);
    static void extend(std::vector<Run>& runs, long slot, long from, long n);

    const float* low_ranks(int id, const Group& group, const Rows& rows);
    void linear(int id, long phase, const Group& group, const Rows& rows, Target target, float* y, long y_stride);
    void chunk(int id, const Group& group, int which, const Rows& rows, const float* hidden, long t0, long t1, long from,
               long to, float* y);
    void deliver(Target target, const float* from, const float* gate, long n, float* y, char* input, long column);

    void embed(int id);
    void normalise(const float* x, const float* weight, char* to);
    Inputs normalised(int id, const float* weight, const float* out_norm);
    void place(int id, const Layer& layer);
    void heads_in_place(float* x, long heads, const float* norm, long rope, long position);
    void put_in_cache(const float* x, void* cache, long token);
    void attention(int id, long phase, const Layer& layer);
    void layer(int id, long index);
    void logits(int id, long phase);
};

}  // namespace trimtab
