// Asynchronous copies and warp-wide products on the host (included by ptx.cuh).
#pragma once

namespace emulated {

struct Copy {
  void* to;
  const void* from;
  int bytes;
};

struct Copies {
  std::vector<Copy> open;
  std::deque<std::vector<Copy>> committed;
};

inline Copies copies[kMaxThreads];

inline void land(const Copy& copy) {
  unsigned char bytes[16] = {};
  std::memcpy(bytes, copy.from, copy.bytes);
  std::memcpy(copy.to, bytes, 16);
}

}  // namespace emulated

namespace rome_fast {

inline void copy_async(void* shared, const void* global, int bytes) {
  shared_address(shared);
  if (reinterpret_cast<uintptr_t>(shared) % 16 != 0 || bytes < 0 || bytes > 16 ||
      reinterpret_cast<uintptr_t>(global) % 16 != 0) {
    emulated::fail("cp.async needs both addresses aligned to 16 bytes");
  }
  std::memset(shared, 0xff, 16);
  emulated::copies[emulated::thread_in_block()].open.push_back({shared, global, bytes});
}

inline void commit_copies() {
  emulated::Copies& mine = emulated::copies[emulated::thread_in_block()];
  mine.committed.push_back(std::move(mine.open));
  mine.open.clear();
}

template <int kPending>
void wait_for_copies() {
  auto& committed = emulated::copies[emulated::thread_in_block()].committed;
  for (; committed.size() > kPending; committed.pop_front()) {
    for (const emulated::Copy& copy : committed.front()) emulated::land(copy);
  }
}

inline void load_matrices_transposed(uint32_t (&out)[4], const void* row) {
  shared_address(row);
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) emulated::fail("ldmatrix needs aligned rows");
  const unsigned lane = emulated::lane();
  const void* const* rows = emulated::of_warp(~0u, row);
  for (int q = 0; q < 4; ++q) {
    const auto element = [&](int i) {
      return static_cast<const uint16_t*>(rows[8 * q + lane % 4 * 2 + i])[lane / 4];
    };
    out[q] = element(0) | static_cast<uint32_t>(element(1)) << 16;
  }
}

}  // namespace rome_fast

namespace emulated {

// sum += a b for the fragments of a warp. a_at(row, k) and b_at(k, col) read them from all lanes'.
template <int kDepth, class A, class B>
void multiply_fragments(float (&sum)[4], const A& a_at, const B& b_at) {
  for (int i = 0; i < 4; ++i) {
    const int row = lane() / 4 + i / 2 * 8;
    const int col = lane() % 4 * 2 + i % 2;
    double products[kDepth];
    for (int k = 0; k < kDepth; ++k) products[k] = double(a_at(row, k)) * b_at(k, col);
    sum[i] = add_products(sum[i], products);
  }
}

struct Fragments {
  uint32_t a[4], b[2];
};

inline const Fragments* meet_fragments(const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  return of_warp(~0u, Fragments{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}});
}

}  // namespace emulated

namespace rome_fast {

template <class Key>
void multiply_m16n8k16(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const emulated::Fragments* lanes = emulated::meet_fragments(a, b);
  const auto half = [](uint32_t pair, int k) {
    return emulated::value_of<Key>(static_cast<uint16_t>(pair >> (16 * (k % 2))));
  };
  emulated::multiply_fragments<16>(
      sum,
      [&](int row, int k) {
        return half(lanes[row % 8 * 4 + k % 8 / 2].a[row / 8 + k / 8 * 2], k);
      },
      [&](int k, int col) { return half(lanes[col * 4 + k % 8 / 2].b[k / 8], k); });
}

// The card reads 19 bits of each.
inline void multiply_m16n8k8_tf32(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const emulated::Fragments* lanes = emulated::meet_fragments(a, b);
  const auto tf32 = [](uint32_t bits) { return __uint_as_float(bits & 0xffffe000u); };
  emulated::multiply_fragments<8>(
      sum, [&](int row, int k) { return tf32(lanes[row % 8 * 4 + k % 4].a[row / 8 + k / 4 * 2]); },
      [&](int k, int col) { return tf32(lanes[col * 4 + k % 4].b[k / 4]); });
}

// To nearest, ties away from zero.
inline uint32_t round_to_tf32(float value) {
  const uint32_t bits = __float_as_uint(value);
  return std::isfinite(value) ? (bits + 0x1000) & 0xffffe000u : bits;
}

inline float tf32_as_float(uint32_t value) { return __uint_as_float(value); }

}  // namespace rome_fast
