// The rank-one apply for one instruction set (included by rank_one.cpp through foreach_isa.h).

namespace rome_fast::ROME_FAST_ISA {

// out[j] += scale * x[j] for one line of the weight.
template <class Weight>
ROME_FAST_TARGET void add_scaled_line(Weight* out, int64_t stride, Compute<Weight> scale,
                                      const Compute<Weight>* x, int64_t size) {
  if (stride == 1) {
    for (int64_t j = 0; j < size; ++j) out[j] = narrow<Weight>(widen(out[j]) + scale * x[j]);
  } else {
    for (int64_t j = 0; j < size; ++j) {
      out[j * stride] = narrow<Weight>(widen(out[j * stride]) + scale * x[j]);
    }
  }
}

template <class Weight>
void rank_one_update(const RankOneUpdateParams<Weight>& p, const Pool& pool) {
  // Lines run along whichever dimension is contiguous; v_i * u_j has the same bits either way.
  const bool by_rows = p.col_stride == 1 || p.row_stride != 1;
  const int64_t lines = by_rows ? p.d_value : p.d_key;
  const int64_t size = by_rows ? p.d_key : p.d_value;
  const int64_t line_stride = by_rows ? p.row_stride : p.col_stride;
  const int64_t stride = by_rows ? p.col_stride : p.row_stride;
  const Compute<Weight>* scales = by_rows ? p.v : p.u;
  const Compute<Weight>* x = by_rows ? p.u : p.v;
  const int64_t grain = kGrainElements / (size + 1) + 1;
  pool.parallel_for(lines, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      add_scaled_line(p.weight + i * line_stride, stride, scales[i], x, size);
    }
  });
}

}  // namespace rome_fast::ROME_FAST_ISA
