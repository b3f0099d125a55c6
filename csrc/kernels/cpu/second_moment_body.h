// Blocked syrk for one instruction set (included by second_moment.cpp through foreach_isa.h).
//
// A slab of kDepth selected rows is packed into column panels of kPanel keys; every tile of the
// lower triangle is then a product of two panels. Both operands are the same panels.

namespace rome_fast::ROME_FAST_ISA {

template <class T>
struct SyrkTraits {
  static constexpr int kVectors = 3;
  static constexpr int kPanel = kVectors * kLanes<T>;     // columns of a tile
  static constexpr int kTileRows = ROME_FAST_TILE_ROWS;   // rows of a tile
  static constexpr int64_t kDepth = 512 * 4 / sizeof(T);  // a panel of AVX-512 floats: 96 KiB of L2
  static constexpr int64_t kGroup = 4;                    // column panels that stay in L2
  // Rows of a micro-kernel call: two panels' worth fit in L1, and rounding grows with their number.
  static constexpr int64_t kChunk = 64;
  static_assert(kPanel % kTileRows == 0, "a panel must hold whole tiles");
};

// tile[kTileRows][kPanel] += sum over depth of a_row * b_col.
template <class T>
ROME_FAST_TARGET void syrk_tile_kernel(const T* a, const T* b, int64_t depth, T* tile) {
  using Traits = SyrkTraits<T>;
  constexpr int kRows = Traits::kTileRows;
  constexpr int kVectors = Traits::kVectors;
  Vec<T> sum[kRows][kVectors] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Vec<T> b_k[kVectors];
#pragma GCC unroll 3
    for (int j = 0; j < kVectors; ++j) b_k[j] = load<Vec<T>>(b + j * kLanes<T>);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const Vec<T> a_k = a[i] - Vec<T>{};  // broadcast
#pragma GCC unroll 3
      for (int j = 0; j < kVectors; ++j) sum[i][j] = mul_add(a_k, b_k[j], sum[i][j]);
    }
    a += Traits::kPanel;
    b += Traits::kPanel;
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 3
    for (int j = 0; j < kVectors; ++j) {
      T* out = tile + i * Traits::kPanel + j * kLanes<T>;
      store(out, load<Vec<T>>(out) + sum[i][j]);
    }
  }
}

// packed[depth][kPanel] = keys[rows[k], col .. col + kPanel), zero beyond the last column.
template <class Key, class Sum>
ROME_FAST_TARGET void pack_panel(const SecondMomentParams<Key, Sum>& p, int64_t first_row,
                                 int64_t depth, int64_t col, Sum* packed) {
  constexpr int64_t kPanel = SyrkTraits<Sum>::kPanel;
  const int64_t width = p.d - col < kPanel ? p.d - col : kPanel;
  for (int64_t k = 0; k < depth; ++k, packed += kPanel) {
    const Key* key = p.keys + p.rows[first_row + k] * p.keys_row_stride + col * p.keys_col_stride;
    if (p.keys_col_stride == 1 && width == kPanel) {
      for (int64_t j = 0; j < kPanel; ++j) packed[j] = widen(key[j]);
    } else {
      for (int64_t j = 0; j < width; ++j) packed[j] = widen(key[j * p.keys_col_stride]);
      for (int64_t j = width; j < kPanel; ++j) packed[j] = 0;
    }
  }
}

// sum + compensation += addend; compensation becomes what rounds off sum. Two-sum (Knuth 1969)
// needs no branch and so vectorises. Rounding the increment is an error relative to one addend, as
// forming it in Sum already was, and not to the sum.
template <class Sum>
ROME_FAST_TARGET ROME_FAST_INLINE void add_compensated(Sum addend, Sum& sum, Sum& compensation) {
  const Sum increment = addend + compensation;
  const Sum total = sum + increment;
  const Sum rounded = total - sum;
  compensation = (sum - (total - rounded)) + (increment - rounded);
  sum = total;
}

// One row of a tile; the strides of both matrices are along the row.
template <class Sum>
ROME_FAST_TARGET void add_row_compensated(const Sum* tile, int64_t width, Sum* sum,
                                          int64_t sum_stride, Sum* compensation,
                                          int64_t compensation_stride) {
  if (sum_stride == 1 && compensation_stride == 1) {
    for (int64_t j = 0; j < width; ++j) add_compensated(tile[j], sum[j], compensation[j]);
  } else {
    for (int64_t j = 0; j < width; ++j) {
      add_compensated(tile[j], sum[j * sum_stride], compensation[j * compensation_stride]);
    }
  }
}

// moment_sum[row.., col..] += tile, clipped to the matrix and to its lower triangle.
template <class Key, class Sum>
ROME_FAST_TARGET void add_tile(const SecondMomentParams<Key, Sum>& p, const Sum* tile, int64_t row,
                               int64_t col) {
  constexpr int64_t kPanel = SyrkTraits<Sum>::kPanel;
  for (int64_t i = 0; i < kPanel && row + i < p.d; ++i, tile += kPanel) {
    const int64_t below = row + i - col + 1;  // columns of this row at or left of the diagonal
    const int64_t width = below < kPanel ? below : kPanel;
    Sum* out = p.moment_sum + (row + i) * p.moment_row_stride + col * p.moment_col_stride;
    if (p.compensation != nullptr) {
      Sum* lost =
          p.compensation + (row + i) * p.compensation_row_stride + col * p.compensation_col_stride;
      add_row_compensated(tile, width, out, p.moment_col_stride, lost, p.compensation_col_stride);
    } else if (p.moment_col_stride == 1 && width == kPanel) {
      for (int64_t j = 0; j < kPanel; ++j) out[j] += tile[j];
    } else {
      for (int64_t j = 0; j < width; ++j) out[j * p.moment_col_stride] += tile[j];
    }
  }
}

