// What the glue of every device makes sure of before a second moment is updated.
#pragma once

#include <optional>

#include "glue/tensors.h"

namespace rome_fast {

inline void check_second_moment(const Tensor& moment_sum, const Tensor& keys,
                                const std::optional<Tensor>& mask,
                                const std::optional<Tensor>& compensation) {
  STD_TORCH_CHECK(keys.dim() == 2, "keys must have 2 dimensions");
  check_shape(moment_sum, "moment_sum", keys.size(1), keys.size(1));
  if (mask) {
    check_size(*mask, "mask", keys.size(0));
    STD_TORCH_CHECK(mask->scalar_type() == ScalarType::Bool, "mask must be bool");
  }
  if (compensation) {
    check_shape(*compensation, "compensation", keys.size(1), keys.size(1));
    STD_TORCH_CHECK(compensation->scalar_type() == ScalarType::Float &&
                        moment_sum.scalar_type() == ScalarType::Float,
                    "compensation and its moment_sum must be float32");
  }
}

}  // namespace rome_fast
