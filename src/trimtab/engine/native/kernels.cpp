// A forward of a Llama-shaped decoder over paged sequences, on a CPU. The caller describes the model in plain structs
// (model.h) that point into the tensors it already has; nothing is copied or packed.
#include "linear.h"
#include "plan.h"

namespace trimtab {

void Step::embed(int id) {
    long from, to;
    share(id, tokens, from, to);
    const float scale = m.embedding_scale;
    for (long t = from; t < to; t++) {
        long row = (long)batch.ids[t] * m.hidden;
        float* out = residual + t * hidden_stride();
        for (long j = 0; j < m.hidden; j += LANES) {
            long n = m.hidden - j;
            vec v = half ? load_part((const bf16*)m.embedding + row + j, n)
                         : load_part((const float*)m.embedding + row + j, n);
            if (scale != 1.0f) v = half ? rounded(v * scale) : v * scale;
            store(out + j, v);
        }
    }
}

// 1 / root mean square of n numbers.
static float inverse_rms(const float* x, long n, float eps) {
    vec squares = {};
    for (long j = 0; j < n; j += LANES) {
        vec v = load_part(x + j, n - j);
        squares += v * v;
    }
    return 1.0f / std::sqrt(sum(squares) / (float)n + eps);
}

void Step::normalise(const float* x, const float* weight, char* to) {
    float scale = inverse_rms(x, m.hidden, m.norm_eps);
    for (long j = 0; j < m.hidden; j += LANES) {
        long n = m.hidden - j;
        put_input_part(to, j, load_part(x + j, n) * scale * load_part(weight + j, n), n, half);
    }
}

// The residual stream, normalised; before that, what the last layer added to it, if that has a norm of its own.
Inputs Step::normalised(int id, const float* weight, const float* out_norm) {
    const bool alone = tokens <= ALONE && !out_norm;
    Inputs to = alone ? Inputs{w.privates[id]->inputs.data, input_bytes(m.hidden, half), half} : normed;
    long from = 0, end = tokens;
    if (!alone) share(id, tokens, from, end);
    for (long t = from; t < end; t++) {
        float* x = residual + t * hidden_stride();
        if (out_norm) {
            const float* y = added + t * hidden_stride();
            float scale = inverse_rms(y, m.hidden, m.norm_eps);
            for (long j = 0; j < m.hidden; j += LANES) {
                long n = m.hidden - j;
                store(x + j, load(x + j) + load_part(y + j, n) * scale * load_part(out_norm + j, n));
            }
        }
        if (weight) normalise(x, weight, to.row(t));
    }
    if (!alone) w.team.wait();
    return to;
}

void Step::heads_in_place(float* x, long heads, const float* norm, long rope, long position) {
    const long d = m.head_dim;
    for (long h = 0; h < heads; h++, x += d) {
        if (norm) {
            float scale = inverse_rms(x, d, m.norm_eps);
            for (long j = 0; j < d; j += LANES)
                store_part(x + j, load_part(x + j, d - j) * scale * load_part(norm + j, d - j), d - j);
        }
        if (rope < 0) continue;
        const long n = m.rope_dims[rope];
        const float *cosine = m.cosines[rope] + position * n, *sine = m.sines[rope] + position * n;
        for (long j = 0; j < n; j += LANES) {
            vec a = load_part(x + j, n - j), b = load_part(x + n + j, n - j);
            vec c = load_part(cosine + j, n - j), s = load_part(sine + j, n - j);
            store_part(x + j, a * c - b * s, n - j);
            store_part(x + n + j, b * c + a * s, n - j);
        }
    }
}

void Step::put_in_cache(const float* x, void* cache, long token) {
    const long d = m.head_dim, position = w.positions[token];
    const long page = batch.pages[batch.first_page[w.span_of[token]] + position / PAGE];
    for (long h = 0; h < m.kv_heads; h++, x += d) {
        long at = ((page * m.kv_heads + h) * PAGE + position % PAGE) * d;
        for (long j = 0; j < d; j += LANES) {
            vec v = load_part(x + j, d - j);
            if (half)
                store_part((bf16*)cache + at + j, v, d - j);
            else
                store_part((float*)cache + at + j, v, d - j);
        }
    }
}

// Head norms and RoPE of the queries and keys; keys and values go into the cache.
void Step::place(int id, const Layer& layer) {
    long from, to;
    share(id, tokens, from, to);
    for (long t = from; t < to; t++) {
        float* row = qkv + t * qkv_stride();
        heads_in_place(row, m.heads, layer.q_norm, layer.rope, w.positions[t]);
        heads_in_place(row + q_width, m.kv_heads, layer.k_norm, layer.rope, w.positions[t]);
        put_in_cache(row + q_width, layer.keys, t);
        put_in_cache(row + q_width + kv_width, layer.values, t);
    }
}

void Step::attention(int id, long phase, const Layer& layer) {
    Private& p = *w.privates[id];
    AttentionScratch s = {p.queries.data, (float*)p.scores.data, p.weights.data,
                          p.page.data,    (float*)p.sum.data,    (float*)p.out.data};
    const long tasks = (long)w.tasks.size(), merges = (long)w.merges.size();
    for (long i; (i = w.counters[phase].fetch_add(1, std::memory_order_relaxed)) < tasks;)
        if (half)
            attend<bf16>(m, layer, w.tasks[i], qkv, qkv_stride(), s, attended);
        else
            attend<float>(m, layer, w.tasks[i], qkv, qkv_stride(), s, attended);
    if (!merges) return;
    w.team.wait();
    for (long i; (i = w.counters[phase + 1].fetch_add(1, std::memory_order_relaxed)) < merges;)
        merge_blocks(m, w.merges[i], s, attended);
}

void Step::layer(int id, long index) {
    const Layer& l = m.layers[index];
    const float* last_norm = index ? m.layers[index - 1].mlp_out_norm : nullptr;
    const long phase = 6 * index, number = 7 * index;
    auto rows = [&](const Inputs& x) { return Rows{x, tokens, &w.runs, w.conditions.data()}; };
    linear(id, phase, Group{{&l.q, &l.k, &l.v}, {number, number + 1, number + 2}, 3},
           rows(normalised(id, l.input_norm, last_norm)), STORE, qkv, qkv_stride());
    w.team.wait();
    place(id, l);
    w.team.wait();
    attention(id, phase + 1, l);
    w.team.wait();
    linear(id, phase + 3, Group{{&l.o}, {number + 3}, 1}, rows(attended), l.attention_out_norm ? STORE : ADD,
           l.attention_out_norm ? added : residual, hidden_stride());
    w.team.wait();
    linear(id, phase + 4, Group{{&l.gate, &l.up}, {number + 4, number + 5}, 2},
           rows(normalised(id, l.mlp_norm, l.attention_out_norm)), ACTIVATE, nullptr, 0);
    w.team.wait();
    linear(id, phase + 5, Group{{&l.down}, {number + 6}, 1}, rows(active), l.mlp_out_norm ? STORE : ADD,
           l.mlp_out_norm ? added : residual, hidden_stride());
    w.team.wait();
}

void Step::logits(int id, long phase) {
    if (const float* last_norm = m.layers[m.n_layers - 1].mlp_out_norm) normalised(id, nullptr, last_norm);
    if (!batch.kept) return;
    long from, to;
    share(id, batch.kept, from, to);
    for (long i = from; i < to; i++) normalise(residual + w.kept_tokens[i] * hidden_stride(), m.final_norm, kept.row(i));
    w.team.wait();
    linear(id, phase, Group{{m.head}, {7 * m.n_layers}, 1},
           Rows{kept, batch.kept, &w.kept_runs, w.kept_conditions.data()}, LOGITS, batch.logits, m.head->d_out);
}

void Step::run(int id) {
    prepare_private(*w.privates[id]);
    embed(id);
    w.team.wait();
    for (long i = 0; i < m.n_layers; i++) layer(id, i);
    logits(id, 6 * m.n_layers);
}

// What depends on how many threads there are; called by one of them.
static void start(Step& step, Workspace& w, int size) {
    w.team.size = size;
    while ((int)w.privates.size() < size) w.privates.push_back(new Private);
    step.plan_attention();
}

struct Call {
    Step* step;
    Workspace* space;
    std::atomic<int> state{0};
};

// One thread of a parallel region that PyTorch's libgomp runs. It may give fewer threads than asked for.
static void work(void* data) {
    Call& call = *(Call*)data;
    OpenMP& openmp = call.space->openmp;
    int id = openmp.thread();
    if (id == 0) {
        start(*call.step, *call.space, openmp.threads());
        call.state.store(1, std::memory_order_release);
    }
    for (int spins = 0; !call.state.load(std::memory_order_acquire); spins++)
        if (spins < 2000)
            breathe();
        else
            std::this_thread::yield();
    call.step->run(id);
}

}  // namespace trimtab

