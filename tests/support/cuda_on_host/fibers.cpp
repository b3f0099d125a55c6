#include "fibers.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <exception>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>

namespace emulated {

Dim3 thread_idx, block_idx, block_dim, grid_dim;

namespace {

constexpr size_t kStackBytes = 256 << 10;
constexpr size_t kGuardBytes = 4096;
constexpr unsigned char kPoison = 0xff;  // a NaN in every floating-point type
constexpr unsigned char kGuard = 0xa5;
constexpr int kIdleRounds = 4;  // of no progress: some predicates hold only when asked again
// Without a barrier and without a thread that returns: a loop over a flag that nobody will write.
constexpr int kLoopRounds = 200'000;

struct Fiber {
  ucontext_t context;
  void* stack = nullptr;
  Dim3 thread_idx;
  bool done = false;
  const std::function<bool()>* predicate = nullptr;
};

struct Meeting {
  std::vector<char> values[2];
  unsigned arrived = 0;
  size_t size = 0;
  uint64_t generation = 0;
};

struct Block {
  std::vector<Fiber> fibers;
  std::map<std::pair<unsigned, unsigned>, Meeting> meetings;
  std::vector<unsigned char> memory;
  unsigned char* shared = nullptr;
  size_t shared_bytes = 0;
  unsigned running = 0, alive = 0;
  int rounds = 0;  // since a barrier was passed or a thread returned
  std::exception_ptr error;
  const std::function<void()>* body = nullptr;
  ucontext_t scheduler;
};

Block block;
uint64_t seed = 0;
std::mt19937_64 random_bits;
std::vector<void*> stacks;  // kept for the next block

void* stack_of(size_t fiber) {
  while (stacks.size() <= fiber) {
    void* stack =
        mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (stack == MAP_FAILED) throw std::runtime_error("no memory for a fiber");
    stacks.push_back(stack);
  }
  return stacks[fiber];
}

void shuffle(std::vector<unsigned>& order) {
  std::iota(order.begin(), order.end(), 0u);
  if (seed != 0) std::shuffle(order.begin(), order.end(), random_bits);
}

void run_fiber() {
  try {
    (*block.body)();
  } catch (...) {
    block.error = std::current_exception();
  }
  Fiber& fiber = block.fibers[block.running];
  fiber.done = true;
  --block.alive;
  block.rounds = 0;
  swapcontext(&fiber.context, &block.scheduler);
}

void start(unsigned index) {
  Fiber& fiber = block.fibers[index];
  const unsigned x = block_dim.x, y = block_dim.y;
  fiber.thread_idx = Dim3(index % x, index / x % y, index / (x * y));
  fiber.stack = stack_of(index);
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, run_fiber, 0);
}

// Runs it until it waits or returns; false where it still waits for the same.
bool resume(unsigned index) {
  Fiber& fiber = block.fibers[index];
  block.running = index;
  thread_idx = fiber.thread_idx;
  if (fiber.predicate != nullptr && !(*fiber.predicate)()) return false;
  fiber.predicate = nullptr;
  swapcontext(&block.scheduler, &fiber.context);
  if (block.error) std::rethrow_exception(block.error);
  return true;
}

void prepare_shared(size_t bytes) {
  block.memory.assign(kGuardBytes + 1024 + bytes + kGuardBytes, kGuard);
  const auto address = reinterpret_cast<uintptr_t>(block.memory.data()) + kGuardBytes;
  block.shared = block.memory.data() + kGuardBytes + (1024 - address % 1024) % 1024;
  block.shared_bytes = bytes;
  std::memset(block.shared, kPoison, bytes);
}

void check_guard() {
  const auto written = [](unsigned char byte) { return byte != kGuard; };
  const unsigned char* begin = block.memory.data();
  if (std::any_of(begin, static_cast<const unsigned char*>(block.shared), written)) {
    throw std::runtime_error("a block wrote before its shared memory");
  }
  const unsigned char* behind = block.shared + block.shared_bytes;
  if (std::any_of(behind, begin + block.memory.size(), written)) {
    throw std::runtime_error("a block wrote behind its shared memory");
  }
}

[[noreturn]] void stuck() {
  throw std::runtime_error(std::to_string(block.alive) + " of " +
                           std::to_string(block.fibers.size()) +
                           " threads of a block wait for ever");
}

void run_block(size_t shared_bytes, const std::function<void()>& body) {
  const unsigned n = block_dim.x * block_dim.y * block_dim.z;
  block.fibers.assign(n, Fiber());
  block.meetings.clear();
  block.error = nullptr;
  block.alive = n;
  block.rounds = 0;
  block.body = &body;
  prepare_shared(shared_bytes);
  for (unsigned i = 0; i < n; ++i) start(i);
  std::vector<unsigned> order(n);
  for (int idle = 0; block.alive > 0;) {
    shuffle(order);
    bool moved = false;
    for (unsigned i : order) moved |= !block.fibers[i].done && resume(i);
    idle = moved ? 0 : idle + 1;
    if (idle > kIdleRounds || ++block.rounds > kLoopRounds) stuck();
  }
  check_guard();
}

}  // namespace

void set_seed(uint64_t value) {
  seed = value;
  random_bits.seed(value);
}

void run_grid(Dim3 grid, Dim3 block_size, size_t shared_bytes, const std::function<void()>& body) {
  grid_dim = grid;
  block_dim = block_size;
  std::vector<unsigned> order(size_t(grid.x) * grid.y * grid.z);
  shuffle(order);
  for (unsigned i : order) {
    block_idx = Dim3(i % grid.x, i / grid.x % grid.y, i / (grid.x * grid.y));
    run_block(shared_bytes, body);
  }
}

void wait_until(const std::function<bool()>& predicate) {
  if (predicate()) return;
  Fiber& fiber = block.fibers[block.running];
  fiber.predicate = &predicate;
  swapcontext(&fiber.context, &block.scheduler);
}

void fail(const char* what) { throw std::runtime_error(what); }

unsigned thread_in_block() { return block.running; }
void* shared_base() { return block.shared; }
size_t shared_size() { return block.shared_bytes; }

const std::vector<char>& meet(const void* mine, size_t size, unsigned first_thread,
                              unsigned n_threads) {
  Meeting& meeting = block.meetings[{first_thread, n_threads}];
  const uint64_t generation = meeting.generation;
  std::vector<char>& values = meeting.values[generation % 2];
  if (meeting.arrived == 0) {
    meeting.size = size;
    values.assign(size * n_threads, 0);
  }
  if (meeting.size != size) fail("threads that wait for each other wait for different things");
  std::memcpy(values.data() + size * (thread_in_block() - first_thread), mine, size);
  ++meeting.arrived;
  const bool whole_block = n_threads == block.fibers.size();
  wait_until([&] {
    if (meeting.generation != generation) return true;
    if (meeting.arrived < (whole_block ? block.alive : n_threads)) return false;
    meeting.arrived = 0;
    block.rounds = 0;
    ++meeting.generation;
    return true;
  });
  return values;
}

}  // namespace emulated

extern "C" void rome_fast_emulated_seed(uint64_t seed) { emulated::set_seed(seed); }
