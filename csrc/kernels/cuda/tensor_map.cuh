// Matrices as the tensor copy engine of sm_90 knows them.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/numeric.cuh"

namespace rome_fast {

// The driver's function, found without linking the driver; null where it is too old.
inline auto find_map_encoder() -> decltype(&cuTensorMapEncodeTiled) {
  static const auto function = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSuccess;
    const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found,
                                                               12000, cudaEnableDefault, &result);
    if (error != cudaSuccess || result != cudaDriverEntryPointSuccess) found = nullptr;
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
  }();
  return function;
}

// A row-major matrix of BFloat16 or Half, to be copied in swizzled boxes; false where the engine
// cannot read it. The stride counts elements.
template <class T>
bool describe_matrix(const T* data, int64_t rows, int64_t cols, int64_t row_stride, int box_rows,
                     int box_cols, CUtensorMap* map) {
  static_assert(std::is_same_v<T, BFloat16> || std::is_same_v<T, Half>);
  const auto encode = find_map_encoder();
  if (encode == nullptr) return false;
  const auto type = std::is_same_v<T, BFloat16> ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                                : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(cols), static_cast<cuuint64_t>(rows)};
  const cuuint64_t pitch[1] = {static_cast<cuuint64_t>(row_stride) * sizeof(T)};
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(box_cols), static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  return encode(map, type, 2, const_cast<T*>(data), sizes, pitch, box, steps,
                CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace rome_fast
