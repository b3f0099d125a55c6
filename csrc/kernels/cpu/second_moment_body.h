// Blocked syrk for one instruction set (included by second_moment.cpp through foreach_isa.h).
//
// A slab of selected rows is packed into column panels of kPanel keys; every tile of the lower
// triangle is then a product of two panels. Both operands are the same panels.

#include "kernels/cpu/second_moment_packing_body.h"

namespace rome_fast::ROME_FAST_ISA {

// tile[kTileRows][kPanel] += sum over depth of a_row * b_col.
template <class Element, class Sum>
ROME_FAST_TARGET void syrk_tile_kernel(const Element* a, const Element* b, int64_t depth,
                                       Sum* tile) {
  using Traits = SyrkTraits<Sum>;
  constexpr int kRows = Traits::kTileRows;
  constexpr int kVectors = Traits::kVectors;
  Vec<Sum> sum[kRows][kVectors] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Vec<Element> b_k[kVectors];
#pragma GCC unroll 3
    for (int j = 0; j < kVectors; ++j) b_k[j] = load<Vec<Element>>(b + j * kLanes<Sum>);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const Vec<Element> a_k = a[i] - Vec<Element>{};  // broadcast
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
      Sum* out = tile + i * Traits::kPanel + j * kLanes<Sum>;
      store(out, load<Vec<Sum>>(out) + sum[i][j]);
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

// moment_sum[row .. row + kTileRows, col ..] += tile, clipped to the matrix and to its lower
// triangle.
template <class Key, class Sum>
ROME_FAST_TARGET void add_rows(const SecondMomentParams<Key, Sum>& p, const Sum* tile, int64_t row,
                               int64_t col) {
  constexpr int64_t kPanel = SyrkTraits<Sum>::kPanel;
  for (int64_t i = 0; i < SyrkTraits<Sum>::kTileRows && row + i < p.d; ++i, tile += kPanel) {
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

// Asks for the part of the sum that add_rows is going to change, a micro-kernel call ahead.
template <class Key, class Sum>
ROME_FAST_TARGET void prefetch_rows(const SecondMomentParams<Key, Sum>& p, int64_t row,
                                    int64_t col) {
  using Traits = SyrkTraits<Sum>;
  for (int64_t i = 0; i < Traits::kTileRows && row + i < p.d; ++i) {
    const Sum* out = p.moment_sum + (row + i) * p.moment_row_stride + col * p.moment_col_stride;
    for (int64_t j = 0; j < Traits::kPanel; j += kLine / sizeof(Sum)) {
      __builtin_prefetch(out + j, 1);
    }
  }
}

// The row panel that comes next lies beyond L2. It is asked for while the one in front of it is
// multiplied, a few lines with each call: 8 bring all of it past 4 column panels.
template <class Element>
struct NextPanel {
  const Element* at = nullptr;
  const Element* end = nullptr;

  ROME_FAST_TARGET void prefetch() {
    constexpr int kLines = 8;
    for (int line = 0; line < kLines && at < end; ++line, at += kLine / sizeof(Element)) {
      __builtin_prefetch(at, 0, 2);
    }
  }
};

// The square tile of row panel `a` and column panel `b`, which begin at column `row` and `col` of
// the keys; row >= col.
template <class Key, class Sum, class Element>
ROME_FAST_TARGET void add_panel_pair(const SecondMomentParams<Key, Sum>& p, const Element* a,
                                     const Element* b, int64_t depth, int64_t max_chunk,
                                     int64_t row, int64_t col, NextPanel<Element>& next) {
  using Traits = SyrkTraits<Sum>;
  alignas(64) Sum tile[Traits::kPanel * Traits::kPanel] = {};
  for (int64_t k = 0; k < depth; k += max_chunk) {
    const bool last = depth - k <= max_chunk;
    const int64_t chunk = last ? depth - k : max_chunk;
    for (int64_t i = 0; i < Traits::kPanel && row + i < p.d; i += Traits::kTileRows) {
      Sum* strip = tile + i * Traits::kPanel;
      next.prefetch();
      if (last) prefetch_rows(p, row + i, col);
      syrk_tile_kernel(a + k * Traits::kPanel + i, b + k * Traits::kPanel, chunk, strip);
      if (last) add_rows(p, strip, row + i, col);
    }
  }
}

// The pairs [begin, end) of a slab's panels, `depth` packed rows each.
template <class Key, class Sum, class Element>
ROME_FAST_TARGET void add_pairs(const SecondMomentParams<Key, Sum>& p, const PanelPairs& pairs,
                                const Element* slab, int64_t depth, int64_t max_chunk,
                                int64_t begin, int64_t end) {
  constexpr int64_t kPanel = SyrkTraits<Sum>::kPanel;
  const int64_t panel_size = depth * kPanel;
  const Element* slab_end = slab + pairs.panels() * panel_size;
  const Element* a = nullptr;
  NextPanel<Element> next;
  pairs.for_each(begin, end, [&](int64_t row_panel, int64_t col_panel) {
    if (a != slab + row_panel * panel_size) {
      a = slab + row_panel * panel_size;
      next.at = a + panel_size;
      next.end = next.at < slab_end ? next.at + panel_size : next.at;
    }
    add_panel_pair(p, a, slab + col_panel * panel_size, depth, max_chunk, row_panel * kPanel,
                   col_panel * kPanel, next);
  });
}

// Rows of keys packed at a time: as many slabs as fit in kPackedBytes, so that a call has few
// barriers.
inline int64_t rows_per_pass(int64_t n, int64_t slab_rows, int64_t slab_bytes) {
  constexpr int64_t kPackedBytes = 16 << 20;
  const int64_t slabs = slab_bytes < kPackedBytes ? kPackedBytes / slab_bytes : 1;
  return n < slabs * slab_rows ? n : slabs * slab_rows;
}

template <class Key, class Sum>
void second_moment(const SecondMomentParams<Key, Sum>& p, const Pool& pool) {
  using Element = typename Packing<Key, Sum>::Element;
  constexpr int64_t kPanel = SyrkTraits<Sum>::kPanel;
  constexpr int64_t kRows = Packing<Key, Sum>::kRows;
  if (p.n == 0 || p.d == 0) return;
  const SyrkBlocking blocking =
      syrk_blocking(caches(), kPanel, sizeof(Element), SyrkTraits<Sum>::kMaxChunk / kRows);
  const PanelPairs pairs((p.d + kPanel - 1) / kPanel, blocking.group);
  const int64_t width = pairs.panels() * kPanel;  // of one packed row
  const int64_t slab_rows = blocking.depth * kRows;
  const int64_t slab_size = blocking.depth * width;
  const int64_t max_rows = rows_per_pass(p.n, slab_rows, slab_size * sizeof(Element));
  const Packed<Element> packed = allocate_packed<Element>((max_rows + kRows - 1) / kRows * width);
  for (int64_t first = 0; first < p.n; first += max_rows) {
    const int64_t end_row = p.n - first < max_rows ? p.n : first + max_rows;
    // Calls f(first row, number of rows, packed rows, where they are packed) for each slab.
    const auto for_each_slab = [&](const auto& f) {
      Element* slab = packed.get();
      for (int64_t row = first; row < end_row; row += slab_rows, slab += slab_size) {
        const int64_t n_rows = end_row - row < slab_rows ? end_row - row : slab_rows;
        f(row, n_rows, (n_rows + kRows - 1) / kRows, slab);
      }
    };
    pool.parallel_for(pairs.panels(), 1, [&](int64_t begin, int64_t end) {
      for_each_slab([&](int64_t row, int64_t n_rows, int64_t depth, Element* slab) {
        for (int64_t panel = begin; panel < end; ++panel) {
          pack_panel(p, p.rows + row, n_rows, panel * kPanel, slab + panel * depth * kPanel);
        }
      });
    });
    pool.parallel_for(pairs.size(), 1, [&](int64_t begin, int64_t end) {
      for_each_slab([&](int64_t, int64_t, int64_t depth, const Element* slab) {
        add_pairs(p, pairs, slab, depth, blocking.chunk, begin, end);
      });
    });
  }
}

}  // namespace rome_fast::ROME_FAST_ISA
