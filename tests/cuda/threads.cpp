// The threads of a block as coroutines.

#include "emulate.h"

#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <ucontext.h>
#include <vector>

Dimensions threadIdx, blockIdx, blockDim, gridDim;

namespace {

constexpr size_t STACK_BYTES = 64 * 1024;
constexpr unsigned WARP_LANES = 32;

struct Barrier {
    unsigned arrived = 0;
    unsigned generation = 0;
};

struct Thread {
    std::vector<char> stack = std::vector<char>(STACK_BYTES);
    ucontext_t context;
    jmp_buf at;
    bool started = false, done = false;
    // Whether it is waiting, at what and for which generation of it.
    Barrier* barrier = nullptr;
    unsigned generation = 0;
    // To the others of its warp; two of them, so that one barrier is enough: who is ahead writes the other one.
    struct {
        uint64_t word;
        unsigned fragments[6];
    } given[2] = {};
    unsigned exchanges = 0;
};

std::vector<Thread*> threads;
unsigned n_threads, current;
Barrier block_barrier;
std::vector<Barrier> warp_barriers;
jmp_buf scheduler;
const std::function<void()>* body;
std::mt19937 order(1);

void pause() {
    if (_setjmp(threads[current]->at) == 0) _longjmp(scheduler, 1);
}

// A coroutine is made once and does the work of one thread after the other.
void enter() {
    for (;;) {
        (*body)();
        threads[current]->done = true;
        pause();
    }
}

void wait_for(Barrier& barrier, unsigned members) {
    if (++barrier.arrived == members) {
        barrier.arrived = 0;
        ++barrier.generation;
        return;
    }
    Thread& thread = *threads[current];
    thread.barrier = &barrier;
    thread.generation = barrier.generation;
    pause();
}

void resume(unsigned index) {
    current = index;
    threadIdx = {index % blockDim.x, index / blockDim.x % blockDim.y, index / (blockDim.x * blockDim.y)};
    Thread& thread = *threads[index];
    if (_setjmp(scheduler) != 0) return;
    if (thread.started) _longjmp(thread.at, 1);
    thread.started = true;
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.data();
    thread.context.uc_stack.ss_size = thread.stack.size();
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, enter, 0);
    setcontext(&thread.context);
}

void run_block() {
    block_barrier = Barrier();
    warp_barriers.assign((n_threads + WARP_LANES - 1) / WARP_LANES, Barrier());
    for (unsigned index = 0; index < n_threads; ++index) {
        Thread& thread = *threads[index];
        thread.done = false;
        thread.barrier = nullptr;
        thread.exchanges = 0;
    }
    for (unsigned left = n_threads; left > 0;) {
        // An odd step meets all of a power of two.
        const unsigned first = order(), step = order() | 1;
        bool moved = false;
        for (unsigned turn = 0; turn < n_threads; ++turn) {
            const unsigned index = (first + turn * step) % n_threads;
            Thread& thread = *threads[index];
            if (thread.done || (thread.barrier && thread.barrier->generation == thread.generation)) continue;
            thread.barrier = nullptr;
            resume(index);
            moved = true;
            if (thread.done) --left;
        }
        if (!moved) {
            std::fprintf(stderr, "emulator: %u threads wait for others that never come\n", left);
            std::abort();
        }
    }
}

}  // namespace

unsigned lane() { return current % WARP_LANES; }

void __syncthreads() { wait_for(block_barrier, n_threads); }

namespace {

// The other threads of the warp have given theirs, too. Returns which of the two they gave.
unsigned met(unsigned slot) {
    const unsigned warp = current / WARP_LANES;
    wait_for(warp_barriers[warp], std::min(WARP_LANES, n_threads - warp * WARP_LANES));
    return slot;
}

const Thread& neighbour(unsigned lane) { return *threads[current / WARP_LANES * WARP_LANES + lane]; }

unsigned next_slot() { return threads[current]->exchanges++ % 2; }

}  // namespace

void __syncwarp() { met(0); }

uint64_t exchange(uint64_t mine, unsigned from) {
    const unsigned slot = next_slot();
    threads[current]->given[slot].word = mine;
    return neighbour(from).given[met(slot)].word;
}

void emulated_mma(
    float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, const std::function<float(unsigned)>& widen) {
    const auto half = [&](unsigned pair, unsigned which) { return widen((which ? pair >> 16 : pair) & 0xffff); };
    unsigned slot = next_slot();
    auto& mine = threads[current]->given[slot].fragments;
    std::copy(a, a + 4, mine);
    mine[4] = b0;
    mine[5] = b1;
    slot = met(slot);
    float left[16][16], right[16][8];
    for (unsigned from = 0; from < WARP_LANES; ++from) {
        const unsigned g = from / 4, t = from % 4;
        const auto& theirs = neighbour(from).given[slot].fragments;
        for (unsigned i = 0; i < 2; ++i) {
            left[g][2 * t + i] = half(theirs[0], i);
            left[g + 8][2 * t + i] = half(theirs[1], i);
            left[g][2 * t + 8 + i] = half(theirs[2], i);
            left[g + 8][2 * t + 8 + i] = half(theirs[3], i);
            right[2 * t + i][g] = half(theirs[4], i);
            right[2 * t + 8 + i][g] = half(theirs[5], i);
        }
    }
    const unsigned g = lane() / 4, t = lane() % 4;
    for (unsigned i = 0; i < 4; ++i) {
        const unsigned row = g + 8 * (i / 2), column = 2 * t + i % 2;
        for (unsigned k = 0; k < 16; ++k) c[i] += left[row][k] * right[k][column];
    }
}

void launch(
    Dimensions grid, Dimensions block, const std::function<void()>& before, const std::function<void()>& thread) {
    gridDim = grid;
    blockDim = block;
    n_threads = block.x * block.y * block.z;
    if ((n_threads & (n_threads - 1)) != 0) {
        std::fprintf(stderr, "emulator: %u threads are no power of two\n", n_threads);
        std::abort();
    }
    body = &thread;
    while (threads.size() < n_threads) threads.push_back(new Thread);
    for (unsigned z = 0; z < grid.z; ++z)
        for (unsigned y = 0; y < grid.y; ++y)
            for (unsigned x = 0; x < grid.x; ++x) {
                blockIdx = {x, y, z};
                before();
                run_block();
            }
}
