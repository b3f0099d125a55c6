// In which blocks and in which order the lower triangle of K^T K is formed.
//
// The analytical model of BLIS (Low, Igual, Smith and Quintana-Orti 2016; its layers are those of
// Goto and van de Geijn 2008), for two operands that are panels of the same matrix:
// - L1 holds a chunk of a column panel, which one micro-kernel call after the other reads again,
//   in its half; the rest is for what passes through, strips of a row panel and of the tile.
// - L2 holds in its half a group of column panels of a slab, past which the row panels go: with
//   `budget` elements in it, columns * depth = budget.
// - From beyond L2 come a row panel for each group and, read and written, the sum for each slab:
//   1 / columns + 2 / depth elements a product, least where depth = 2 * columns.
// - Nothing is counted on in L3: it is shared with an unknown number of others, virtual machines
//   report their host's, and all that comes from there is asked for ahead.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/cpu/caches.h"

namespace rome_fast {

struct SyrkBlocking {
  int64_t chunk;  // packed rows of a micro-kernel call
  int64_t depth;  // packed rows of a slab, a multiple of chunk
  int64_t group;  // column panels that stay in L2
};

// Panels are `panel` columns wide, an element of a packed row has `bytes` bytes. A chunk of at most
// `max_chunk` rows is summed in registers, and rounding grows with it.
inline SyrkBlocking syrk_blocking(const Caches& caches, int64_t panel, int64_t bytes,
                                  int64_t max_chunk) {
  SyrkBlocking blocking{max_chunk, 0, 1};
  while (blocking.chunk * panel * bytes > caches.l1 / 2) blocking.chunk /= 2;
  const int64_t budget = caches.l2 / 2 / bytes;
  const int64_t chunks = std::lround(std::sqrt(2.0 * budget) / blocking.chunk);
  blocking.depth = (chunks < 1 ? 1 : chunks) * blocking.chunk;
  const int64_t group = budget / (blocking.depth * panel);
  if (group > 1) blocking.group = group;
  return blocking;
}

// The pairs of a row panel and a column panel that is not to the right of it: a group of column
// panels after the other, and in a group row by row.
class PanelPairs {
 public:
  PanelPairs(int64_t panels, int64_t group) : panels_(panels), group_(group) {}

  int64_t panels() const { return panels_; }
  int64_t size() const { return panels_ * (panels_ + 1) / 2; }

  // Calls f(row_panel, col_panel) for the pairs [begin, end).
  template <class F>
  void for_each(int64_t begin, int64_t end, const F& f) const {
    int64_t passed = 0;  // pairs in front of this row of this group
    for (int64_t group = 0; group < panels_; group += group_) {
      for (int64_t row = group; row < panels_ && passed < end; ++row) {
        const int64_t width = row - group < group_ ? row - group + 1 : group_;
        const int64_t first = begin > passed ? begin - passed : 0;
        const int64_t last = end - passed < width ? end - passed : width;
        for (int64_t col = first; col < last; ++col) f(row, group + col);
        passed += width;
      }
    }
  }

 private:
  int64_t panels_;
  int64_t group_;
};

}  // namespace rome_fast
