// How keys are packed for syrk (included by second_moment_body.h, for each instruction set).

namespace rome_fast::ROME_FAST_ISA {

template <class T>
struct SyrkTraits {
  static constexpr int kVectors = 3;
  static constexpr int kPanel = kVectors * kLanes<T>;    // columns of a tile
  static constexpr int kTileRows = ROME_FAST_TILE_ROWS;  // rows of a micro-kernel's part of it
  static constexpr int kMaxChunk = 64;                   // keys summed in registers
  static_assert(kPanel % kTileRows == 0, "a panel must hold whole tiles");
};

// Elements of a packed row, and how many rows of keys one takes.
template <class Key, class Sum>
struct Packing {
  using Element = Sum;
  static constexpr int64_t kRows = 1;
};

#if ROME_FAST_BF16_DOT
template <>
struct Packing<BFloat16, float> {
  using Element = Bf16Pair;
  static constexpr int64_t kRows = 2;
};
#endif

// packed[width] = the keys of row rows[0] from `col` on.
template <class Key, class Sum>
ROME_FAST_TARGET void pack_row(const SecondMomentParams<Key, Sum>& p, const int64_t* rows, int64_t,
                               int64_t col, int64_t width, Sum* packed) {
  const Key* key = p.keys + rows[0] * p.keys_row_stride + col * p.keys_col_stride;
  if (p.keys_col_stride == 1 && width == SyrkTraits<Sum>::kPanel) {
    for (int64_t j = 0; j < SyrkTraits<Sum>::kPanel; ++j) packed[j] = widen(key[j]);
  } else {
    for (int64_t j = 0; j < width; ++j) packed[j] = widen(key[j * p.keys_col_stride]);
  }
}

#if ROME_FAST_BF16_DOT
// The keys of rows[0] and rows[1] in pairs; zeros stand for a row behind the last.
ROME_FAST_TARGET inline void pack_row(const SecondMomentParams<BFloat16, float>& p,
                                      const int64_t* rows, int64_t n_rows, int64_t col,
                                      int64_t width, Bf16Pair* packed) {
  const bool paired = n_rows > 1;
  const uint32_t kept = paired ? 0xffff0000u : 0;
  const BFloat16* keys = p.keys + col * p.keys_col_stride;
  const BFloat16* even = keys + rows[0] * p.keys_row_stride;
  const BFloat16* odd = keys + rows[paired] * p.keys_row_stride;
  if (p.keys_col_stride == 1 && width == SyrkTraits<float>::kPanel) {
    for (int64_t j = 0; j < SyrkTraits<float>::kPanel; ++j) {
      packed[j] = even[j].bits | (uint32_t{odd[j].bits} << 16 & kept);
    }
  } else {
    for (int64_t j = 0; j < width; ++j, even += p.keys_col_stride, odd += p.keys_col_stride) {
      packed[j] = even->bits | (uint32_t{odd->bits} << 16 & kept);
    }
  }
}
#endif

// packed[.., kPanel] = n_rows rows of keys[.., col .. col + kPanel), zero beyond the last column.
template <class Key, class Sum, class Element>
ROME_FAST_TARGET void pack_panel(const SecondMomentParams<Key, Sum>& p, const int64_t* rows,
                                 int64_t n_rows, int64_t col, Element* packed) {
  constexpr int64_t kPanel = SyrkTraits<Sum>::kPanel;
  constexpr int64_t kRows = Packing<Key, Sum>::kRows;
  const int64_t width = p.d - col < kPanel ? p.d - col : kPanel;
  for (int64_t k = 0; k < n_rows; k += kRows, packed += kPanel) {
    pack_row(p, rows + k, n_rows - k, col, width, packed);
    for (int64_t j = width; j < kPanel; ++j) packed[j] = 0;
  }
}

}  // namespace rome_fast::ROME_FAST_ISA
