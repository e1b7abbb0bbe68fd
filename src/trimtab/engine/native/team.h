// Threads that walk through the phases of one step together.
#pragma once

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "simd.h"

namespace trimtab {

static inline void breathe() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// A barrier that spins for some microseconds and then gives the core away: the others may wait for it.
class Team {
  public:
    int size = 1;

    void wait() {
        if (size == 1) return;
        unsigned turn = turn_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
            arrived_.store(0, std::memory_order_relaxed);
            turn_.store(turn + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; turn_.load(std::memory_order_acquire) == turn; spins++)
            if (spins < 2000)
                breathe();
            else
                std::this_thread::yield();
    }

  private:
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<unsigned> turn_{0};
};

// libgomp's entry points as PyTorch has loaded them, so that both share one pool; null where it has not.
struct OpenMP {
    void (*parallel)(void (*)(void*), void*, unsigned, unsigned) = nullptr;
    int (*threads)() = nullptr;
    int (*thread)() = nullptr;
};

// Threads of our own, asleep between steps, for where PyTorch runs on something else than libgomp.
class Pool {
  public:
    ~Pool() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            stop_ = true;
        }
        wake_.notify_all();
        for (auto& thread : threads_) thread.join();
    }

    template <class Work>
    void run(int n, Work work) {
        while ((int)threads_.size() < n - 1) {
            int id = (int)threads_.size() + 1;
            unsigned seen = round_;
            threads_.emplace_back([this, id, seen] { live(id, seen); });
        }
        {
            std::lock_guard<std::mutex> lock(mutex_);
            call_ = [](void* w, int id) { (*(Work*)w)(id); };
            work_ = &work;
            wanted_ = n;
            left_ = n - 1;
            round_++;
        }
        wake_.notify_all();
        work(0);
        std::unique_lock<std::mutex> lock(mutex_);
        done_.wait(lock, [this] { return left_ == 0; });
    }

  private:
    void live(int id, unsigned seen) {
        std::unique_lock<std::mutex> lock(mutex_);
        while (true) {
            wake_.wait(lock, [&] { return stop_ || round_ != seen; });
            if (stop_) return;
            seen = round_;
            if (id >= wanted_) continue;
            auto call = call_;
            void* work = work_;
            lock.unlock();
            call(work, id);
            lock.lock();
            if (--left_ == 0) done_.notify_one();
        }
    }

    std::vector<std::thread> threads_;
    std::mutex mutex_;
    std::condition_variable wake_, done_;
    void (*call_)(void*, int) = nullptr;
    void* work_ = nullptr;
    int wanted_ = 0, left_ = 0;
    unsigned round_ = 0;
    bool stop_ = false;
};

}  // namespace trimtab