// The square tile of panel pair (row panel, column panel), row panel >= column panel.
template <class Key, class Sum>
ROME_FAST_TARGET void add_panel_pair(const SecondMomentParams<Key, Sum>& p, const Sum* packed,
                                     int64_t depth, int64_t row_panel, int64_t col_panel) {
  using Traits = SyrkTraits<Sum>;
  const Sum* a = packed + row_panel * depth * Traits::kPanel;
  const Sum* b = packed + col_panel * depth * Traits::kPanel;
  const int64_t row = row_panel * Traits::kPanel;
  alignas(64) Sum tile[Traits::kPanel * Traits::kPanel] = {};
  for (int64_t k = 0; k < depth; k += Traits::kChunk) {
    const int64_t chunk = depth - k < Traits::kChunk ? depth - k : Traits::kChunk;
    for (int64_t i = 0; i < Traits::kPanel && row + i < p.d; i += Traits::kTileRows) {
      syrk_tile_kernel(a + k * Traits::kPanel + i, b + k * Traits::kPanel, chunk,
                       tile + i * Traits::kPanel);
    }
  }
  add_tile(p, tile, row, col_panel * Traits::kPanel);
}

// The units [begin, end) of the triangle, numbered down groups of kGroup column panels; a unit is
// one row panel beside the panels of a group, which stay in L2 from one unit to the next.
template <class Key, class Sum>
ROME_FAST_TARGET void add_units(const SecondMomentParams<Key, Sum>& p, const Sum* packed,
                                int64_t depth, int64_t panels, int64_t begin, int64_t end) {
  constexpr int64_t kGroup = SyrkTraits<Sum>::kGroup;
  int64_t group = 0;  // its first column panel
  int64_t offset = begin;
  for (; offset >= panels - group; group += kGroup) offset -= panels - group;
  int64_t row_panel = group + offset;
  for (int64_t unit = begin; unit < end; ++unit) {
    for (int64_t col_panel = group; col_panel < group + kGroup && col_panel <= row_panel;
         ++col_panel) {
      add_panel_pair(p, packed, depth, row_panel, col_panel);
    }
    if (++row_panel == panels) row_panel = group += kGroup;
  }
}

template <class Sum>
int64_t count_units(int64_t panels) {
  int64_t units = 0;
  for (int64_t group = 0; group < panels; group += SyrkTraits<Sum>::kGroup) units += panels - group;
  return units;
}

// Rows packed at a time: as many slabs as fit in kPackedBytes, so that a call has few barriers.
template <class Sum>
int64_t rows_per_pass(int64_t n, int64_t panels) {
  using Traits = SyrkTraits<Sum>;
  constexpr int64_t kPackedBytes = 16 << 20;
  const int64_t slab_bytes = panels * Traits::kPanel * Traits::kDepth * sizeof(Sum);
  const int64_t slabs = slab_bytes < kPackedBytes ? kPackedBytes / slab_bytes : 1;
  return n < slabs * Traits::kDepth ? n : slabs * Traits::kDepth;
}

template <class Key, class Sum>
void second_moment(const SecondMomentParams<Key, Sum>& p, const Pool& pool) {
  using Traits = SyrkTraits<Sum>;
  if (p.n == 0 || p.d == 0) return;
  const int64_t panels = (p.d + Traits::kPanel - 1) / Traits::kPanel;
  const int64_t width = panels * Traits::kPanel;  // of one packed row
  const int64_t max_rows = rows_per_pass<Sum>(p.n, panels);
  const std::unique_ptr<Sum[]> packed(new Sum[width * max_rows]);
  for (int64_t first = 0; first < p.n; first += max_rows) {
    const int64_t rows = p.n - first < max_rows ? p.n - first : max_rows;
    const auto for_each_slab = [&](const auto& f) {
      for (int64_t row = 0; row < rows; row += Traits::kDepth) {
        f(row, rows - row < Traits::kDepth ? rows - row : Traits::kDepth,
          packed.get() + row * width);
      }
    };
    pool.parallel_for(panels, 1, [&](int64_t begin, int64_t end) {
      for_each_slab([&](int64_t row, int64_t depth, Sum* slab) {
        for (int64_t panel = begin; panel < end; ++panel) {
          Sum* out = slab + panel * depth * Traits::kPanel;
          pack_panel(p, first + row, depth, panel * Traits::kPanel, out);
        }
      });
    });
    pool.parallel_for(count_units<Sum>(panels), 1, [&](int64_t begin, int64_t end) {
      for_each_slab([&](int64_t, int64_t depth, const Sum* slab) {
        add_units(p, slab, depth, panels, begin, end);
      });
    });
  }
}

}  // namespace rome_fast::ROME_FAST_ISA
