#include <type_traits>
#include <vector>

#include "glue/ops_cpu.h"
#include "glue/second_moment.h"
#include "glue/tensors_cpu.h"
#include "kernels/cpu/second_moment.h"

namespace rome_fast {
namespace {

std::vector<int64_t> selected_rows(int64_t n, const std::optional<Tensor>& mask) {
  const bool* keep = mask ? data<bool>(*mask) : nullptr;
  const int64_t stride = mask ? mask->stride(0) : 0;
  std::vector<int64_t> rows;
  rows.reserve(n);
  for (int64_t row = 0; row < n; ++row) {
    if (keep == nullptr || keep[row * stride]) rows.push_back(row);
  }
  return rows;
}

template <class Key, class Sum>
void run(const Tensor& moment_sum, const std::optional<Tensor>& compensation, const Tensor& keys,
         const std::vector<int64_t>& rows) {
  const SecondMomentParams<Key, Sum> params{
      data<Sum>(moment_sum),
      moment_sum.stride(0),
      moment_sum.stride(1),
      compensation ? data<Sum>(*compensation) : nullptr,
      compensation ? compensation->stride(0) : 0,
      compensation ? compensation->stride(1) : 0,
      data<Key>(keys),
      keys.stride(0),
      keys.stride(1),
      rows.data(),
      static_cast<int64_t>(rows.size()),
      keys.size(1),
  };
  second_moment(params, torch_pool());
}

}  // namespace

void second_moment_update_cpu(Tensor moment_sum, const Tensor& keys, std::optional<Tensor> mask,
                              std::optional<Tensor> compensation, bool) {
  check_second_moment(moment_sum, keys, mask, compensation);
  const std::vector<int64_t> rows = selected_rows(keys.size(0), mask);
  dispatch_float(keys, "keys", [&](auto key_tag) {
    using Key = typename decltype(key_tag)::type;
    if (moment_sum.scalar_type() == ScalarType::Double) {
      run<Key, double>(moment_sum, compensation, keys, rows);
    } else if constexpr (!std::is_same_v<Key, double>) {
      STD_TORCH_CHECK(moment_sum.scalar_type() == ScalarType::Float,
                      "moment_sum must be float64 or float32");
      run<Key, float>(moment_sum, compensation, keys, rows);
    } else {
      STD_TORCH_CHECK(false, "moment_sum must be float64 for float64 keys");
    }
  });
}

}  // namespace rome_fast
