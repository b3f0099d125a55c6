// Barriers in shared memory, copies of boxes and products of a warpgroup on the host (included by
// ptx.cuh).
#pragma once

namespace emulated {

// An mbarrier, in its 8 bytes.
struct Phase {
  int32_t bytes_missing;
  uint16_t threads_missing;
  uint16_t threads : 15;
  uint16_t parity : 1;
};
static_assert(sizeof(Phase) == 8);

inline Phase& phase_of(uint64_t* barrier) {
  return *reinterpret_cast<Phase*>(shared_at(rome_fast::shared_address(barrier), sizeof(Phase)));
}

inline void end_if_complete(Phase& phase) {
  if (phase.threads_missing != 0 || phase.bytes_missing != 0) return;
  phase.threads_missing = phase.threads;
  phase.parity ^= 1;
}

// Zeros that this thread has written and not fenced yet: nobody else needs to see them.
inline std::vector<void*> unfenced_zeros[kMaxThreads];

}  // namespace emulated

namespace rome_fast {

using Barrier = uint64_t;

inline void init_barrier(Barrier* barrier, int arrivals) {
  emulated::Phase& phase = emulated::phase_of(barrier);
  phase.bytes_missing = 0;
  phase.threads = phase.threads_missing = arrivals;
  phase.parity = 0;
}

inline void zero_16_bytes(void* shared) {
  emulated::shared_at(shared_address(shared), 16);
  emulated::unfenced_zeros[emulated::thread_in_block()].push_back(shared);
}

inline void fence_async_proxy() {
  auto& mine = emulated::unfenced_zeros[emulated::thread_in_block()];
  for (void* at : mine) std::memset(at, 0, 16);
  mine.clear();
}

inline void arrive_expecting(Barrier* barrier, uint32_t bytes) {
  emulated::Phase& phase = emulated::phase_of(barrier);
  if (phase.threads_missing == 0) emulated::fail("more arrivals than a barrier expects");
  phase.bytes_missing += bytes;
  --phase.threads_missing;
  emulated::end_if_complete(phase);
}

inline void arrive(Barrier* barrier) { arrive_expecting(barrier, 0); }

inline void wait_for_phase(Barrier* barrier, uint32_t parity) {
  emulated::Phase& phase = emulated::phase_of(barrier);
  emulated::wait_until([&] { return phase.parity != parity; });
}

// Swizzle of 128 bytes: bits 4-6 of a shared address are exchanged by bits 7-9.
inline void copy_box(void* shared, const CUtensorMap* map, int col, int row, Barrier* barrier) {
  const uint32_t start = shared_address(shared);
  if (start % 1024 != 0) emulated::fail("a swizzled box begins at a multiple of 1024 bytes");
  for (uint32_t r = 0; r < map->box_rows; ++r) {
    for (uint32_t c = 0; c < map->box_cols; ++c) {
      const int64_t from_row = int64_t(row) + r, from_col = int64_t(col) + c;
      const bool inside = from_row >= 0 && from_row < int64_t(map->rows) && from_col >= 0 &&
                          from_col < int64_t(map->cols);
      const uint32_t piece = (c / 8) ^ (r % 8);
      unsigned char* to = emulated::shared_at(start + r * 128 + piece * 16 + c % 8 * 2, 2);
      std::memset(to, 0, 2);
      if (inside) std::memcpy(to, map->base + from_row * map->pitch + from_col * 2, 2);
    }
  }
  emulated::Phase& phase = emulated::phase_of(barrier);
  phase.bytes_missing -= map->box_rows * map->box_cols * 2;
  emulated::end_if_complete(phase);
}

template <int kRegisters>
void give_registers_back() {
  emulated::exchange(char(0), emulated::thread_in_block() / 128 * 128, 128);
}

template <int kRegisters>
void take_registers() {
  emulated::exchange(char(0), emulated::thread_in_block() / 128 * 128, 128);
}

}  // namespace rome_fast

