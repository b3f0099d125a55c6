// The driver's tensor maps on the host: the fields that the kernels use, and the rules for them.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

using cuuint32_t = uint32_t;
using cuuint64_t = uint64_t;
enum CUresult { CUDA_SUCCESS = 0, CUDA_ERROR_INVALID_VALUE = 1 };
enum CUtensorMapDataType { CU_TENSOR_MAP_DATA_TYPE_FLOAT16, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 };
enum CUtensorMapInterleave { CU_TENSOR_MAP_INTERLEAVE_NONE };
enum CUtensorMapSwizzle { CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_SWIZZLE_128B = 3 };
enum CUtensorMapL2promotion { CU_TENSOR_MAP_L2_PROMOTION_L2_128B = 2 };
enum CUtensorMapFloatOOBfill { CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE };

struct alignas(64) CUtensorMap {
  const unsigned char* base;  // of 16-bit elements
  uint64_t cols, rows, pitch;
  uint32_t box_cols, box_rows;
  uint64_t opaque[10];
};
static_assert(sizeof(CUtensorMap) == 128);

// The driver's rules for two dimensions and a swizzle of 128 bytes; anything else is refused.
inline CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType, cuuint32_t rank,
                                       void* base, const cuuint64_t* sizes,
                                       const cuuint64_t* pitches, const cuuint32_t* box,
                                       const cuuint32_t* steps, CUtensorMapInterleave,
                                       CUtensorMapSwizzle swizzle, CUtensorMapL2promotion,
                                       CUtensorMapFloatOOBfill) {
  const auto in = [](uint64_t x, uint64_t low, uint64_t high) { return low <= x && x <= high; };
  const bool fits = rank == 2 && swizzle == CU_TENSOR_MAP_SWIZZLE_128B &&
                    reinterpret_cast<uintptr_t>(map) % 64 == 0 &&
                    reinterpret_cast<uintptr_t>(base) % 16 == 0 &&
                    in(sizes[0], 1, uint64_t{1} << 32) && in(sizes[1], 1, uint64_t{1} << 32) &&
                    pitches[0] % 16 == 0 && pitches[0] >= 2 * sizes[0] &&
                    pitches[0] < uint64_t{1} << 40 && in(box[0], 1, 256) && in(box[1], 1, 256) &&
                    box[0] * 2 % 16 == 0 && box[0] * 2 <= 128 && steps[0] == 1 && steps[1] == 1;
  if (!fits) return CUDA_ERROR_INVALID_VALUE;
  *map = {static_cast<const unsigned char*>(base), sizes[0], sizes[1], pitches[0], box[0], box[1]};
  return CUDA_SUCCESS;
}

enum cudaDriverEntryPointQueryResult { cudaDriverEntryPointSuccess };
constexpr unsigned long long cudaEnableDefault = 0;

inline cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** found, unsigned,
                                                    unsigned long long,
                                                    cudaDriverEntryPointQueryResult* result) {
  if (std::strcmp(name, "cuTensorMapEncodeTiled") != 0) return cudaErrorInvalidValue;
  *found = reinterpret_cast<void*>(&cuTensorMapEncodeTiled);
  *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}
