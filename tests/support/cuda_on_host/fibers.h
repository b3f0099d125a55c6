// The threads of a CUDA block on the host: fibers of one thread, switched where they wait.
//
// Blocks run one after another and fibers in turn, both in an order that a seed shuffles, so that
// what depends on an order that CUDA does not promise shows. Shared memory is poisoned before each
// block, and what lies behind it is checked after.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <utility>
#include <vector>

namespace emulated {

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr Dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// Of the fiber that runs.
extern Dim3 thread_idx, block_idx, block_dim, grid_dim;

// Runs body once for every thread of every block. Throws std::runtime_error where a block waits
// for ever, writes behind its shared memory, or body throws.
void run_grid(Dim3 grid, Dim3 block, size_t shared_bytes, const std::function<void()>& body);

// Another seed, another order of blocks and fibers; 0 keeps them in order.
void set_seed(uint64_t seed);

// Lets other fibers run until the predicate holds. It is called whenever it is this one's turn.
void wait_until(const std::function<bool()>& predicate);

// Ends the launch with std::runtime_error.
[[noreturn]] void fail(const char* what);

unsigned thread_in_block();
void* shared_base();  // aligned to 1024 bytes
size_t shared_size();

// A barrier of n_threads consecutive threads; of a whole block it waits for no thread that has
// returned. `mine` is handed to all: the vector holds every thread's, in thread order, until the
// caller's next meeting of the same threads.
const std::vector<char>& meet(const void* mine, size_t size, unsigned first_thread,
                              unsigned n_threads);

template <class T>
const T* exchange(const T& mine, unsigned first_thread, unsigned n_threads) {
  return reinterpret_cast<const T*>(meet(&mine, sizeof(T), first_thread, n_threads).data());
}

}  // namespace emulated
