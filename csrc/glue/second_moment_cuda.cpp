#include <type_traits>

#include "glue/ops_cuda.h"
#include "glue/second_moment.h"
#include "glue/tensors_cuda.h"
#include "kernels/cuda/second_moment.h"

namespace rome_fast {
namespace {

template <class Key, class Sum>
void run(const Tensor& moment_sum, const std::optional<Tensor>& compensation, const Tensor& keys,
         const std::optional<Tensor>& mask, bool allow_tf32, cudaStream_t stream) {
  SecondMomentParams<Key, Sum> params{
      data<Sum>(moment_sum),
      moment_sum.stride(0),
      moment_sum.stride(1),
      compensation ? data<Sum>(*compensation) : nullptr,
      compensation ? compensation->stride(0) : 0,
      compensation ? compensation->stride(1) : 0,
      data<Key>(keys),
      keys.stride(0),
      keys.stride(1),
      mask ? data<bool>(*mask) : nullptr,
      mask ? mask->stride(0) : 0,
      keys.size(0),
      keys.size(1),
      allow_tf32,
      nullptr,
  };
  const Tensor memory = workspace(moment_sum, second_moment_bytes(params));
  params.memory = data<void>(memory);
  second_moment(params, stream);
}

}  // namespace

void second_moment_update_cuda(Tensor moment_sum, const Tensor& keys, std::optional<Tensor> mask,
                               std::optional<Tensor> compensation, bool allow_tf32) {
  check_second_moment(moment_sum, keys, mask, compensation);
  const OnDeviceOf device(moment_sum);
  dispatch_float(keys, "keys", [&](auto key_tag) {
    using Key = typename decltype(key_tag)::type;
    if (moment_sum.scalar_type() == ScalarType::Double) {
      run<Key, double>(moment_sum, compensation, keys, mask, allow_tf32, device.stream());
    } else if constexpr (!std::is_same_v<Key, double>) {
      STD_TORCH_CHECK(moment_sum.scalar_type() == ScalarType::Float,
                      "moment_sum must be float64 or float32");
      run<Key, float>(moment_sum, compensation, keys, mask, allow_tf32, device.stream());
    } else {
      STD_TORCH_CHECK(false, "moment_sum must be float64 for float64 keys");
    }
  });
}

}  // namespace rome_fast