extern "C" {

using namespace trimtab;

// Sizes of the structs, by which the caller checks that it describes them alike.
void trimtab_sizes(int64_t* sizes) {
    sizes[0] = sizeof(Linear), sizes[1] = sizeof(Delta), sizes[2] = sizeof(Layer);
    sizes[3] = sizeof(Model), sizes[4] = sizeof(Batch);
}

// What the library was compiled for.
const char* trimtab_arithmetic() {
#if defined(TT_DOT)
    return "avx512_bf16";
#elif defined(TT_AVX512)
    return "avx512";
#else
    return "portable";
#endif
}

// The three pointers are libgomp's GOMP_parallel, omp_get_num_threads and omp_get_thread_num, or all null.
void* trimtab_workspace(void* parallel, void* threads, void* thread) {
    Workspace* space = new Workspace;
    if (parallel && threads && thread)
        space->openmp = {(void (*)(void (*)(void*), void*, unsigned, unsigned))parallel, (int (*)())threads,
                         (int (*)())thread};
    return space;
}

void trimtab_free(void* space) { delete (Workspace*)space; }

// One linear layer on one thread, for measuring: rows of x are d_in numbers of the weight's dtype, y is (rows, d_out).
void trimtab_product(const Linear* linear, void* x, int64_t rows, float* y) {
    const bool half = linear->kind != W_F32;
    const long d_in = linear->d_in, d_out = linear->d_out;
    const Inputs inputs = {x, d_in * (half ? (long)sizeof(Input) : 4), half};
    static thread_local Buffer decoded;
    char* space = decoded.need((size_t)(ROWS * 4 * round_up(d_in, 32)));
    for (long o = 0; o < d_out; o += CHUNK)
        product(*linear, inputs, 0, rows, o, least(o + CHUNK, d_out), y + o, d_out, space);
}

void trimtab_forward(void* space, const Model* model, const Batch* batch) {
    Workspace& w = *(Workspace*)space;
    Step step(*model, *batch, w);
    step.prepare();
    const int threads = (int)batch->threads;
    if (threads > 1 && w.openmp.parallel) {
        Call call{&step, &w};
        w.openmp.parallel(work, &call, (unsigned)threads, 0);
        return;
    }
    start(step, w, threads > 1 ? threads : 1);
    if (threads > 1)
        w.pool.run(threads, [&](int id) { step.run(id); });
    else
        step.run(0);
}
}