namespace emulated {

// An operand in the canonical MN-major layout of 128-byte swizzle: 64 elements of M or N in 128
// bytes, the next 64 a leading offset on; 8 of K 128 bytes apart, the next 8 a stride offset on.
// Where the swizzle puts an element is a matter of its whole address.
template <class Key>
float operand_at(uint64_t descriptor, int mn, int k) {
  const auto field = [&](int bit) {
    return static_cast<uint32_t>(descriptor >> bit & 0x3fff) << 4;
  };
  if (descriptor >> 62 != 1 || (descriptor >> 49 & 7) != 0) {
    fail("only swizzles of 128 bytes are emulated");
  }
  const uint32_t address =
      field(0) + mn / 64 * field(16) + mn % 64 * 2 + k / 8 * field(32) + k % 8 * 128;
  const uint32_t swizzled = address ^ ((address >> 7 & 7) << 4);
  uint16_t bits;
  std::memcpy(&bits, shared_at(swizzled, 2), 2);
  return value_of<Key>(bits);
}

struct Product {
  uint64_t a, b;
  bool accumulate;
  void (*read)(const Product&, struct Operands&);
};

struct Operands {
  float a[64][16];
  float b[256][16];
};

// What a thread has asked for and not waited for. Its registers are NaN meanwhile.
struct Products {
  bool fenced = false;
  float sum[128];
  std::vector<Product> open;
  std::deque<std::vector<Product>> committed;
};

inline Products products[kMaxThreads];
inline Operands operands[kMaxThreads / 128];

template <class Key>
void read_operands(const Product& product, Operands& to) {
  for (int k = 0; k < 16; ++k) {
    for (int i = 0; i < 64; ++i) to.a[i][k] = operand_at<Key>(product.a, i, k);
    for (int i = 0; i < 256; ++i) to.b[i][k] = operand_at<Key>(product.b, i, k);
  }
}

// All 128 threads: the first one reads, each computes what it holds.
inline void carry_out(const Product& product, float (&sum)[128]) {
  const unsigned first = thread_in_block() / 128 * 128, thread = thread_in_block() - first;
  const Product* all = exchange(product, first, 128);
  if (all[0].a != product.a || all[0].b != product.b || all[0].accumulate != product.accumulate) {
    fail("threads of a warpgroup ask for different products");
  }
  Operands& both = operands[first / 128];
  if (thread == 0) product.read(product, both);
  exchange(char(0), first, 128);
  for (int i = 0; i < 128; ++i) {
    const float* a = both.a[thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8];
    const float* b = both.b[i / 4 * 8 + thread % 4 * 2 + i % 2];
    double products[16];
    for (int k = 0; k < 16; ++k) products[k] = double(a[k]) * b[k];
    sum[i] = add_products(product.accumulate ? sum[i] : 0.0f, products);
  }
}

}  // namespace emulated

namespace rome_fast {

inline void fence_products() { emulated::products[emulated::thread_in_block()].fenced = true; }

inline void commit_products() {
  emulated::Products& mine = emulated::products[emulated::thread_in_block()];
  mine.committed.push_back(std::move(mine.open));
  mine.open.clear();
}

template <int kPending>
void wait_for_products(float (&sum)[128]) {
  emulated::Products& mine = emulated::products[emulated::thread_in_block()];
  for (; mine.committed.size() > kPending; mine.committed.pop_front()) {
    for (const emulated::Product& product : mine.committed.front()) {
      emulated::carry_out(product, mine.sum);
    }
  }
  if (!mine.committed.empty()) return;
  std::memcpy(sum, mine.sum, sizeof(sum));
  mine.fenced = false;
}

template <class Key>
void multiply_m64n256k16(float (&sum)[128], uint64_t a, uint64_t b, bool accumulate) {
  emulated::Products& mine = emulated::products[emulated::thread_in_block()];
  if (!mine.fenced) emulated::fail("wgmma without a fence");
  if (mine.open.empty() && mine.committed.empty()) {
    std::memcpy(mine.sum, sum, sizeof(sum));
    std::memset(sum, 0xff, sizeof(sum));
  }
  mine.open.push_back({a, b, accumulate, &emulated::read_operands<Key>});
}

}  // namespace rome_fast
